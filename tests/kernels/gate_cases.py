"""Cases of the gate: logits of every awkward kind, one run of the kernel, and what it must give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import ops, reference
from kernels.launch import DeviceArray
from tests.kernels.machine import Machine

Array = npt.NDArray[Any]

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
UNTOUCHED = -77
BAND = 1e-5
"""Rows with |s * t - 1| within it may be decided either way (docs/design.md), at most 1 in 1000."""


@dataclass(frozen=True)
class Case:
    """One batch and the settings of its gate.

    ``rows`` and ``classes`` of ``dtype``; ``kind`` of logits; ``offset`` bytes of misalignment.
    """

    rows: int
    classes: int
    dtype: str = "float32"
    kind: str = "plain"
    score: ops.ScoreName = "max_softmax"
    threshold: Any = None
    temperature: float = 1.0
    p: float = 2.0
    offset: int = 0
    valid: int | None = None
    buckets: tuple[int, ...] = BUCKETS
    force: bool = False
    samples: int | None = None
    """A row map into that many samples, where given."""
    seed: int = 0
    logits: Array | None = field(default=None, compare=False)

    def __str__(self) -> str:
        parts = [f"{self.rows}x{self.classes}", self.dtype, self.kind, self.score]
        return "-".join(parts)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.rows, self.classes])

    def values(self) -> Array:
        if self.logits is not None:
            return self.logits
        return make_logits(self.rng(), self.rows, self.classes, self.kind).astype(self.dtype)

    def limit(self) -> Any:
        """The threshold, by default one near the middle of what random logits give."""
        if self.threshold is not None:
            return self.threshold
        return {"max_softmax": 2.0, "p_norm": 1.5}.get(self.score, 1.2) / (1.2 + self.classes**0.5)


def make_logits(rng: np.random.Generator, rows: int, classes: int, kind: str) -> Array:
    logits = rng.standard_normal((rows, classes)) * 3
    if kind == "edge":
        for value in (np.nan, np.inf, -np.inf, 1e-41):
            count = max(1, rows // 4)
            logits[rng.integers(0, rows, count), rng.integers(0, classes, count)] = value
        logits[rng.integers(0, rows)] = -np.inf
        logits[rng.integers(0, rows)] = np.nan
        logits[rng.integers(0, rows)] = 0
        logits[rng.integers(0, rows), : classes // 2] = -np.inf  # leading, beside finite numbers
        logits[rng.integers(0, rows), : classes // 2] = np.nan
    if kind == "ties":
        logits = np.round(logits)
    if kind == "denormal":
        logits = logits * 1e-40
    return logits


class Uploaded(NamedTuple):
    """The arrays of one gate on a machine."""

    inputs: ops.GateInputs
    outputs: ops.GateOutputs
    scratch: ops.GateScratch


def samples_of(case: Case) -> int:
    return case.rows if case.samples is None else case.samples


def row_map(case: Case) -> Array | None:
    if case.samples is None:
        return None
    chosen = case.rng().choice(case.samples, case.rows, replace=False)
    return np.sort(chosen).astype(np.int32)


def force(case: Case) -> Array | None:
    if not case.force:
        return None
    return case.rng().integers(0, 2, samples_of(case)).astype(np.uint8) * 3


def scores(case: Case, logits: Array) -> Array | None:
    """What the reference compares with the threshold; None for max-softmax."""
    if case.score == "max_softmax":
        return None
    if case.score == "learned":
        values = case.rng().random(case.rows).astype(np.float32)
        values[:: max(1, case.rows // 3)] = [np.nan, np.inf, -np.inf, 1.0][case.rows % 4]
        return values
    with np.errstate(invalid="ignore"):
        return reference.score(logits, case.score, temperature=case.temperature, p=case.p)


def upload(case: Case, logits: Array, machine: Machine) -> Uploaded:
    def optional(values: Array | None) -> DeviceArray | None:
        return None if values is None else machine.upload(values)

    rows, samples, rounds = case.rows, samples_of(case), ops.rounds(case.rows, case.buckets)
    mapping = row_map(case)
    valid = case.rows if case.valid is None else case.valid
    inputs = ops.GateInputs(
        logits=machine.upload(logits, offset=case.offset),
        valid=machine.upload(np.array([valid], np.int32)),
        thresholds=machine.upload(ops.threshold_values(case.limit(), case.classes)),
        temperature=machine.upload(ops.temperature_value(case.temperature)),
        buckets=machine.upload(np.array(case.buckets, np.int32)),
        scores=optional(scores(case, logits) if case.score == "learned" else None),
        force=optional(force(case)),
        row_map=optional(mapping),
    )
    outputs = ops.GateOutputs(
        label=machine.upload(np.full(samples, UNTOUCHED, np.int32)),
        confidence=machine.upload(np.full(samples, UNTOUCHED, np.float32)),
        stage=machine.upload(np.full(samples, UNTOUCHED, np.int8)),
        idx=machine.upload(np.full(rows, UNTOUCHED, np.int32)),
        count=machine.upload(np.full(1, UNTOUCHED, np.int32)),
        bucket=machine.upload(np.full(rounds, UNTOUCHED, np.int32)),
        bucket_index=machine.upload(np.full(rounds, UNTOUCHED, np.int32)),
        idx_rows=None if mapping is None else machine.upload(np.full(rows, UNTOUCHED, np.int32)),
    )
    scratch = ops.GateScratch(
        masks=machine.upload(np.full(ops.mask_words(rows), 2**64 - 1, np.uint64)),
        ticket=machine.upload(np.zeros(1, np.uint32)),
    )
    return Uploaded(inputs, outputs, scratch)


def launch(case: Case, arrays: Uploaded) -> ops.Launch:
    return ops.gate(*arrays, buckets=case.buckets, stage=3, score=case.score, p=case.p)


def expected(case: Case, logits: Array) -> reference.Gated:
    """What the reference decides of the valid rows."""
    valid = case.rows if case.valid is None else case.valid
    mapping, value = row_map(case), scores(case, logits)
    return reference.gate(
        logits[:valid],
        case.limit(),
        case.temperature,
        case.buckets,
        scores=None if value is None else value[:valid],
        force=force(case),
        row_map=None if mapping is None else mapping[:valid],
    )


def in_band(case: Case, logits: Array, gated: reference.Gated) -> Array:
    """Return which valid rows may be decided either way, bool [valid]."""
    limits = np.broadcast_to(np.asarray(case.limit(), np.float32), (case.classes,))[gated.label]
    if case.score == "learned":
        return np.zeros(len(gated.label), bool)  # compared as they are
    if case.score != "max_softmax":
        return np.abs(gated.confidence - limits) <= BAND
    with np.errstate(invalid="ignore"):
        total = reference.softmax(logits[: len(gated.label)], case.temperature).total
        return np.abs(total * limits - 1) <= BAND


def check(case: Case, logits: Array, arrays: Uploaded, machine: Machine) -> None:
    """Compare what the kernel left with the reference."""
    found = {
        name: machine.download(array)
        for name, array in vars(arrays.outputs).items()
        if array is not None
    }
    assert not machine.download(arrays.scratch.ticket).any(), "control word not reset"
    gated = expected(case, logits)
    count = int(found["count"][0])
    rows = found.get("idx_rows", found["idx"])[:count]
    check_decisions(case, logits, gated, rows)
    mapping = row_map(case)
    samples = rows if mapping is None else mapping[rows]
    np.testing.assert_array_equal(found["idx"][:count], samples)
    check_rounds(case, count, found)
    check_answers(case, gated, rows, found)


def check_decisions(case: Case, logits: Array, gated: reference.Gated, rows: Array) -> None:
    goes_on = np.zeros(len(gated.label), bool)
    goes_on[rows] = True
    np.testing.assert_array_equal(np.flatnonzero(goes_on), rows, "order of the escalated rows")
    wanted = np.zeros_like(goes_on)
    wanted[gated.rows] = True
    different = goes_on != wanted
    wrong = np.flatnonzero(different & ~in_band(case, logits, gated))
    assert not wrong.size, f"decided otherwise: rows {wrong}"
    assert different.sum() <= 0.001 * len(different), (
        "too many decided otherwise near the threshold"
    )


def check_rounds(case: Case, count: int, found: dict[str, Array]) -> None:
    bucket = reference.bucket_rounds(count, case.rows, case.buckets)
    np.testing.assert_array_equal(found["bucket"], bucket)
    index = [case.buckets.index(size) if size else len(case.buckets) for size in bucket.tolist()]
    np.testing.assert_array_equal(found["bucket_index"], index)


def check_answers(case: Case, gated: reference.Gated, rows: Array, found: dict[str, Array]) -> None:
    """Kept rows have their answers; all other samples are untouched."""
    kept = np.setdiff1d(np.arange(len(gated.label)), rows)
    mapping = row_map(case)
    samples = kept if mapping is None else mapping[kept]
    np.testing.assert_array_equal(found["label"][samples], gated.label[kept])
    # 4 float operations a term, of which the sum of up to 21843 has some 100 in a row a thread.
    tolerance = {"rtol": 2e-5, "atol": 1e-5 if case.score != "max_softmax" else 0}
    np.testing.assert_allclose(found["confidence"][samples], gated.confidence[kept], **tolerance)
    assert (found["stage"][samples] == 3).all()
    others = np.setdiff1d(np.arange(samples_of(case)), samples)
    for name in ("label", "confidence", "stage"):
        assert (found[name][others] == UNTOUCHED).all(), f"{name} of a row that is not kept"


def run(case: Case, machine: Machine) -> None:
    """Run one case and check it."""
    logits = case.values()
    arrays = upload(case, logits, machine)
    machine.run(launch(case, arrays))
    check(case, logits, arrays, machine)
