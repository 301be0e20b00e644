"""The cascade on a GPU: TensorRT engines and the project's kernels, two batches in flight."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from kernels.frames import PixelFormat
from runtime.bundle import Bundle
from runtime.cuda import CudaDevice
from runtime.device_frames import borrow, is_on_device
from runtime.errors import InputError, TinysaverError
from runtime.gpu_interface import check_engines
from runtime.gpu_modes import Launcher, Mode
from runtime.gpu_plan import Combined, StagePlan, plan_stage
from runtime.gpu_slot import Answers, Frames, Request, Slot
from runtime.plans import Plan
from runtime.profiling import LayerTime, Ranges
from runtime.schema import Score
from runtime.tensorrt_engine import DEFAULTS, Engine, EngineOptions

log = logging.getLogger(__name__)

MODULES = ("preprocess", "gate", "gather", "scatter")
SLOTS = 2


class Ticket:
    """A batch in flight; its answers go to arrays of the caller."""

    def __init__(self, device: CudaDevice, slot: Slot, frames: Frames, out: Answers) -> None:
        self._device = device
        self._slot: Slot | None = slot
        self._frames: Frames | None = frames  # borrowed ones must live until the batch has ended
        self._out = out

    def done(self) -> bool:
        """Return whether `wait` would return at once."""
        if self._slot is None:
            return True
        with self._device.active():
            return self._slot is None or self._slot.is_done()

    def wait(self) -> None:
        """Wait for the batch, and write its answers."""
        if self._slot is None:
            return
        with self._device.active():
            slot = self._slot
            if slot is not None:  # no other thread was faster
                slot.wait()
                label, confidence, stage = slot.answers()
                self._out[0][:], self._out[1][:], self._out[2][:] = label, confidence, stage
                self._slot = self._frames = None


class GpuExecutor:
    """Runs all stages of a cascade on a GPU. Owns engines, slots and, by them, all memory.

    Parameters
    ----------
    plans
        One per stage.
    device
        Borrowed, unless ``closes_device`` is set.
    batch
        The most frames that run at once.
    mode
        See `runtime.gpu_modes`; None takes ``graph`` where the driver can do it, else ``host``.
    options
        How the engines are run.

    Raises
    ------
    BundleError, PlanError, TensorRTError, DeviceError
        When a plan is missing or does not fit bundle or GPU, or memory does not suffice.

    Attributes
    ----------
    mode, mode_reason
        How the engines are launched, and why, in one line.
    enqueue
        Enqueues all between upload and download of a slot, as the mode says.
    closes_device
        Whether `close` closes the device too; not at first.
    """

    engine = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        plans: Sequence[Plan],
        device: CudaDevice,
        *,
        batch: int,
        mode: Mode | None = None,
        options: EngineOptions = DEFAULTS,
    ) -> None:
        if mode is not None and mode not in get_args(Mode):
            raise InputError(f"mode: expected {', '.join(get_args(Mode))}, got {mode!r}.")
        self.device = device
        self.closes_device = False
        self._options = options
        self._ranges = Ranges(wanted=options.nvtx)
        self._launcher = Launcher(device, self._ranges)
        self._bundle = bundle
        self._next = 0
        self._tickets: list[Ticket | None] = [None] * SLOTS
        self._engines: list[Engine] = []
        self._slots: list[Slot] = []
        try:
            for module in MODULES:
                device.load(module)
            for plan in plans:
                self._engines.append(Engine(plan, device, options))
            check_engines(bundle, self._engines)
            self.plans = _plan_stages(bundle, self._engines, batch)
            with device.active():
                self._open(mode)
        except BaseException:
            self.close()
            raise

    @property
    def batch(self) -> int:
        """The most frames of one batch."""
        return self.plans[0].largest

    @property
    def pixels(self) -> PixelFormat:
        """Colours of the frames."""
        return self._bundle.spec.input.pixels

    @property
    def slot_bytes(self) -> int:
        """Memory that one batch in flight takes, on device and host; there are two."""
        return self._slots[0].nbytes

    def submit(
        self,
        frames: Any,
        thresholds: Sequence[float | npt.NDArray[np.float32]],
        out: Answers,
        *,
        force: npt.NDArray[np.uint8] | None = None,
    ) -> Ticket:
        """Begin to classify up to `batch` frames.

        Parameters
        ----------
        frames
            u8 [n, H, W, C], n >= 1: an array, or `DeviceFrames` from `borrow`.
        out
            Label i32, confidence f32, stage i8, [n] each: written by the ticket's `wait`, or by a
            later `submit` that needs its memory.
        force
            u8 [gates, n].

        Raises
        ------
        DeviceError, TensorRTError
            When the GPU or an engine fails.
        """
        with self.device.active():
            number = self._next
            self._next = (number + 1) % SLOTS
            self._finish(number)
            slot = self._slots[number]
            try:
                with self._ranges("batch"):
                    slot.upload(Request(frames, thresholds, force))
                    self.enqueue(slot)
                    slot.download()
            except BaseException:
                self._abandon(slot)
                raise
            ticket = self._tickets[number] = Ticket(self.device, slot, frames, out)
            return ticket

    def borrow(self, frames: Any) -> Frames:
        """Return frames as `submit` takes them: those in device memory are not copied."""
        if not is_on_device(frames):
            return np.asarray(frames)
        with self.device.active():
            return borrow(frames, self._slots[0].stream)

    def copy_rows(self, frames: Frames, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return a copy of some frames, in memory of the host."""
        if isinstance(frames, np.ndarray):
            return frames[rows]
        with self.device.active():
            stream = self._slots[0].stream
            frames.order(stream)
            picked = [stream.download(frames[row : row + 1].array) for row in rows.tolist()]
        return np.concatenate([np.empty((0, *frames.shape[1:]), np.uint8), *picked])

    @property
    def profiles_layers(self) -> bool:
        """Whether TensorRT times each layer."""
        return self._options.profile_layers

    def take_layer_times(self) -> list[dict[str, LayerTime]]:
        """Return per stage what its layers have used since the last call, by name, if profiled."""
        return [plan.engine.layer_times.take() for plan in self.plans]

    def idle_slot(self) -> Slot:
        """Finish the batches in flight and return a slot, for those who measure.

        The device must be active.
        """
        for number in range(SLOTS):
            self._finish(number)
        return self._slots[0]

    def stage_logits(self, frames: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """Return every stage's logits of up to `batch` frames, f32 [n, K] each."""
        with self.device.active():
            slot = self.idle_slot()
            slot.upload(self._escalate_all(frames))
            self.enqueue(slot)
            logits = [slot.stream.download(work.logits(len(frames))) for work in slot.works]
            slot.rest()
            return [values.astype(np.float32) for values in logits]

    def close(self) -> None:
        """Finish the batches in flight and free everything; a second call does nothing.

        Raises
        ------
        DeviceError
            When a batch in flight fails; everything is freed all the same.
        """
        if self.device.is_forked:  # nothing of it is this process's
            return
        with ExitStack() as stack:
            if self.closes_device:
                stack.callback(self.device.close)
            if self.device.is_usable:
                stack.enter_context(self.device.active())
            for engine in self._engines:
                stack.callback(engine.close)
            for slot in self._slots:
                stack.callback(slot.close)
            for number in range(SLOTS):
                if self.device.is_usable:
                    stack.callback(self._finish, number)
            self._engines, self._slots = [], []

    def _open(self, mode: Mode | None) -> None:
        for _ in range(SLOTS):
            padded = mode == "padded"
            slot = Slot(self.device, self.plans, self.pixels, size=self.batch, padded=padded)
            self._slots.append(slot)
            self._warm_up(slot)
        for engine in self._engines:
            engine.keep_compiled()
        self._launcher.choose(self._slots, mode)
        self.mode, self.mode_reason = self._launcher.mode, self._launcher.reason
        self.enqueue: Callable[[Slot], None] = self._launcher.enqueue
        log.info("launch mode %s: %s", self.mode, self.mode_reason)

    def _warm_up(self, slot: Slot) -> None:
        """Run everything once: a first launch may load a kernel, a first batch allocates memory.

        What cannot run shows here, and not in the first batch.
        """
        height, width, channels = self._bundle.spec.input.shape
        frame = (height or 6, width or 6, channels)  # fits all colours
        slot.upload(self._escalate_all(np.zeros((self.batch, *frame), np.uint8)))
        self._launcher.enqueue_host(slot)
        slot.settle()

    def _escalate_all(self, frames: npt.NDArray[np.uint8]) -> Request:
        gates = len(self.plans) - 1
        return Request(frames, [1.0] * gates, np.ones((gates, len(frames)), np.uint8))

    def _finish(self, number: int) -> None:
        """Give the answers of a slot's last batch to its caller, so that it can be used again."""
        ticket = self._tickets[number]
        if ticket is not None:
            ticket.wait()
            self._tickets[number] = None

    def _abandon(self, slot: Slot) -> None:
        """Wait for what a batch that failed has enqueued: frames of the caller may be read."""
        try:
            slot.settle()
        except TinysaverError as error:
            log.debug("after a failure: %s", error)


def _plan_stages(bundle: Bundle, engines: Sequence[Engine], batch: int) -> list[StagePlan]:
    spec = bundle.spec
    scores = [*(gate.score for gate in spec.gates), Score()]
    plans: list[StagePlan] = []
    for number, (stage, engine, score) in enumerate(zip(spec.stages, engines, scores, strict=True)):
        size = plans[0].largest if plans else batch
        plans.append(plan_stage(number, stage, engine, score, batch=size))
    if spec.weighted is not None:
        plans[-1] = replace(plans[-1], combined=Combined(*spec.weighted))
    return plans
