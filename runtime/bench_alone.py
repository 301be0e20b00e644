"""One stage of a cascade on a GPU without gates: large model or saver alone, as the bench asks."""

from __future__ import annotations

from typing import Any

from kernels import ops
from runtime.gpu import GpuExecutor
from runtime.gpu_plan import StagePlan
from runtime.gpu_slot import Request, Slot
from runtime.graphs import Graphs
from runtime.preprocess import network_input
from runtime.schema import Score


class StageAlone:
    """One stage without gates: frames up, its engine, its answers down. Owns its memory.

    It is launched as the cascade is: as one graph where that runs graphs.
    """

    def __init__(self, executor: GpuExecutor, number: int) -> None:
        plan = executor.plans[number]
        buckets = tuple(plan.engine.buckets)
        rounds = ops.rounds(executor.batch, buckets)
        size = rounds * buckets[-1]  # a first stage fills its rounds
        alone = StagePlan(
            0,
            plan.spec,
            plan.engine,
            Score(),
            network_input(plan.spec.preprocessing),
            buckets,
            rounds,
        )
        self._graphs = Graphs(executor.device) if executor.mode == "graph" else None
        self._slot = Slot(executor.device, [alone], executor.pixels, size=size, padded=False)

    def classify(self, frames: Any, *, fetch: bool) -> None:
        """Run it, and wait until the answers are there: on the host, or on the device."""
        slot = self._slot
        slot.upload(Request(frames, [], None))
        self._launch(len(frames))
        if not fetch:
            slot.settle()
            return
        slot.download()
        slot.wait()
        for answer in slot.answers():
            answer.copy()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        self._slot.close()

    def _launch(self, rows: int) -> None:
        slot, graphs = self._slot, self._graphs
        if graphs is None:
            self._enqueue(rows)
            return
        if rows not in slot.graphs:
            slot.graphs[rows] = graphs.capture(
                slot.stream, slot.body_stream, lambda _: self._enqueue(rows)
            )
        slot.graphs[rows].launch(slot.stream)

    def _enqueue(self, rows: int) -> None:
        (work,), stream = self._slot.works, self._slot.stream
        work.enqueue_feed(stream)
        work.run_rows(rows, stream)
        work.enqueue_decision(stream)
