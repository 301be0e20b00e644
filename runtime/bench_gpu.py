"""A cascade on a GPU, and its stages one by one, as the bench asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bench_alone import StageAlone
from runtime.bench_stages import Clock, DeviceFacts, Force, LayerUse, Split
from runtime.cascade import Cascade
from runtime.cuda_resources import Event, Resources
from runtime.doctor_board import clocks_held, power_mode
from runtime.doctor_checks import Examination
from runtime.doctor_system import System
from runtime.driver import board, is_emulated
from runtime.gpu import SLOTS, GpuExecutor
from runtime.gpu_slot import Request, Slot
from runtime.preprocess import Frames
from runtime.profiling import LayerTime

_WITH_TRANSFERS = (
    "wall time from u8 frames in host memory to answers there: upload, preprocessing, engines, "
    "gates, gather, scatter, download; one batch at a time"
)
_WITHOUT_TRANSFERS = (
    "wall time from u8 frames in the GPU's memory to answers there: preprocessing, engines, "
    "gates, gather, scatter; settings and the table of frames still go up; one batch at a time"
)

_PROFILED = (
    "TensorRT times each layer and waits for each engine, so all other times are longer than "
    "without --profile-layers"
)


class ResidentFrames:
    """Frames u8 [N, H, W, C] in a GPU's memory, as another library would hand them over."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self._count = shape[0]
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (address, True),
            "version": 3,
        }

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._count


@dataclass
class _Used:
    """Rows of a stage, and milliseconds by events."""

    rows: int = 0
    feed: float = 0.0
    engine: float = 0.0
    gate: float = 0.0


@dataclass
class _Asked:
    """What the host asked of the device in a number of batches; transfers in milliseconds."""

    batches: int = 0
    launches: int = 0
    copies: int = 0
    waits: int = 0
    traced: int = 0
    upload: float = 0.0
    download: float = 0.0


