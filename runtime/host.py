"""The CPU device: ONNX Runtime sessions with fixed threads and preallocated buffers.

There is no loop over samples. A stage sees only the rows that were escalated to it, as one dense
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.gate import Decision, HostGate, Top
from runtime.gate_graph import CONFIDENCE, LABEL, with_confidence
from runtime.host_interface import check_interface, check_sources
from runtime.preprocess import Frames, Preprocessor
from runtime.schema import Form, Score, Stage, StageInput
from runtime.session import HostModel
from runtime.shared_weights import NOTHING_SHARED, SharedWeights

ENGINE = "onnxruntime"
"""The engine's name in records and certificates."""

Rows = npt.NDArray[np.int64]
"""Which frames of a batch reach a stage, ascending."""

Thresholds = Sequence["float | npt.NDArray[np.float32]"]


@dataclass
class StageTimings:
    """Seconds and rows a stage has used since the last reset."""

    feed: float = 0.0
    session: float = 0.0
    gate: float = 0.0
    rows: int = 0


class _Bound(NamedTuple):
    """A session bound to the first rows of its buffers, and the views of what it will write."""

    binding: ort.IOBinding
    logits: npt.NDArray[np.float32]
    top: Top | None


class HostStage:
    """A stage's session with its buffers for up to ``batch`` rows.

    Attributes
    ----------
    inputs, outputs
        f32 buffers ``[batch, ...]`` by tensor name; of the outputs, those that the cascade reads.
        A run reads and writes their first rows.
    """

    def __init__(
        self,
        bundle: Bundle,
        index: int,
        form: Form,
        *,
        batch: int,
        threads: int,
        shared: SharedWeights = NOTHING_SHARED,
    ) -> None:
        spec = bundle.spec.stages[index]
        self.spec: Stage = spec
        self.path = bundle.model(index, form)
        self.preprocessor = Preprocessor(spec.preprocessing, bundle.spec.input)
        classes = len(bundle.spec.labels)
        last = index == len(bundle.spec.stages) - 1
        score = Score() if last else bundle.spec.gates[index].score
        self.gate = HostGate(score, rows=batch, classes=classes)
        if spec.forms[form].external_data:
            weights = shared.tensors(self.path)
            self.model = HostModel(self.path, threads=threads, weights=weights)
        else:
            self.model = _open_model(self.path, spec, score, threads=threads)
        self.score_tensor = score.output
        check_interface(self.path, self.model, spec, self.preprocessor.shape, classes)
        self.inputs = {name: _buffer(batch, shape) for name, shape in self.model.inputs.items()}
        wanted = {spec.logits, score.output, *_read_later(bundle.spec.stages, spec.name)}
        self.outputs = {
            name: _buffer(batch, shape)
            for name, shape in self.model.outputs.items()
            if name in wanted and _has_rows(shape) and self.model.types[name] == "tensor(float)"
        }
        self._top: dict[str, npt.NDArray[Any]] = {}
        if CONFIDENCE in self.model.outputs:
            self._top = {
                CONFIDENCE: np.zeros((batch, 1), np.float32),
                LABEL: np.zeros((batch, 1), np.int64),
            }
        self.timings = StageTimings()
        self._bound: dict[int, _Bound] = {}

    def feed(self, frames: Frames) -> None:
        """Preprocess frames into the input buffers of a stage that reads nothing else."""
        for item in self.spec.inputs:
            self.preprocessor(frames, out=self.inputs[item.tensor][: len(frames)])

    def classify(self, frames: Frames) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the stage's own label and confidence of up to ``batch`` frames, without a gate."""
        self.feed(frames)
        return self.gate.answer(self.run(len(frames)), top=self.top(len(frames)))

    def top(self, rows: int) -> Top | None:
        """Return what the last run's engine said of its rows, if it can; valid until the next."""
        return self._bound[rows].top

    def run(self, rows: int) -> npt.NDArray[np.float32]:
        """Run the first input rows; return logits f32 [rows, K], valid until the next run."""
        bound = self._bound.get(rows)
        if bound is None:
            bound = self._bound[rows] = self._bind(rows)
        self.model.session.run_with_iobinding(bound.binding)
        return bound.logits

    def _bind(self, rows: int) -> _Bound:
        binding = self.model.session.io_binding()
        for name, buffer in self.inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(buffer[:rows]))
        for name, buffer in (*self.outputs.items(), *self._top.items()):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(buffer[:rows]))
        top = None
        if self._top:
            top = Top(self._top[LABEL][:rows, 0], self._top[CONFIDENCE][:rows, 0])
        return _Bound(binding, self.outputs[self.spec.logits][:rows], top)


