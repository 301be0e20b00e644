"""The cascade: a saver answers every sample, the unsure ones go on to the next, larger stage."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle, load_bundle
from runtime.certification import Certification
from runtime.devices import GpuOptions, open_executor
from runtime.errors import BundleError, ClosedError, InputError
from runtime.gears import Gearbox, Vector
from runtime.golden import check_frames, load_golden
from runtime.preprocess import Frames
from runtime.schema import Form, Threshold


@dataclass(frozen=True)
class Results:
    """Answers for a batch; the arrays are the caller's own.

    Attributes
    ----------
    label
        i32 [N], index into the bundle's labels.
    confidence
        f32 [N], score of the stage that answered, in [0, 1].
    stage
        i8 [N], which stage answered, 0 being the first saver.
    certification
        What can be said of the accuracy of these answers.
    gear
        Which of `Cascade.gears` was in force; None for other thresholds.
    """

    label: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    stage: npt.NDArray[np.int8]
    certification: Certification
    gear: int | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.label)


class Ticket(Protocol):
    """A batch that an executor has begun."""

    def done(self) -> bool:
        """Return whether `wait` would return at once."""

    def wait(self) -> None:
        """Wait until its answers stand in the arrays that `Executor.submit` was given."""


class Executor(Protocol):
    """What runs the stages of a cascade: `runtime.host.HostExecutor`, `runtime.gpu.GpuExecutor`.

    Attributes
    ----------
    engine
        The engine's name in records and certificates.
    batch
        The most frames of one `submit`.
    """

    engine: str

    @property
    def batch(self) -> int:
        """The most frames of one `submit`."""

    def borrow(self, frames: Any) -> Any:
        """Return frames as `submit` takes them, without a copy where that can be."""

    def copy_rows(self, frames: Any, rows: npt.NDArray[np.int64]) -> Frames:
        """Return a copy of some frames in memory of the host."""

    def submit(
        self,
        frames: Any,
        thresholds: Sequence[float | npt.NDArray[np.float32]],
        out: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int8]],
        *,
        force: npt.NDArray[np.uint8] | None = None,
    ) -> Ticket:
        """Begin to classify 1 to `batch` frames u8 [n, H, W, C]."""

    def stage_logits(self, frames: Frames) -> list[npt.NDArray[np.float32]]:
        """Return every stage's logits, f32 [n, K] each, of up to `batch` frames."""

    def close(self) -> None:
        """Wait for work in flight and free everything; a second call does nothing."""


class Pending:
    """Results on their way. On the CPU the work is done when ``submit`` returns."""

    def __init__(self, results: Results, tickets: Sequence[Ticket]) -> None:
        self._results = results
        self._tickets = tickets

    def done(self) -> bool:
        """Return whether `result` would return at once."""
        return all(ticket.done() for ticket in self._tickets)

    def result(self) -> Results:
        """Wait for the batch and return its results."""
        for ticket in self._tickets:
            ticket.wait()
        return self._results


