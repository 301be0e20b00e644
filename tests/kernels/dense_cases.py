"""Cases of gather, scatter and select, run on any machine and compared with the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import ops, reference
from tests.kernels.machine import Machine

Array = npt.NDArray[Any]

UNTOUCHED = 113


class Plan(NamedTuple):
    """``count`` of ``rows`` rows are escalated; rounds of the largest of ``buckets``."""

    rows: int
    count: int
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    padded: bool = False
    """Every round is filled to the largest bucket."""

    def idx(self) -> Array:
        rng = np.random.default_rng([self.rows, self.count])
        idx = np.full(self.rows, 2**31 - 1, np.int32)  # unspecified past count: must not be used
        idx[: self.count] = np.sort(rng.choice(self.rows, self.count, replace=False))
        return idx

    @property
    def rounds(self) -> int:
        return ops.rounds(self.rows, self.buckets)

    @property
    def dense_rows(self) -> int:
        return self.rounds * self.buckets[-1]

    def bucket(self) -> Array:
        return reference.bucket_rounds(self.count, self.rows, self.buckets)

    def sources(self) -> Array:
        """Which row each dense row repeats, -1 where nothing is written."""
        fill = np.full(self.rounds, self.buckets[-1]) if self.padded else self.bucket()
        return reference.dense_rows(self.idx(), self.count, self.buckets[-1], fill)

    def upload(self, machine: Machine) -> ops.Escalated:
        return ops.Escalated(
            machine.upload(self.idx()),
            machine.upload(np.array([self.count], np.int32)),
            None if self.padded else machine.upload(self.bucket()),
            self.buckets[-1],
            self.rounds,
        )


def run_gather(plan: Plan, tensors: list[Array], machine: Machine, *, offset: int = 0) -> None:
    """Gather rows of each tensor [rows, ...] and compare."""
    pairs = []
    for tensor in tensors:
        target = np.full((plan.dense_rows, *tensor.shape[1:]), UNTOUCHED, tensor.dtype)
        pairs.append((machine.upload(tensor, offset=offset), machine.upload(target, offset=offset)))
    machine.run(ops.gather(pairs, plan.upload(machine)))
    sources = plan.sources()
    for tensor, (_, target) in zip(tensors, pairs, strict=True):
        found = machine.download(target)
        written = sources >= 0
        np.testing.assert_array_equal(found[written], tensor[sources[written]])
        assert (found[~written] == UNTOUCHED).all()


class Answers(NamedTuple):
    label: Array
    confidence: Array
    stage: Array


def run_scatter(
    plan: Plan,
    logits: Array,
    machine: Machine,
    *,
    temperature: float = 1.0,
    other: Array | None = None,
    weight: float = 0.0,
    offset: int = 0,
) -> None:
    """Scatter the answers of logits [dense rows, K] and compare; other [rows, K] by sample."""
    answers = Answers(
        np.full(plan.rows, -7, np.int32),
        np.full(plan.rows, -7, np.float32),
        np.full(plan.rows, -7, np.int8),
    )
    uploaded = (
        machine.upload(answers.label),
        machine.upload(answers.confidence),
        machine.upload(answers.stage),
    )
    combination = None
    if other is not None:
        combination = ops.Combination(
            machine.upload(other), machine.upload(np.array([weight], np.float32))
        )
    machine.run(
        ops.scatter(
            machine.upload(logits, offset=offset),
            plan.upload(machine),
            uploaded,
            temperature=machine.upload(ops.temperature_value(temperature)),
            stage=2,
            combination=combination,
        )
    )
    idx = plan.idx()
    confidence = answers.confidence.astype(np.float64)
    reference.scatter(
        logits,
        idx,
        plan.count,
        answers.label,
        confidence,
        temperature=temperature,
        other=None if other is None else other[idx[: plan.count]],
        weight=weight,
    )
    answers.stage[idx[: plan.count]] = 2
    found = Answers(*(machine.download(array) for array in uploaded))
    np.testing.assert_array_equal(found.label, answers.label)
    np.testing.assert_array_equal(found.stage, answers.stage)
    np.testing.assert_allclose(found.confidence, confidence, rtol=2e-5)
