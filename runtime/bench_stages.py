"""What the bench asks of the device that runs a cascade: its stages one by one, and what it is.

`runtime.bench_gpu` has the same for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from runtime.cascade import Cascade
from runtime.errors import InputError
from runtime.gpu import GpuExecutor
from runtime.host import HostExecutor
from runtime.preprocess import Frames

Clock = Literal["wall", "cuda_events"]
Force = npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class Split:
    """What a stage has used within the cascade.

    Attributes
    ----------
    rows
        How many it has seen.
    feed, engine, gate
        Seconds: to fill its inputs, to run, and to decide, of a last stage to answer.
    """

    stage: str
    rows: int
    feed: float
    engine: float
    gate: float


@dataclass(frozen=True)
class LayerUse:
    """What a layer of a stage's engine has used: means over the measured batches.

    Attributes
    ----------
    runs
        How often its engine ran.
    seconds
        Of the GPU's time.
    """

    stage: str
    layer: str
    runs: float
    seconds: float


@dataclass(frozen=True)
class DeviceFacts:
    """What ran.

    Attributes
    ----------
    lines
        Names and texts for the head of the report.
    facts
        The same as plain data.
    emulated
        Nothing ran on such a device, but on something in its place: times mean nothing.
    """

    lines: Mapping[str, str]
    facts: Mapping[str, Any]
    emulated: bool = False


class Stages(Protocol):
    """A cascade on its device, and its stages one by one.

    Attributes
    ----------
    clock
        What takes the times of `split`.
    overlaps
        Whether a batch can begin while another one ends.
    """

    clock: Clock
    overlaps: bool

    def describe(self) -> DeviceFacts:
        """Return what runs, and what is inside the times."""

    def placed(self, batches: Sequence[Frames]) -> AbstractContextManager[Sequence[Any]]:
        """Lay batches where the timed calls shall find them, as long as the context lasts."""

    def run(self, frames: Any, force: Force) -> None:
        """Run the cascade on a placed batch, to where the clock stops."""

    def deepest(self) -> npt.NDArray[np.int8]:
        """Return which stage answered each frame of the last `run`."""

    def trace(self, frames: Frames, force: Force, sizes: Sequence[int]) -> None:
        """Take the split of a batch, in an extra run where `run` itself cannot.

        ``sizes`` is how many rows reach each stage.
        """

    def split(self) -> list[Split]:
        """Return what the stages have used since `reset`."""

    def reset(self) -> None:
        """Start the account of `split` and `per_batch` anew."""

    def per_batch(self) -> dict[str, float | None] | None:
        """Return what the host has asked of the device per `run`; None where it is the device."""

    def layers(self) -> list[LayerUse] | None:
        """Return what the layers have used in `run` since `reset`; None if nobody asked for it."""

    def batch_sizes(self, number: int, wanted: Sequence[int]) -> tuple[int, ...]:
        """Return the batch sizes among which a stage alone has its best."""

    def classify(self, number: int, frames: Any) -> None:
        """Run one stage, which reads frames, on a placed batch: to where the clock stops."""

    def run_engines(self, work: Iterable[tuple[int, int]]) -> None:
        """Run engines on whatever their inputs hold: pairs of a stage and of rows, in order."""

    def close(self) -> None:
        """Free what was made for this, before the cascade is closed."""


class HostStages:
    """The `Stages` of a cascade on the CPU, where all but an engine's threads is one thread."""

    clock: Clock = "wall"
    overlaps = False

    def __init__(self, cascade: Cascade, executor: HostExecutor) -> None:
        self._cascade = cascade
        self._executor = executor
        self._deepest = np.empty(0, np.int8)

    def describe(self) -> DeviceFacts:
        """See `Stages`."""
        version, threads = onnxruntime.__version__, self._executor.threads
        lines = {
            "engine": f"ONNX Runtime {version}, {threads} threads",
            "measured": "wall time from u8 frames in memory to labels: "
            "resize, engines, gates, gather",
        }
        facts = {
            "kind": "cpu",
            "engine": self._executor.engine,
            "engine_version": version,
            "threads": threads,
            "emulated": False,
        }
        return DeviceFacts(lines, facts)

    @contextmanager
    def placed(self, batches: Sequence[Frames]) -> Iterator[Sequence[Frames]]:
        """See `Stages`."""
        yield batches

    def run(self, frames: Frames, force: Force) -> None:
        """See `Stages`."""
        self._deepest = self._cascade.run(frames, force=force).stage

    def deepest(self) -> npt.NDArray[np.int8]:
        """See `Stages`."""
        return self._deepest

    def trace(self, frames: Frames, force: Force, sizes: Sequence[int]) -> None:
        """Do nothing: the executor keeps the account of every run."""

    def split(self) -> list[Split]:
        """See `Stages`."""
        accounts = ((stage.spec.name, stage.timings) for stage in self._executor.stages)
        return [Split(name, t.rows, t.feed, t.session, t.gate) for name, t in accounts]

    def reset(self) -> None:
        """See `Stages`."""
        self._executor.reset_timings()

    def per_batch(self) -> None:
        """See `Stages`."""
        return

    def layers(self) -> None:
        """See `Stages`: only TensorRT times them."""
        return

    def batch_sizes(self, number: int, wanted: Sequence[int]) -> tuple[int, ...]:
        """See `Stages`."""
        return tuple(wanted)

    def classify(self, number: int, frames: Frames) -> None:
        """See `Stages`."""
        self._executor.stages[number].classify(frames)

    def run_engines(self, work: Iterable[tuple[int, int]]) -> None:
        """See `Stages`."""
        for number, rows in work:
            if rows:
                self._executor.stages[number].run(rows)

    def close(self) -> None:
        """Do nothing: all belongs to the executor."""


def stages_of(cascade: Cascade, *, transfers: bool) -> Stages:
    """Return the stages of a loaded cascade.

    Parameters
    ----------
    transfers
        Timed calls begin with frames of the host, and end with answers there; else both stay on
        the GPU.

    Raises
    ------
    InputError
        When a CPU shall do without transfers.
    """
    if isinstance(cascade.executor, GpuExecutor):
        from runtime.bench_gpu import GpuStages

        return GpuStages(cascade, cascade.executor, transfers=transfers)
    if not transfers:
        raise InputError("--no-transfers: there are none on the CPU. Choose a GPU: --device cuda")
    assert isinstance(cascade.executor, HostExecutor)
    return HostStages(cascade, cascade.executor)