class GpuStages:
    """The `runtime.bench_stages.Stages` of a cascade on a GPU. Owns what runs stages alone.

    Parameters
    ----------
    transfers
        Whether timed calls begin and end in the host's memory, or both on the GPU.
    """

    clock: Clock = "cuda_events"

    def __init__(self, cascade: Cascade, executor: GpuExecutor, *, transfers: bool) -> None:
        self._cascade, self._executor = cascade, executor
        self._transfers = transfers
        self.overlaps = transfers
        self._emulated = is_emulated()
        self._alone: dict[int, StageAlone] = {}
        self._resources = Resources(executor.device)
        self._events: list[Event] = []
        self._deepest: npt.NDArray[np.int8] | Slot
        self.reset()

    def describe(self) -> DeviceFacts:
        """See `Stages`."""
        facts = _facts(self._executor, transfers=self._transfers, emulated=self._emulated)
        return DeviceFacts(_lines(facts), facts, self._emulated)

    @contextmanager
    def placed(self, batches: Sequence[Frames]) -> Iterator[Sequence[Any]]:
        """See `Stages`."""
        if self._transfers:
            yield batches
            return
        resources = Resources(self._executor.device)
        try:
            with self._executor.device.active():
                placed = _resident(resources, batches)
            yield placed
        finally:
            resources.close()

    def run(self, frames: Any, force: Force) -> None:
        """See `Stages`."""
        self._executor.take_layer_times()  # of what ran since: engines alone, a large model alone
        self._run(frames, force)
        self._add_layers()

    def _run(self, frames: Any, force: Force) -> None:
        before = replace(self._executor.device.activity)
        if self._transfers:
            pending = self._cascade.submit(frames, force=force)
            self._count(before)
            self._deepest = pending.result().stage
            return
        with self._executor.device.active():
            slot = self._executor.idle_slot()
            slot.upload(Request(self._executor.borrow(frames), self._thresholds(), force))
            self._executor.enqueue(slot)
            self._count(before)
            slot.settle()
            self._deepest = slot

    def deepest(self) -> npt.NDArray[np.int8]:
        """See `Stages`."""
        found = self._deepest
        if isinstance(found, Slot):
            with self._executor.device.active():
                found.download()
                found.settle()
                found = found.answers()[2].copy()
        return found

    def trace(self, frames: Frames, force: Force, sizes: Sequence[int]) -> None:
        """See `Stages`: events between the parts, all enqueued without a wait."""
        with self._executor.device.active():
            slot = self._executor.idle_slot()
            marks = iter(self._marks(3 * len(slot.works) + 3))
            used = self._traced(slot, Request(frames, self._thresholds(), force), sizes, marks)
            slot.settle()
            upload, *parts, download = (b.milliseconds_since(a) for a, b in pairwise(used))
        for number in range(len(parts) // 3):
            account = self._used[number]
            feed, engine, gate = parts[3 * number : 3 * number + 3]
            account.rows += sizes[number]
            account.feed += feed
            account.engine += engine
            account.gate += gate
        self._asked.traced += 1
        self._asked.upload += upload
        self._asked.download += download

    def split(self) -> list[Split]:
        """See `Stages`."""
        return [
            Split(name, used.rows, used.feed / 1e3, used.engine / 1e3, used.gate / 1e3)
            for name, used in zip(self._cascade.stage_names, self._used, strict=True)
        ]

    def reset(self) -> None:
        """See `Stages`."""
        self._used = [_Used() for _ in self._executor.plans]
        self._asked = _Asked()
        self._layers: list[dict[str, LayerTime]] = [{} for _ in self._executor.plans]

    def per_batch(self) -> dict[str, float | None]:
        """See `Stages`."""
        asked, batches = self._asked, max(1, self._asked.batches)
        has_transfers = self._transfers and asked.traced and not self._emulated
        return {
            "launches": asked.launches / batches,
            "copies": asked.copies / batches,
            "waits": asked.waits / batches,
            "upload_seconds": asked.upload / 1e3 / asked.traced if has_transfers else None,
            "download_seconds": asked.download / 1e3 / asked.traced if has_transfers else None,
        }

    def layers(self) -> list[LayerUse] | None:
        """See `Stages`."""
        if not self._executor.profiles_layers:
            return None
        batches = max(1, self._asked.batches)
        return [
            LayerUse(stage, layer, used.runs / batches, used.milliseconds / 1e3 / batches)
            for stage, layers in zip(self._cascade.stage_names, self._layers, strict=True)
            for layer, used in layers.items()
        ]

    def batch_sizes(self, number: int, wanted: Sequence[int]) -> tuple[int, ...]:
        """See `Stages`: those that its engine was built for."""
        buckets = tuple(self._executor.plans[number].engine.buckets)
        return buckets[-1:] if self._emulated else buckets

    def classify(self, number: int, frames: Any) -> None:
        """See `Stages`."""
        with self._executor.device.active():
            if number not in self._alone:
                self._alone[number] = StageAlone(self._executor, number)
            alone = self._alone[number]
            alone.classify(self._executor.borrow(frames), fetch=self._transfers)

    def run_engines(self, work: Iterable[tuple[int, int]]) -> None:
        """See `Stages`: each is launched by the host, in any mode."""
        with self._executor.device.active():
            slot = self._executor.idle_slot()
            for number, rows in work:
                slot.works[number].run_rows(rows, slot.stream)
            slot.settle()

    def close(self) -> None:
        """See `Stages`."""
        with ExitStack() as stack:
            stack.callback(self._resources.close)
            for alone in self._alone.values():
                stack.callback(alone.close)
            self._alone.clear()

    def _add_layers(self) -> None:
        for sums, taken in zip(self._layers, self._executor.take_layer_times(), strict=True):
            for layer, used in taken.items():
                runs, milliseconds = sums.get(layer, (0, 0.0))
                sums[layer] = LayerTime(runs + used.runs, milliseconds + used.milliseconds)

    def _traced(
        self, slot: Slot, request: Request, sizes: Sequence[int], marks: Iterator[Event]
    ) -> list[Event]:
        """Enqueue a batch, with an event before, between and behind its parts."""
        used: list[Event] = []

        def mark() -> None:
            used.append(next(marks))
            used[-1].record(slot.stream)

        mark()
        slot.upload(request)
        mark()
        for number, work in enumerate(slot.works):
            is_full = number > 0 and self._executor.mode == "padded"
            rows = work.plan.rows if is_full else sizes[number]
            if not rows:
                break
            work.enqueue_feed(slot.stream)
            mark()
            work.run_rows(rows, slot.stream)
            mark()
            work.enqueue_decision(slot.stream)
            mark()
        slot.download()
        mark()
        return used

    def _marks(self, count: int) -> list[Event]:
        while len(self._events) < count:
            self._events.append(self._resources.event(timed=True))
        return self._events

    def _count(self, before: Any) -> None:
        now = self._executor.device.activity
        self._asked.batches += 1
        for name, value in asdict(before).items():
            setattr(self._asked, name, getattr(self._asked, name) + getattr(now, name) - value)

    def _thresholds(self) -> list[npt.NDArray[np.float32]]:
        return [np.asarray(threshold, np.float32) for threshold in self._cascade.thresholds]


def _resident(resources: Resources, batches: Sequence[Frames]) -> list[ResidentFrames]:
    """Return a copy on the device; the batches have one shape."""
    frames = np.stack(batches)
    memory = resources.allocate(frames.nbytes, "frames of the bench")
    resources.stream().upload(memory.array(np.uint8, frames.shape), frames)
    step = frames[0].nbytes
    return [
        ResidentFrames(memory.address + k * step, frames.shape[1:]) for k in range(len(batches))
    ]


def _facts(executor: GpuExecutor, *, transfers: bool, emulated: bool) -> dict[str, Any]:
    device, runtime = executor.device, executor.plans[0].engine.runtime
    machine = Examination(System(), {})
    return {
        "kind": "cuda",
        "engine": executor.engine,
        "engine_version": runtime.version,
        "library": runtime.library,
        "emulated": emulated,
        "index": device.index,
        "gpu": device.gpu.name,
        "board": board(),
        "architecture": device.gpu.architecture,
        "memory_bytes": device.gpu.memory_bytes,
        "driver_cuda": ".".join(map(str, device.driver_version)),
        "power_mode": power_mode(machine),
        "clocks_held": clocks_held(machine),
        "mode": executor.mode,
        "mode_reason": executor.mode_reason,
        "transfers": transfers,
        "profiles_layers": executor.profiles_layers,
        "slots": SLOTS,
        "slot_bytes": executor.slot_bytes,
        "plans": [plan.engine.name for plan in executor.plans],
    }


def _lines(facts: Mapping[str, Any]) -> dict[str, str]:
    where = f" on {facts['board']}" if facts["board"] else ""
    memory = f"{facts['memory_bytes'] / 2**30:.1f} GiB"
    title = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[facts["library"]]
    clocks = {True: ", clocks held", False: ", clocks not held", None: ""}[facts["clocks_held"]]
    power = {"power": f"mode {facts['power_mode']}{clocks}"} if facts["power_mode"] else {}
    return {
        "device": f"{facts['gpu']}{where}, {facts['architecture']}, {memory}, "
        f"driver of CUDA {facts['driver_cuda']}",
        **power,
        "engine": f"{title} {facts['engine_version']}",
        "mode": f"{facts['mode']}: {facts['mode_reason']}",
        "memory": f"{facts['slot_bytes'] / 2**20:.1f} MiB per batch under way, "
        f"{facts['slots']} of them",
        "measured": _WITH_TRANSFERS if facts["transfers"] else _WITHOUT_TRANSFERS,
        **({"profiler": _PROFILED} if facts["profiles_layers"] else {}),
    }
