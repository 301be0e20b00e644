"""Making the other forms of a stage's FP32 model, and measuring what they lose and gain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from calibration.comparison import GateRule, Logits, Quality, Race, compare, race
from calibration.feeds import stage_feed, upstream
from calibration.histogram_cache import Key, load_histograms, save_histograms
from calibration.histograms import Histogram, observe
from calibration.quantisation import MadeForm, Recipe
from calibration.ranges import HOST, TRT, Quantiser, value_range
from calibration.samples import Samples
from calibration.sensitivity import Settled, settle
from engines.half import emulated, to_half, unsafe_nodes
from engines.preparation import prepare
from engines.quantise import (
    HOST_OPERATORS,
    TRT_OPERATORS,
    quantise_host,
    quantise_trt,
    quantised_nodes,
)
from runtime.bundle import Bundle
from runtime.session import HostModel

BATCH = 100
DAMAGE_SAMPLES = 64
LEAST_SPEEDUP = 1.05
"""Less is within the noise of a timing, and not worth another set of logits."""

Advance = Callable[[int], object]
Quantise = Callable[[Collection[str]], onnx.ModelProto]


@dataclass(frozen=True)
class Made:
    """A form of one stage.

    Attributes
    ----------
    content
        The ONNX file; None where no choice of nodes stays within the budget.
    kept
        Nodes that are not in the form's own precision, with the reason.
    logits
        f32 [n, K] of the samples it was measured on, by ONNX Runtime on this CPU.
    quality
        Against FP32, on those samples.
    timing
        Against FP32, on this CPU; None for a form that is made for another device.
    """

    form: MadeForm
    content: bytes | None
    kept: Mapping[str, str]
    logits: Logits
    quality: Quality
    timing: Race | None

    @property
    def success(self) -> bool:
        """Whether the form is within the budget and, on the device it is for, the faster one."""
        return self.content is not None and (
            self.timing is None or self.timing.speedup >= LEAST_SPEEDUP
        )

    @property
    def verdict(self) -> str:
        """One line for the report."""
        if self.content is None:
            return "loses too much: not made"
        if self.timing is None:
            return "for TensorRT: not timed here"
        if not self.success:
            how = "slower" if self.timing.speedup < 1 else "hardly faster"
            return f"{how} than FP32 ({self.timing.speedup:.2f}x): FP32 is kept"
        return f"{self.timing.speedup:.2f}x as fast as FP32"


class StageForms:
    """The FP32 model of one stage, and the forms that are made from it.

    Parameters
    ----------
    measuring
        Samples on which the budget must hold.
    gate
        What the stage's gate compares with, for the share of changed decisions.
    """

    def __init__(
        self,
        bundle: Bundle,
        index: int,
        measuring: Samples,
        recipe: Recipe,
        *,
        gate: GateRule | None,
    ) -> None:
        self.spec = bundle.spec.stages[index]
        self._bundle, self._index, self._recipe = bundle, index, recipe
        self._measuring, self._gate = measuring, gate
        self.path = bundle.model(index, "fp32")
        self.model = prepare(self.path)
        self._feed = stage_feed(bundle, index, threads=recipe.threads)
        self._histograms: dict[str, Histogram] = {}
        self.reference: Logits = np.empty((0, 0), np.float32)

    def calibrate(self, samples: Samples, cache: Path, advance: Advance) -> bool:
        """Take histograms from the cache, or run the samples once; return whether they were there.

        Raises
        ------
        CalibrationError
            When an activation is not finite, or the cache cannot be written.
        """
        key = self._key(samples)
        found = load_histograms(cache, key)
        if found is not None:
            advance(len(samples))
            self._histograms = found
            return True
        self._histograms = observe(
            self.model,
            lambda size: map(self._feed, samples.batches(size)),
            path=self.path,
            threads=self._recipe.threads,
            advance=advance,
        )
        save_histograms(cache, key, self._histograms, samples=len(samples))
        return False

    def measure_reference(self, advance: Advance) -> None:
        """Run the FP32 model on the samples that forms are measured on."""
        self.reference = self.run(None, advance=advance)

    @property
    def accuracy(self) -> float | None:
        """Of FP32, on the samples that forms are measured on; None without labels."""
        labels = self._measuring.labels
        return None if labels is None else float((self.reference.argmax(1) == labels).mean())

    def make(self, form: MadeForm, advance: Callable[[], object]) -> Made:
        """Make a form and measure it; `calibrate` and `measure_reference` come before.

        Parameters
        ----------
        advance
            Told each network that is measured.

        Raises
        ------
        EngineError
            When the model cannot be quantised.
        """
        reasons = self._unsafe() if form != "int8_host" else {}
        measured: dict[str, Logits] = {}

        def holds(model: onnx.ModelProto) -> bool:
            logits = measured["last"] = self.run(_runnable(form, model))
            advance()
            drop = compare(self.reference, logits, self._measuring.labels, None).drop
            return bool(np.isfinite(logits).all()) and drop <= self._recipe.max_drop + 1e-12

        settled = settle(
            self._quantise(form, reasons),
            self._candidates(form, reasons),
            holds=holds,
            damage=lambda model: self._damage(_runnable(form, model)),
            advance=advance,
        )
        if settled is None:
            return self._made(form, None, reasons, measured["last"])
        # The last one that was measured need not be the one that was taken.
        logits = self.run(_runnable(form, settled.model)) if settled.kept else measured["last"]
        return self._made(form, settled, reasons, logits)

    def run(self, content: bytes | None, *, advance: Advance = lambda _: None) -> Logits:
        """Return the logits of a form, or of FP32, for the samples that forms are measured on."""
        return self._logits(content, self._measuring.batches(BATCH), advance)

    def run_frames(self, made: Made, frames: npt.NDArray[np.uint8]) -> Logits:
        """Return the logits of a form for frames u8 [n, H, W, C]."""
        content = _runnable(made.form, onnx.ModelProto.FromString(made.content))
        return self._logits(content, iter([frames]), lambda _: None)

    def _logits(
        self, content: bytes | None, batches: Iterator[npt.NDArray[np.uint8]], advance: Advance
    ) -> Logits:
        session = self._open(content)
        parts = []
        for frames in batches:
            parts.append(session.run(self._feed(frames))[self.spec.logits])
            advance(len(frames))
        return np.concatenate(parts)

    def _made(
        self,
        form: MadeForm,
        settled: Settled[onnx.ModelProto] | None,
        reasons: Mapping[str, str],
        logits: Logits,
    ) -> Made:
        content = None if settled is None else settled.model.SerializeToString()
        kept = dict.fromkeys(settled.kept if settled else (), "sensitive")
        quality = compare(self.reference, logits, self._measuring.labels, self._gate)
        timing = None
        if form == "int8_host" and content is not None:
            timing = self._race(content)
        return Made(form, content, {**reasons, **kept}, logits, quality, timing)

    def _race(self, content: bytes) -> Race:
        feed = self._feed(next(self._measuring.batches(self._recipe.batch)))
        sessions = {"fp32": self._open(None), "form": self._open(content)}
        runs = {name: partial(session.run, feed) for name, session in sessions.items()}
        return race(runs, batch=len(next(iter(feed.values()))))

    def _open(self, content: bytes | None) -> HostModel:
        return HostModel(self.path, threads=self._recipe.threads, content=content)

    def _damage(self, content: bytes) -> float:
        """Return the mean squared error of the logits of some samples."""
        samples = Samples("", self._measuring.frames[:DAMAGE_SAMPLES], None)
        logits = self._logits(content, samples.batches(BATCH), lambda _: None)
        error = float(((logits - self.reference[: len(logits)]) ** 2).mean())
        return error if np.isfinite(error) else np.inf

    def _quantise(self, form: MadeForm, reasons: Mapping[str, str]) -> Quantise:
        if form == "fp16":
            return lambda keep: to_half(self.model, keep={*reasons, *keep})
        if form == "int8_trt":
            ranges = self._ranges(TRT)
            return lambda keep: quantise_trt(self.model, ranges, keep=keep, keep_full=reasons)
        ranges = self._ranges(HOST)
        bits = self._recipe.weight_bits
        return lambda keep: quantise_host(self.model, ranges, keep=keep, weight_bits=bits)

    def _candidates(self, form: MadeForm, reasons: Mapping[str, str]) -> list[str]:
        if form == "fp16":
            return [node.name for node in self.model.graph.node if node.name not in reasons]
        operators = HOST_OPERATORS if form == "int8_host" else TRT_OPERATORS
        return quantised_nodes(self.model, operators)

    def _ranges(self, quantiser: Quantiser) -> dict[str, tuple[float, float]]:
        recipe, inputs = self._recipe, {item.tensor for item in self.spec.inputs}
        return {
            # An input is no activation: its ends are black and white, which occur, not outliers.
            name: value_range(
                histogram,
                "min_max" if name in inputs else recipe.method,
                quantiser,
                percentile=recipe.percentile,
            )
            for name, histogram in self._histograms.items()
        }

    def _unsafe(self) -> dict[str, str]:
        extremes = {name: item.extremes for name, item in self._histograms.items()}
        return unsafe_nodes(self.model, extremes)

    def _key(self, samples: Samples) -> Key:
        stages = self._bundle.spec.stages
        return Key(
            model_sha256=tuple(
                stages[k].forms["fp32"].digest for k in upstream(self._bundle, self._index)
            ),
            data_sha256=samples.sha256,
            preprocessing_sha256=self.spec.preprocessing.sha256,
        )


def _runnable(form: MadeForm, model: onnx.ModelProto) -> bytes:
    """Return what ONNX Runtime's CPU runs in place of a form, to give that form's logits."""
    content: bytes = (model if form == "int8_host" else emulated(model)).SerializeToString()
    return content
