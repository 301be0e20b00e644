"""How the engines of a cascade are launched, though only the device knows how many rows reach them.

``graph``
    The whole batch is one CUDA graph; the gate selects the engine's batch size on the device. The
    host never waits before the results.
``host``
    The host waits for each gate's count, 4 bytes, and enqueues just that.
``padded``
    Every round runs at the largest batch size, whatever the count: no wait, and most work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from kernels import ops
from kernels.launch import DeviceArray
from runtime.cuda import CudaDevice
from runtime.errors import DeviceError, GraphError, TensorRTError
from runtime.gpu_slot import Slot
from runtime.gpu_stage import StageWork
from runtime.graphs import Capture, Graphs
from runtime.profiling import Ranges

Mode = Literal["host", "padded", "graph"]


class Launcher:
    """Enqueues batches in one mode: all that lies between their upload and their download.

    Parameters
    ----------
    device
        Borrowed.
    ranges
        Of the host's time.

    Attributes
    ----------
    mode, reason
        How, and why, in one line; ``host`` until `choose` says otherwise.
    enqueue
        Enqueues the batch of a slot.
    """

    def __init__(self, device: CudaDevice, ranges: Ranges) -> None:
        self._device, self._ranges = device, ranges
        self.mode: Mode = "host"
        self.reason = "asked for"
        self.enqueue: Callable[[Slot], None] = self.enqueue_host

    def choose(self, slots: Sequence[Slot], wanted: Mode | None) -> None:
        """Launch the batches of all slots in a mode; None takes ``graph`` where that is possible.

        Raises
        ------
        DeviceError, TensorRTError
            When ``graph`` is wanted and not possible, or the device fails.
        """
        if wanted == "padded":
            self.mode, self.enqueue = wanted, self._enqueue_padded
        elif wanted != "host":
            self._try_graph(slots, required=wanted == "graph")

    def enqueue_host(self, slot: Slot) -> None:
        """Enqueue a batch, waiting for the count of each gate: possible everywhere."""
        rows = slot.rows
        for number, work in enumerate(slot.works):
            if number > 0:
                rows = slot.wait_for_count(number - 1)
                if rows == 0:
                    return
            self._enqueue_stage(slot, work, rows)

    def _enqueue_padded(self, slot: Slot) -> None:
        for number, work in enumerate(slot.works):
            self._enqueue_stage(slot, work, work.plan.rows if number else slot.rows)

    def _enqueue_graph(self, slot: Slot) -> None:
        with self._ranges("graph"):
            slot.graphs[slot.works[0].plan.bucket_for(slot.rows)].launch(slot.stream)

    def _enqueue_stage(self, slot: Slot, work: StageWork, rows: int) -> None:
        with self._ranges(work.plan.spec.name):
            work.enqueue_feed(slot.stream)
            work.run_rows(rows, slot.stream)
            work.enqueue_decision(slot.stream)

    def _try_graph(self, slots: Sequence[Slot], *, required: bool) -> None:
        try:
            graphs = Graphs(self._device)
            self._device.load("select")
            for slot in slots:
                self._capture_all(slot, graphs)
        except (DeviceError, TensorRTError) as error:
            for slot in slots:
                slot.drop_graphs()
            if required or not self._device.is_usable:
                raise
            self.reason = f"no graph: {error}"
            return
        kind = "SWITCH" if graphs.uses_switch else "IF"
        self.mode, self.enqueue = "graph", self._enqueue_graph
        self.reason = f"{kind} nodes, no wait for a count"

    def _capture_all(self, slot: Slot, graphs: Graphs) -> None:
        """Make the graphs of a slot, one for each batch size of the first stage."""
        for work in slot.works:
            _check_branches(work, graphs)
        for bucket in slot.works[0].plan.buckets:
            capture = partial(self._capture, slot, bucket)
            slot.graphs[bucket] = graphs.capture(slot.stream, slot.body_stream, capture)

    def _capture(self, slot: Slot, bucket: int, capture: Capture) -> None:
        """Enqueue a batch whose first stage runs at ``bucket``, branching where a count decides."""
        for number, work in enumerate(slot.works):
            work.enqueue_feed(slot.stream)
            if number == 0:
                work.run(bucket, slot.stream)
            else:
                index = slot.works[number - 1].bucket_index
                assert index is not None
                for round_ in range(work.plan.rounds):
                    self._branch(slot, work, capture, _item(index, round_), round_)
            work.enqueue_decision(slot.stream)

    def _branch(
        self, slot: Slot, work: StageWork, capture: Capture, index: DeviceArray, round_: int
    ) -> None:
        def select(handles: Sequence[int], is_switch: bool) -> None:
            launch = ops.select(index, handles, is_switch=is_switch)
            launch.enqueue(self._device, stream=slot.stream.handle)

        first = round_ * work.plan.largest
        bodies = [partial(work.run, size, first=first) for size in work.plan.buckets]
        capture.branch(bodies, select)


def _check_branches(work: StageWork, graphs: Graphs) -> None:
    """Refuse what cannot be captured, where that is known before the attempt."""
    engine, sizes = work.plan.engine, len(work.plan.buckets)
    if engine.options.profile_layers:
        raise GraphError("TensorRT times layers by events, which no branch of a graph can hold")
    if not work.is_capturable():
        raise GraphError(f"plan {engine.name} cannot be captured")
    if not graphs.uses_switch and sizes > ops.MOST_HANDLES:
        raise GraphError(f"{sizes} batch sizes, IF nodes allow {ops.MOST_HANDLES}")


def _item(array: DeviceArray, index: int) -> DeviceArray:
    return DeviceArray(array.address + index * array.dtype.itemsize, array.dtype, (1,))