class _Wire(NamedTuple):
    """Where an input buffer's rows come from: a buffer of an earlier stage, or frames if None."""

    target: npt.NDArray[np.float32]
    producer: int
    source: npt.NDArray[np.float32] | None


_NO_ROWS = np.empty(0, np.int64)


class Finished:
    """The ticket of a batch that is done when `HostExecutor.submit` returns."""

    def done(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> None:
        """Return at once."""


class _Added(NamedTuple):
    """Logits of an earlier stage, in its buffer, that the last stage adds to its own."""

    producer: int
    weight: np.float32
    logits: npt.NDArray[np.float32]


class HostExecutor:
    """Runs all stages of a cascade on the CPU. Owns its sessions and buffers; not thread-safe."""

    engine = ENGINE

    def __init__(self, bundle: Bundle, forms: Sequence[Form], *, batch: int, threads: int) -> None:
        self.threads = threads
        self.batch = batch
        shared = SharedWeights.of(bundle, forms)
        self.stages = [
            HostStage(bundle, index, form, batch=batch, threads=threads, shared=shared)
            for index, form in enumerate(forms)
        ]
        check_sources(self.stages)
        self._wires = [
            [self._wire(index, item) for item in stage.spec.inputs]
            for index, stage in enumerate(self.stages)
        ]
        self._added: _Added | None = None
        if bundle.spec.weighted is not None:
            producer, weight = bundle.spec.weighted
            logits = self.stages[producer].outputs[self.stages[producer].spec.logits]
            self._added = _Added(producer, np.float32(weight), logits)

    def execute(
        self,
        frames: Frames,
        thresholds: Thresholds,
        results: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int8]],
        *,
        force: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Classify up to ``batch`` frames.

        Parameters
        ----------
        frames
            u8 [n, H, W, C], 1 <= n <= batch.
        thresholds
            One per gate.
        results
            Label i32 [n], confidence f32 [n] and stage i8 [n], written here.
        force
            u8 [gates, n], non-zero sends a row on whatever its score.
        """
        label, confidence, deepest = results
        deepest.fill(0)
        stage_rows = [np.arange(len(frames))]
        for index, stage in enumerate(self.stages):
            rows = stage_rows[index]
            begin = perf_counter()
            self._feed(index, frames, stage_rows)
            fed = perf_counter()
            logits = stage.run(len(rows))
            ran = perf_counter()
            decision = self._decide(logits, thresholds, force, stage_rows)
            if index == 0:
                label[:], confidence[:] = decision.label, decision.confidence
            else:
                label[rows], confidence[rows] = decision.label, decision.confidence
                deepest[rows] = index
            going_on = len(decision.escalated)
            if going_on:
                stage_rows.append(rows[decision.escalated])
            _account(stage.timings, (begin, fed, ran, perf_counter()), len(rows))
            if not going_on:
                break

    def borrow(self, frames: Any) -> Frames:
        """Return frames as an array."""
        return np.asarray(frames)

    def copy_rows(self, frames: Frames, rows: npt.NDArray[np.int64]) -> Frames:
        """Return a copy of some frames."""
        return frames[rows]

    def submit(
        self,
        frames: Frames,
        thresholds: Thresholds,
        out: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int8]],
        *,
        force: npt.NDArray[np.uint8] | None = None,
    ) -> Finished:
        """Classify up to ``batch`` frames; see `execute`."""
        self.execute(frames, thresholds, out, force=force)
        return _FINISHED

    def stage_logits(self, frames: Frames) -> list[npt.NDArray[np.float32]]:
        """Return every stage's logits of up to ``batch`` frames: f32 [n, K] each."""
        rows = len(frames)
        answers = (np.empty(rows, np.int32), np.empty(rows, np.float32), np.empty(rows, np.int8))
        self.execute(frames, [1.0] * (len(self.stages) - 1), answers)
        self.reset_timings()
        return [stage.outputs[stage.spec.logits][:rows].copy() for stage in self.stages]

    def close(self) -> None:
        """Free sessions and buffers; a second call does nothing."""
        self._wires.clear()
        self.stages.clear()

    def reset_timings(self) -> None:
        """Start the accounts of all stages anew."""
        for stage in self.stages:
            stage.timings = StageTimings()

    def _decide(
        self,
        logits: npt.NDArray[np.float32],
        thresholds: Thresholds,
        force: npt.NDArray[np.uint8] | None,
        stage_rows: list[Rows],
    ) -> Decision:
        """Return what the last of the stages so far says of its rows."""
        index, rows = len(stage_rows) - 1, stage_rows[-1]
        stage = self.stages[index]
        top = stage.top(len(logits))
        if index == len(self.stages) - 1:
            if self._added is not None:  # its own softmax is then of no use
                logits, top = _combined(logits, self._added, stage_rows), None
            return Decision(*stage.gate.answer(logits, top=top), _NO_ROWS)
        tensor = None
        if stage.score_tensor:
            tensor = stage.outputs[stage.score_tensor][: len(logits)].reshape(-1)
        forced = None if force is None else force[index, rows]
        return stage.gate.decide(logits, thresholds[index], top=top, tensor=tensor, force=forced)

    def _feed(self, index: int, frames: Frames, stage_rows: list[Rows]) -> None:
        rows = stage_rows[index]
        for wire in self._wires[index]:
            target = wire.target[: len(rows)]
            if wire.source is None:
                self.stages[index].preprocessor(frames if index == 0 else frames[rows], out=target)
                continue
            place = _places(stage_rows, wire.producer)
            np.take(wire.source, place, axis=0, out=target, mode="clip")

    def _wire(self, index: int, item: StageInput) -> _Wire:
        stage = self.stages[index]
        target = stage.inputs[item.tensor]
        if item.source != "frames":
            name, _, tensor = item.source.partition("/")
            names = [other.spec.name for other in self.stages]
            producer = names.index(name)
            return _Wire(target, producer, self.stages[producer].outputs[tensor])
        for producer, other in enumerate(self.stages[:index]):
            for earlier in other.spec.inputs:
                same = other.spec.preprocessing == stage.spec.preprocessing
                if earlier.source == "frames" and same:
                    return _Wire(target, producer, other.inputs[earlier.tensor])
        return _Wire(target, index, None)


