"""One stage of a cascade on a GPU, for one batch in flight: its memory and its launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import ops
from kernels.launch import DeviceArray, Launch
from runtime.cuda_resources import Resources, Stream
from runtime.gpu_plan import Batch, StagePlan
from runtime.tensorrt_engine import Context

_ALIGNMENT = 256
"""Of every tensor's address: what TensorRT's own allocations have, and it asks of its memory."""


class PassedOn(NamedTuple):
    """Rows that a gate sends on: as samples of the batch, and as rows of its own stage."""

    samples: ops.Escalated
    rows: ops.Escalated


class StageWork:
    """A stage's memory and launches for one batch in flight.

    Parameters
    ----------
    resources
        Own its memory.
    stream
        For what is uploaded once.
    earlier
        The stages before it, for the same batch.
    following
        The plan of the next stage, None for the last.

    Attributes
    ----------
    feed
        Launches that fill the inputs.
    decide
        The gate or, of a last stage, the scatter.
    passed_on, bucket_index
        What the gate sends on, and for each of the next stage's rounds the index of the bucket it
        chose, i32 [rounds]; None for the last stage.
    """

    def __init__(
        self,
        plan: StagePlan,
        batch: Batch,
        resources: Resources,
        stream: Stream,
        *,
        earlier: Sequence[StageWork] = (),
        following: StagePlan | None = None,
    ) -> None:
        self.plan = plan
        self._batch = batch
        self._resources = resources
        self._stream = stream
        self._earlier = earlier
        self._arrived = earlier[-1].passed_on if earlier else None
        self.tensors = {
            name: self._array(tensor.dtype, (plan.rows, *tensor.shape))
            for name, tensor in plan.engine.tensors.items()
        }
        self._aligned = {
            name: self._array(tensor.dtype, (plan.largest, *tensor.shape))
            for name, tensor in plan.engine.tensors.items()
            if plan.rounds > 1 and _rows(self.tensors[name], 0, plan.largest).nbytes % _ALIGNMENT
        }
        self._carried: dict[str, DeviceArray] = {}
        self.feed = [*self._preprocess(), *self._gather()]
        self.passed_on: PassedOn | None = None
        self.bucket_index: DeviceArray | None = None
        self.decide = self._scatter() if following is None else self._gate(following)
        self._contexts: dict[int, Context] = {}

    def open_contexts(self) -> None:
        """Make a context for every bucket, and run each once, which a capture takes for granted."""
        engine = self.plan.engine
        scratch = self._resources.allocate(engine.scratch_bytes, f"scratch of {engine.name}")
        for bucket in self.plan.buckets:
            self._contexts[bucket] = engine.context(bucket, scratch, self._stream)
            self.run(bucket, self._stream)

    def run(self, bucket: int, stream: Stream, *, first: int = 0) -> None:
        """Enqueue the engine on ``bucket`` rows from dense row ``first`` on, a round's first.

        A round that starts where TensorRT takes no tensor is run on copies.
        """
        context, tensors = self._contexts[bucket], self.plan.engine.tensors
        places = {name: _rows(array, first, bucket) for name, array in self.tensors.items()}
        copies = {
            name: _rows(array, 0, bucket) for name, array in self._aligned.items() if first > 0
        }
        for name, copy in copies.items():
            if tensors[name].is_input:
                stream.copy(copy.address, places[name].address, copy.nbytes)
        context.bind({**places, **copies})
        context.enqueue(stream)
        for name, copy in copies.items():
            if not tensors[name].is_input:
                stream.copy(places[name].address, copy.address, copy.nbytes)

    def run_rows(self, rows: int, stream: Stream) -> None:
        """Enqueue the engine on the first rows, in rounds of the largest bucket."""
        largest = self.plan.largest
        for first in range(0, rows, largest):
            self.run(self.plan.bucket_for(min(rows - first, largest)), stream, first=first)

    def enqueue_feed(self, stream: Stream) -> None:
        """Enqueue what fills the inputs."""
        for launch in self.feed:
            launch.enqueue(stream.device, stream=stream.handle)

    def enqueue_decision(self, stream: Stream) -> None:
        """Enqueue the gate or the scatter."""
        self.decide.enqueue(stream.device, stream=stream.handle)

    def close_contexts(self) -> None:
        """Free the contexts, before the memory that they use; no run may be in flight."""
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()

    def is_capturable(self) -> bool:
        """Return whether its runs may be captured, as far as TensorRT can say."""
        return all(context.is_capturable(self._stream) for context in self._contexts.values())

    def logits(self, rows: int) -> DeviceArray:
        """Return the first rows of its logits."""
        logits = self.tensors[self.plan.spec.logits]
        return logits._replace(shape=(rows, *logits.shape[1:]))

    def output(self, source: str, producer: int) -> DeviceArray:
        """Return a tensor ``"<stage>/<output>"``, of this stage or an earlier one, by own rows.

        Stages between the one that leaves a tensor and the one that reads it carry it along.
        """
        if producer == self.plan.number:
            return self.tensors[source.partition("/")[2]]
        if source not in self._carried:
            before = self._earlier[-1].output(source, producer)
            array = self._array(before.dtype, (self.plan.rows, *before.shape[1:]))
            assert self._arrived is not None
            self.feed.append(ops.gather([(before, array)], self._arrived.rows))
            self._carried[source] = array
        return self._carried[source]

    def _preprocess(self) -> list[Launch]:
        rows = self._batch.valid if self._arrived is None else self._arrived.samples
        return [
            ops.preprocess(
                self._batch.tables[self.plan.number],
                rows,
                self.tensors[item.tensor],
                self.plan.network,
            )
            for item in self.plan.spec.inputs
            if item.source == "frames"
        ]

    def _gather(self) -> list[Launch]:
        if self._arrived is None:
            return []
        by_sample, by_row = [], []
        names = [work.plan.spec.name for work in self._earlier]
        for item in self.plan.spec.inputs:
            if item.source == "frames":
                continue
            producer = names.index(item.source.partition("/")[0])
            target = self.tensors[item.tensor]
            if producer == 0:
                by_sample.append((self._earlier[0].output(item.source, 0), target))
            else:
                by_row.append((self._earlier[-1].output(item.source, producer), target))
        pairs = ((by_sample, self._arrived.samples), (by_row, self._arrived.rows))
        return [ops.gather(group, rows) for group, rows in pairs if group]

    def _gate(self, following: StagePlan) -> Launch:
        plan, score = self.plan, self.plan.score
        outputs = self._gate_outputs(following.rounds)
        samples = ops.Escalated(
            outputs.idx,
            outputs.count,
            None if self._batch.padded else outputs.bucket,
            following.largest,
            following.rounds,
        )
        rows = samples if outputs.idx_rows is None else replace(samples, idx=outputs.idx_rows)
        self.passed_on = PassedOn(samples, rows)
        self.bucket_index = outputs.bucket_index
        masks = self._array(np.uint64, (ops.mask_words(self._batch.size),))
        return ops.gate(
            self._gate_inputs(following.buckets),
            outputs,
            ops.GateScratch(masks, self._constant(np.zeros(1, np.uint32))),
            buckets=following.buckets,
            stage=plan.number,
            score=score.name,
            p=2.0 if score.p is None else score.p,
        )

    def _gate_inputs(self, buckets: tuple[int, ...]) -> ops.GateInputs:
        settings, output = self._batch.settings[self.plan.number], self.plan.score.output
        arrived = self._arrived.samples if self._arrived else None
        return ops.GateInputs(
            logits=self.logits(self._batch.size),
            valid=arrived.count if arrived else self._batch.valid,
            thresholds=settings.thresholds,
            temperature=settings.temperature,
            buckets=self._constant(np.array(buckets, np.int32)),
            scores=None if output is None else self._scores(output),
            force=settings.force,
            row_map=arrived.idx if arrived else None,
        )

    def _gate_outputs(self, rounds: int) -> ops.GateOutputs:
        batch, rows = self._batch, (self._batch.size,)
        return ops.GateOutputs(
            label=batch.label,
            confidence=batch.confidence,
            stage=batch.stage,
            idx=self._array(np.int32, rows),
            count=batch.counts[self.plan.number],
            bucket=self._array(np.int32, (rounds,)),
            bucket_index=self._array(np.int32, (rounds,)),
            idx_rows=self._array(np.int32, rows) if self._arrived else None,
        )

    def _scatter(self) -> Launch:
        batch, number = self._batch, self.plan.number
        return ops.scatter(
            self.tensors[self.plan.spec.logits],
            self._arrived.samples if self._arrived else self._all_samples(),
            (batch.label, batch.confidence, batch.stage),
            temperature=batch.settings[number].temperature,
            stage=number,
            combination=self._combination(),
        )

    def _combination(self) -> ops.Combination | None:
        """Return the logits that are added to its own: stages in between carry them along."""
        if self.plan.combined is None:
            return None
        producer = self.plan.combined.stage
        spec = self._earlier[producer].plan.spec
        source = f"{spec.name}/{spec.logits}"
        if producer == 0:
            return ops.Combination(self._earlier[0].output(source, 0), self._batch.weight)
        assert self._arrived is not None
        logits = self._earlier[-1].output(source, producer)
        return ops.Combination(logits, self._batch.weight, self._arrived.rows.idx)

    def _all_samples(self) -> ops.Escalated:
        """Return all of them, as a gate would send them on: for a stage that stands alone."""
        idx = self._constant(np.arange(self._batch.size, dtype=np.int32))
        return ops.Escalated(idx, self._batch.valid, None, self.plan.largest, self.plan.rounds)

    def _scores(self, output: str) -> DeviceArray:
        """Return the score tensor f32 [n] or [n, 1] as [batch]."""
        return self.tensors[output]._replace(shape=(self._batch.size,))

    def _array(self, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> DeviceArray:
        array = DeviceArray(0, np.dtype(dtype), shape)
        memory = self._resources.allocate(array.nbytes, f"stage {self.plan.spec.name}")
        return array._replace(address=memory.address)

    def _constant(self, values: npt.NDArray[np.generic]) -> DeviceArray:
        array = self._array(values.dtype, values.shape)
        self._stream.upload(array, values)
        return array


def _rows(array: DeviceArray, first: int, count: int) -> DeviceArray:
    """Return some rows of an array."""
    row = array._replace(shape=array.shape[1:]).nbytes
    return DeviceArray(array.address + first * row, array.dtype, (count, *array.shape[1:]))
