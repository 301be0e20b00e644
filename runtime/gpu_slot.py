"""A batch in flight on a GPU: its stream, its memory, and what goes up and comes down with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from kernels.frame_table import ENTRY, Frame, frame_table
from kernels.frames import PixelFormat
from kernels.launch import DeviceArray
from runtime.cuda import CudaDevice
from runtime.cuda_resources import DeviceMemory, PinnedMemory, Resources, Stream
from runtime.device_frames import DeviceFrames
from runtime.gpu_plan import Batch, Settings, StagePlan
from runtime.gpu_stage import StageWork
from runtime.graphs import Graph

Frames: TypeAlias = "npt.NDArray[np.uint8] | DeviceFrames"
Answers = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int8]]

_ALIGNMENT = 256


class Mirror:
    """Arrays that travel together: in pinned memory and, at the same places, on the device.

    Attributes
    ----------
    host, device
        The arrays by name. Those of the host may be changed while no copy is under way.
    """

    def __init__(
        self, resources: Resources, parts: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]
    ) -> None:
        arrays = {
            name: DeviceArray(0, np.dtype(kind), shape) for name, (kind, shape) in parts.items()
        }
        places, end = {}, 0
        for name, array in arrays.items():
            places[name] = end
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._pinned = resources.pin(end)
        self._memory = resources.allocate(end, "what comes and goes with a batch")
        self.host = {
            name: self._pinned.view(array.dtype, array.shape, offset=places[name])
            for name, array in arrays.items()
        }
        self.device = {
            name: self._memory.array(array.dtype, array.shape, offset=places[name])
            for name, array in arrays.items()
        }

    def copy_in(self, stream: Stream) -> None:
        """Enqueue the copy of all to the device."""
        stream.copy_in(self._memory.address, self._pinned.host)

    def copy_out(self, stream: Stream) -> None:
        """Enqueue the copy of all to the host."""
        stream.copy_out(self._pinned.host, self._memory.address)


class Request(NamedTuple):
    """A batch to classify.

    Attributes
    ----------
    thresholds
        Per gate one number, or f32 [K].
    force
        u8 [gates, n], or None.
    """

    frames: Frames
    thresholds: Sequence[float | npt.NDArray[np.float32]]
    force: npt.NDArray[np.uint8] | None


class Slot:
    """Everything one batch in flight needs; two slots let a batch begin while another ends.

    Owns it all until `close`.

    Parameters
    ----------
    plans
        Of all stages.
    size
        Most frames.
    padded
        See `Batch`.

    Attributes
    ----------
    rows
        Of the last batch.
    graphs
        By batch size of the first stage.
    """

    def __init__(
        self,
        device: CudaDevice,
        plans: Sequence[StagePlan],
        pixels: PixelFormat,
        *,
        size: int,
        padded: bool,
    ) -> None:
        self.device = device
        self.graphs: dict[int, Graph] = {}
        self.works: list[StageWork] = []
        self.rows = 0
        self._size, self._pixels = size, pixels
        self._plans = plans
        self._busy = False
        self._source: tuple[int, tuple[int, ...]] | None = None
        self._staging: PinnedMemory | None = None
        self._frames: DeviceMemory | None = None
        self._resources = Resources(device)
        try:
            self.stream, self.body_stream = self._resources.stream(), self._resources.stream()
            self._busy = True
            self._done, self._counted = self._resources.event(), self._resources.event()
            self._make_mirrors(plans, size)
            self._make_works(plans, padded=padded)
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """Memory that it holds, on device and host."""
        return self._resources.nbytes

    def upload(self, request: Request) -> None:
        """Enqueue the copies of frames and settings; the frames may change when this returns.

        Those on the device must stay as they are until the answers are there.
        """
        if self._busy:  # with work that nobody waited for, as that of a batch that failed
            self.settle()
        self._busy = True
        frames = request.frames
        self.rows = len(frames)
        host = self._incoming.host
        host["valid"][0] = self.rows
        for gate, threshold in enumerate(request.thresholds):
            host[f"thresholds {gate}"][:] = threshold
            host[f"force {gate}"][: self.rows] = 0 if request.force is None else request.force[gate]
        self._incoming.copy_in(self.stream)
        if isinstance(frames, DeviceFrames):
            frames.order(self.stream)
            self._describe(frames.address, frames.shape)
        else:
            self._describe(self._copy_frames(frames), frames.shape)

    def download(self) -> None:
        """Enqueue the copy of the answers."""
        self._outgoing.copy_out(self.stream)
        self._done.record(self.stream)

    def is_done(self) -> bool:
        """Return whether the answers are there."""
        return not self._busy or self._done.is_done()

    def wait(self) -> None:
        """Wait for the answers of the last batch."""
        if self._busy:
            self._done.sync()
            self._busy = False

    def answers(self) -> Answers:
        """Return label, confidence and stage of the last batch, valid until the next."""
        host = self._outgoing.host
        label, confidence, stage = (host[name][: self.rows] for name in _ANSWERS)
        return label, confidence, stage

    def counts(self) -> npt.NDArray[np.int32]:
        """Return how many rows each gate sent on in the last batch, i32 [gates]."""
        host: npt.NDArray[np.int32] = self._outgoing.host["counts"]
        return host

    def wait_for_count(self, gate: int) -> int:
        """Wait until a gate has run, and return how many rows it sends on."""
        counts = self._outgoing.host["counts"]
        self.stream.copy_out(counts[gate : gate + 1], self._batch.counts[gate].address)
        self._counted.record(self.stream)
        self._counted.sync()
        return int(counts[gate])

    def settle(self) -> None:
        """Wait for all that is enqueued, so that its memory can be used again."""
        self.stream.sync()
        self.rest()

    def rest(self) -> None:
        """Take its work for ended: the host has waited for it."""
        self._busy = False

    def close(self) -> None:
        """Wait for work in flight and free everything; a second call does nothing."""
        with ExitStack() as stack:
            stack.callback(self._resources.close)
            for work in self.works:
                stack.callback(work.close_contexts)
            stack.callback(self.drop_graphs)
            if self._busy and self.device.is_usable:
                stack.callback(self.settle)

    def drop_graphs(self) -> None:
        """Free the graphs, none of which may be in flight."""
        with ExitStack() as stack:
            for graph in self.graphs.values():
                stack.callback(graph.close)
            self.graphs.clear()

    def _make_mirrors(self, plans: Sequence[StagePlan], size: int) -> None:
        classes = plans[-1].engine.tensors[plans[-1].spec.logits].shape[0]
        gates = len(plans) - 1
        parts: dict[str, tuple[npt.DTypeLike, tuple[int, ...]]] = {"valid": (np.int32, (1,))}
        parts["weight"] = (np.float32, (1,))
        for number in range(len(plans)):
            parts[f"temperature {number}"] = (np.float32, (1,))
            parts[f"thresholds {number}"] = (np.float32, (classes,))
            parts[f"force {number}"] = (np.uint8, (size,))
        self._incoming = Mirror(self._resources, parts)
        for plan in plans:
            self._incoming.host[f"temperature {plan.number}"][:] = plan.score.temperature
        combined = plans[-1].combined
        self._incoming.host["weight"][:] = combined.weight if combined else 0.0
        self._tables = Mirror(
            self._resources, {plan.spec.name: (np.uint8, (size, ENTRY.itemsize)) for plan in plans}
        )
        answers = {name: (kind, (size,)) for name, kind in _ANSWERS.items()}
        self._outgoing = Mirror(self._resources, {**answers, "counts": (np.int32, (gates,))})

    def _make_works(self, plans: Sequence[StagePlan], *, padded: bool) -> None:
        incoming, outgoing = self._incoming.device, self._outgoing.device
        names = ("thresholds", "temperature", "force")
        counts = outgoing["counts"]
        self._batch = Batch(
            self._size,
            incoming["valid"],
            tuple(self._tables.device[plan.spec.name] for plan in plans),
            tuple(Settings(*(incoming[f"{n} {k}"] for n in names)) for k in range(len(plans))),
            tuple(
                DeviceArray(counts.address + 4 * k, counts.dtype, (1,))
                for k in range(counts.shape[0])
            ),
            outgoing["label"],
            outgoing["confidence"],
            outgoing["stage"],
            incoming["weight"],
            padded,
        )
        for plan, following in zip(plans, [*plans[1:], None], strict=True):
            self.works.append(
                StageWork(
                    plan,
                    self._batch,
                    self._resources,
                    self.stream,
                    earlier=tuple(self.works),
                    following=following,
                )
            )
        for work in self.works:
            work.open_contexts()

    def _copy_frames(self, frames: npt.NDArray[np.uint8]) -> int:
        """Enqueue the copy of frames to the device, and return where they will lie."""
        nbytes = self._size * frames[0].nbytes
        if self._staging is None or self._staging.nbytes < nbytes:
            self._make_room(nbytes)
        assert self._staging is not None
        staged = self._staging.view(np.uint8, frames.shape)
        np.copyto(staged, frames)
        if self._frames is None:
            return self._staging.address
        self.stream.copy_in(self._frames.address, staged)
        return self._frames.address

    def _make_room(self, nbytes: int) -> None:
        """Allocate for frames: once, unless a bundle takes frames of any size and larger come."""
        shared = self.device.shares_memory
        for memory in (self._staging, self._frames):
            if memory is not None:
                memory.free()
        self._staging = self._frames = None
        staging = self._resources.pin(nbytes, mapped=shared)
        self._frames = None if shared else self._resources.allocate(nbytes, "frames")
        self._staging = staging

    def _describe(self, address: int, shape: tuple[int, ...]) -> None:
        """Upload the frame tables, if they are not those of the last batch."""
        source = (address, shape[1:])
        if self._source == source:
            return
        if self._source is not None and self._source[1] == shape[1:]:
            self._move_tables(address - self._source[0])
        else:
            self._fill_tables(address, shape)
        self._tables.copy_in(self.stream)
        self._source = source

    def _fill_tables(self, address: int, shape: tuple[int, ...]) -> None:
        _, rows, width, channels = shape
        step = rows * width * channels
        height, width = self._pixels.picture_size(rows, width)
        frames = [Frame(address + k * step, height, width, self._pixels) for k in range(self._size)]
        for plan in self._plans:
            table = frame_table(frames, plan.network)
            self._tables.host[plan.spec.name][...] = table.view(np.uint8).reshape(self._size, -1)

    def _move_tables(self, distance: int) -> None:
        """Follow frames of the same shape to where they now lie: far cheaper than new tables."""
        for bytes_ in self._tables.host.values():
            table = bytes_.view(ENTRY)[:, 0]
            table["pixels"] += np.uint64(distance % 2**64)
            if self._pixels.colour == "nv12":
                table["chroma"] += np.uint64(distance % 2**64)


_ANSWERS: dict[str, npt.DTypeLike] = {
    "label": np.int32,
    "confidence": np.float32,
    "stage": np.int8,
}