_FINISHED = Finished()


def _places(stage_rows: list[Rows], producer: int) -> Rows:
    """Return where the rows of the last of the stages so far stand in an earlier one's buffers."""
    rows = stage_rows[-1]
    # Rows of a stage ascend, so the place of a source row in it is a binary search.
    return rows if producer == 0 else np.searchsorted(stage_rows[producer], rows)


def _combined(
    logits: npt.NDArray[np.float32], added: _Added, stage_rows: list[Rows]
) -> npt.NDArray[np.float32]:
    """Return a last stage's logits plus weighted ones of an earlier stage, as the kernel does."""
    total = added.logits[_places(stage_rows, added.producer)]
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs: not valid rows
        total *= added.weight
        total += logits
    return total


def _open_model(path: Path, spec: Stage, score: Score, *, threads: int) -> HostModel:
    """Load a model, its weights inside, with the gate's softmax in its graph where that can be."""
    if score.name == "max_softmax":
        content = with_confidence(path.read_bytes(), spec.logits, score.temperature)
        # It fails for an opset below 10, or logits that are not there; then the plain model, or
        # its own error, is what the user should get.
        with suppress(BundleError):
            return HostModel(path, threads=threads, content=content)
    return HostModel(path, threads=threads)


def _account(timings: StageTimings, moments: tuple[float, float, float, float], rows: int) -> None:
    begin, fed, ran, decided = moments
    timings.feed += fed - begin
    timings.session += ran - fed
    timings.gate += decided - ran
    timings.rows += rows


def _read_later(stages: Sequence[Stage], name: str) -> set[str]:
    sources = (item.source.partition("/") for stage in stages for item in stage.inputs)
    return {tensor for producer, _, tensor in sources if producer == name}


def _has_rows(shape: tuple[Any, ...]) -> bool:
    return (
        len(shape) > 0
        and not isinstance(shape[0], int)
        and all(isinstance(size, int) for size in shape[1:])
    )


def _buffer(batch: int, shape: tuple[Any, ...]) -> npt.NDArray[np.float32]:
    return np.zeros((batch, *shape[1:]), np.float32)