class Cascade:
    """Classifies batches of frames. Owns its engines; any thread may call, one at a time.

    >>> with Cascade.load("zoo/fashion") as cascade:  # doctest: +SKIP
    ...     results = cascade.run(frames)
    """

    def __init__(
        self, bundle: Bundle, executor: Executor, forms: tuple[Form, ...], *, batch: int
    ) -> None:
        self.bundle = bundle
        self.batch = batch
        self.executor = executor
        self.forms = forms
        self._lock = threading.Lock()
        self._closed = False
        self._gearbox = Gearbox(bundle, forms, engine=executor.engine)

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        device: str = "auto",
        *,
        batch: int = 256,
        threads: int | None = None,
        forms: Sequence[Form] | None = None,
        require_certificate: bool = False,
        gpu: GpuOptions | None = None,
    ) -> Cascade:
        """Load a bundle's models and check them on its golden samples.

        Parameters
        ----------
        bundle
            Folder with ``cascade.json``.
        device
            ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` takes a GPU where there is one that can run
            the bundle, and else the CPU.
        batch
            The most frames that run at once; more are cut into batches of this size.
        threads
            CPU threads; all that the process may use by default.
        forms
            Which form of each stage runs; by default those that `runtime.devices` says.
        require_certificate
            Refuse a cascade that is not exactly the certified one.
        gpu
            What only concerns a GPU.

        Raises
        ------
        BundleError
            When the bundle or a model in it cannot be used; the message says why.
        DeviceError, PlanError, TensorRTError
            When the GPU that was asked for cannot be used; the message says why.
        """
        opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        if batch < 1 or (threads is not None and threads < 1):
            raise InputError(f"batch and threads: expected at least 1, got {batch} and {threads}.")
        executor, chosen = open_executor(
            opened, device, forms, batch=batch, threads=threads, gpu=gpu or GpuOptions()
        )
        try:
            cascade = cls(opened, executor, chosen, batch=batch)
            cascade.check_golden()
            if require_certificate:
                cascade.require_certificate()
        except BaseException:
            executor.close()
            raise
        return cascade

    def require_certificate(self) -> None:
        """Refuse a cascade that is not exactly the certified one.

        Raises
        ------
        BundleError
            Saying what it is instead.
        """
        if self.certification.state != "certified":
            raise BundleError(
                f"{self.bundle.folder}: a certificate is required, but this cascade is "
                f"{self.certification}. Certify it: python -m calibration.threshold --help"
            )

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, in order."""
        return tuple(stage.name for stage in self.bundle.spec.stages)

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """One threshold per gate. Others than the certified ones end the certificate's cover."""
        return self._gearbox.now.thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[Threshold]) -> None:
        # Under the lock, so that no batch is answered by one and named after the other.
        with self._lock:
            self._gearbox.take(values)

    @property
    def certification(self) -> Certification:
        """What can be said of the accuracy of the next answers."""
        return self._gearbox.now.certification

    @property
    def gears(self) -> tuple[Vector, ...]:
        """The threshold vectors under the bundle's certificate; the certified, cheapest first."""
        return self._gearbox.gears

    @property
    def gear(self) -> int | None:
        """Which of the gears is in force; None where it is none of them."""
        return self._gearbox.now.gear

    def shift(self, gear: int) -> int:
        """Take a gear for the next batches, or the lowest that no drift alarm has ruled out.

        No graph is captured anew: devices read thresholds with each batch. See `runtime.gears` for
        what a gear may depend on.

        Returns
        -------
        int
            The gear that is in force now.

        Raises
        ------
        InputError
            When there is no such gear.
        """
        with self._lock:
            return self._gearbox.shift(gear)

    def rule_out(self, gear: int) -> int:
        """Rule out a gear and those below it: a drift alarm was raised there.

        From now on no answer of this cascade is called certified, whatever its gear. The highest
        gear stays. A cascade that is loaded anew knows nothing of it.

        Returns
        -------
        int
            The lowest gear that is left.
        """
        with self._lock:
            return self._gearbox.rule_out(gear)

    def run(self, frames: Frames, *, force: npt.NDArray[np.uint8] | None = None) -> Results:
        """Classify frames and wait for the answers.

        Parameters
        ----------
        frames
            u8 [N, H, W, C] in the bundle's colour order; zero frames give empty results. On a GPU
            also an array in its memory, dense, with ``__cuda_array_interface__`` or
            ``__dlpack__``: it is not copied.
        force
            u8 [N], or u8 [gates, N]: non-zero sends a sample on whatever its score.

        Raises
        ------
        InputError
            When frames have another dtype, rank or size than the bundle's input.
        """
        return self.submit(frames, force=force).result()

    def submit(self, frames: Frames, *, force: npt.NDArray[np.uint8] | None = None) -> Pending:
        """Begin to classify frames; the caller may go on before the answers are there.

        Frames of the host may be changed when this returns, those of a GPU when the answers are
        there. Parameters as of `run`.
        """
        with self._lock:
            self._require_open()
            checked = check_frames(self.executor.borrow(frames), self.bundle.spec.input)
            forced = None if force is None else self._check_force(force, len(checked))
            now = self._gearbox.now
            results = Results(
                np.empty(len(checked), np.int32),
                np.empty(len(checked), np.float32),
                np.empty(len(checked), np.int8),
                now.certification,
                now.gear,
            )
            step = min(self.batch, self.executor.batch)
            parts = [slice(start, start + step) for start in range(0, len(checked), step)]
            tickets = [
                self.executor.submit(
                    checked[part],
                    now.values,
                    (results.label[part], results.confidence[part], results.stage[part]),
                    force=None if forced is None else forced[:, part],
                )
                for part in parts
            ]
        return Pending(results, tickets)

    def stream(self, batches: Iterable[Frames]) -> Iterator[Results]:
        """Classify batches in order, with up to two under way."""
        return streamed(self.submit, batches)

    def copy_rows(self, frames: Any, rows: npt.NDArray[np.int64]) -> Frames:
        """Return some of the frames that `submit` took, copied to memory of the host."""
        with self._lock:
            self._require_open()
            return self.executor.copy_rows(self.executor.borrow(frames), rows)

    def check_golden(self) -> None:
        """Run the bundle's golden samples through every stage.

        Raises
        ------
        BundleError
            When a stage's logits differ from the stored ones.
        """
        with self._lock:
            self._require_open()
            golden = load_golden(self.bundle, self.forms)
            if golden is not None:
                frames = golden.frames[: min(self.batch, self.executor.batch)]
                golden.check(self.executor.stage_logits(frames), engine=self.executor.engine)

    def close(self) -> None:
        """Free the engines after the batch under way; a second call does nothing."""
        with self._lock:
            self._closed = True
            self.executor.close()

    def __enter__(self) -> Cascade:
        """Return the cascade itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the cascade."""
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("This cascade is closed. Load it again.")

    def _check_force(self, force: npt.NDArray[np.uint8], rows: int) -> npt.NDArray[np.uint8]:
        gates = len(self.bundle.spec.gates)
        array = np.asarray(force)
        if array.dtype != np.uint8 or array.shape not in ((rows,), (gates, rows)):
            raise InputError(
                f"force: expected u8 [{rows}] or u8 [{gates}, {rows}], "
                f"got {array.dtype} {list(array.shape)}."
            )
        return np.broadcast_to(array, (gates, rows))


def streamed(submit: Callable[[Frames], Pending], batches: Iterable[Frames]) -> Iterator[Results]:
    """Classify batches in order, with up to two under way."""
    waiting: deque[Pending] = deque()
    for frames in batches:
        waiting.append(submit(frames))
        if len(waiting) == 2:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
