"""A form of a model against its FP32 form: answers, decisions of the gate, and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.records import Labels
from runtime.measurement import Subject
from runtime.schema import Score
from runtime.simulation import cascade_answers

Logits = npt.NDArray[np.float32]

ROUNDS, SECONDS = 40, 3.0
"""Of a timing, at least: short runs take more turns."""


class GateRule(NamedTuple):
    """What a gate compares with: its score, and its threshold in the FP32 setting."""

    score: Score
    threshold: float


class Quality(NamedTuple):
    """How a form's answers compare with those of FP32, on the same samples.

    Attributes
    ----------
    accuracy
        None where there are no labels.
    drop
        Accuracy lost against FP32; without labels, the share of other answers, which the drop in
        accuracy cannot exceed.
    agreement
        Share of equal answers.
    changed
        Share of samples on which the stage's gate decides otherwise; None without a gate.
    """

    accuracy: float | None
    drop: float
    agreement: float
    changed: float | None


class Race(NamedTuple):
    """Seconds per batch, see `undisturbed`, and FP32's over the form's."""

    batch: int
    fp32_seconds: float
    seconds: float
    speedup: float


def compare(
    reference: Logits, found: Logits, labels: Labels | None, gate: GateRule | None
) -> Quality:
    """Compare logits f32 [n, K] of a form with those of FP32."""
    before, after = reference.argmax(1), found.argmax(1)
    agreement = float((before == after).mean())
    changed = None if gate is None else changed_decisions(reference, found, gate)
    if labels is None:
        return Quality(None, 1 - agreement, agreement, changed)
    accuracy = float((after == labels).mean())
    # Counted rather than subtracted, so that equal accuracies give a drop of exactly zero.
    lost = int((before == labels).sum()) - int((after == labels).sum())
    return Quality(accuracy, lost / len(labels), agreement, changed)


def changed_decisions(first: Logits, second: Logits, gate: GateRule) -> float:
    """Return the share of samples that a gate keeps by one of two logits only."""
    kept = [cascade_answers([z, z], [gate.threshold], [gate.score]).stage for z in (first, second)]
    return float((kept[0] != kept[1]).mean())


def race(runs: Mapping[str, Callable[[], object]], *, batch: int) -> Race:
    """Time the runs ``fp32`` and ``form`` of one batch in turn, after one of each.

    They take at least `ROUNDS` turns, and go on for `SECONDS`.
    """
    subjects = {name: Subject(name) for name in runs}
    for run in runs.values():
        run()
    begin, rounds = perf_counter(), 0
    while rounds < ROUNDS or perf_counter() - begin < SECONDS:
        for name, run in runs.items():
            subjects[name].measure(run, batch)
        rounds += 1
    fp32, form = (undisturbed(subjects[name].seconds) for name in ("fp32", "form"))
    return Race(batch, fp32, form, fp32 / form)


def undisturbed(seconds: Sequence[float]) -> float:
    """Return the median of the fastest tenth: what a run takes that nothing interrupts.

    On an idle machine the median of all is about the same. On a busy one it changes by more than
    any form gains: under a load of ten on two CPUs, the ratio of medians of the same two models was
    0.1, 1.1 and 10.8 in turn, that of the fastest tenths 1.4 to 2.2.
    """
    return float(np.median(np.sort(seconds)[: max(1, len(seconds) // 10)]))
