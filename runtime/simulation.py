"""What a cascade answers on stored logits, for any thresholds, without running a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import reference
from runtime.schema import Score, Threshold

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Answer = npt.NDArray[np.int32]
Vector = Sequence[Threshold] | Floats
"""One number, or K numbers by predicted class, per gate."""
Weighted = tuple[int, float]
"""Index and weight of an earlier stage whose logits are added to those of the last."""

# Rows of logits turned to float64 at once: 4096 rows of 1000 classes are 32 MiB.
_BLOCK = 4096


class Answers(NamedTuple):
    """What a cascade answers.

    Attributes
    ----------
    label
        i32 [n].
    stage
        i8 [n], index of the stage that answered.
    """

    label: Answer
    stage: npt.NDArray[np.int8]


class Simulation:
    """The answers of one cascade on stored logits, quickly, for any thresholds.

    Parameters
    ----------
    stage_logits
        [n, K] per stage, the large model's last. Rows that are not valid escalate.
    labels
        Integers [n] in [0, K). None compares with the large model's answers instead.
    scores
        One per gate; all max-softmax when None.
    combination
        Index and weight of an earlier stage: the last stage then answers from ``logits + weight *
        its logits``. Drops are against the large model alone all the same.
    gate_scores
        Per gate f32 [n] in [0, 1], what a learned gate put out (NaN escalates), or None.

    Raises
    ------
    ValueError
        When shapes, labels, scores or combination do not fit.
    """

    def __init__(
        self,
        stage_logits: Sequence[Floats],
        labels: Integers | None = None,
        *,
        scores: Sequence[Score] | None = None,
        combination: Weighted | None = None,
        gate_scores: Sequence[Floats | None] | None = None,
    ) -> None:
        self.n, self.classes = _checked_shape(stage_logits)
        self.gates = len(stage_logits) - 1
        self.scores = tuple(scores) if scores is not None else (Score(),) * self.gates
        self.combination = combination
        if len(self.scores) != self.gates:
            raise ValueError(f"scores: expected {self.gates}, one per gate, got {len(self.scores)}")
        self._labels = None if labels is None else _checked_labels(labels, self.n, self.classes)
        learned = _checked_gate_scores(gate_scores, self.scores, self.n)
        facts = list(map(_facts, stage_logits[:-1], self.scores, learned))
        self._sureness = [sureness for sureness, _ in facts]
        self._large = _predicted(stage_logits[-1])
        last = self._large if combination is None else _combined(stage_logits, *combination)
        self._answers = [*(answer for _, answer in facts), last]
        self._large_right = self._right(self._large)

    def answers(self, thresholds: Vector) -> Answers:
        """Return label and answering stage of each sample; thresholds are rounded to float32."""
        values = _checked_thresholds(thresholds, self.gates, self.classes)
        label = self._answers[-1].copy()
        stage = np.full(self.n, self.gates, np.int8)
        for gate in reversed(range(self.gates)):
            kept = self._kept(gate, values[gate])
            label[kept] = self._answers[gate][kept]
            stage[kept] = gate
        return Answers(label, stage)

    def drops(self, thresholds: Vector) -> npt.NDArray[np.int8]:
        """Return D i8 [n]: 1 where the cascade harms, -1 where it helps, else 0."""
        right = self._right(self.answers(thresholds).label)
        drops: npt.NDArray[np.int8] = self._large_right - right
        return drops

    def escalation_rates(self, thresholds: Vector) -> tuple[float, ...]:
        """Return the share of all samples that each gate sends on."""
        stage = self.answers(thresholds).stage
        return tuple(float((stage > gate).mean()) for gate in range(self.gates))

    def _kept(self, gate: int, threshold: Floats) -> npt.NDArray[np.bool_]:
        limit = threshold if threshold.ndim == 0 else threshold[self._answers[gate]]
        if self.scores[gate].name == "max_softmax":
            return reference.accept(self._sureness[gate], limit)
        kept: npt.NDArray[np.bool_] = self._sureness[gate] > limit
        return kept

    def _right(self, label: Answer) -> npt.NDArray[np.int8]:
        truth = self._large if self._labels is None else self._labels
        return np.asarray(label == truth, np.int8)


def cascade_answers(
    stage_logits: Sequence[Floats],
    thresholds: Vector,
    scores: Sequence[Score] | None = None,
    *,
    combination: Weighted | None = None,
    gate_scores: Sequence[Floats | None] | None = None,
) -> Answers:
    """Return label and answering stage of each sample; `Simulation` for many thresholds."""
    simulation = Simulation(
        stage_logits, scores=scores, combination=combination, gate_scores=gate_scores
    )
    return simulation.answers(thresholds)


def _facts(
    logits: Floats, score: Score, learned: Floats | None
) -> tuple[npt.NDArray[np.float64], Answer]:
    """Return what a gate compares (`softmax`'s total, or a score), and the label, of each row."""
    softmaxes = [reference.softmax(block, score.temperature) for block in _blocks(logits)]
    label = np.concatenate([facts.label for facts in softmaxes])
    total = np.concatenate([facts.total for facts in softmaxes])
    if score.name == "max_softmax":
        return total, label
    if learned is not None:
        return np.where(np.isnan(total) | np.isnan(learned), 0.0, learned), label
    p = 2.0 if score.p is None else score.p
    values = [
        reference.score(block, score.name, temperature=score.temperature, p=p)
        for block in _blocks(logits)
    ]
    return np.concatenate(values), label


def _predicted(logits: Floats) -> Answer:
    return np.concatenate([reference.softmax(block).label for block in _blocks(logits)])


def _combined(stage_logits: Sequence[Floats], stage: int, weight: float) -> Answer:
    """Return the labels of the last stage's logits plus those of an earlier one."""
    last = len(stage_logits) - 1
    if not 0 <= stage < last or not (np.isfinite(weight) and weight >= 0):
        raise ValueError(
            f"combination: expected a stage from 0 to {last - 1}, before the last, and a finite "
            f"weight >= 0, got stage {stage} and weight {weight}"
        )
    rows = zip(_blocks(stage_logits[-1]), _blocks(stage_logits[stage]), strict=True)
    # Infinities of opposite signs are NaN, which no class can win with.
    with np.errstate(invalid="ignore"):
        sums = (
            large.astype(np.float64) + weight * other.astype(np.float64) for large, other in rows
        )
        return np.concatenate([reference.softmax(block).label for block in sums])


def _blocks(logits: Floats) -> Iterator[Floats]:
    z = np.asarray(logits)
    # One empty block stands for no rows, so that the results still have their dtypes.
    return (z[row : row + _BLOCK] for row in range(0, max(1, len(z)), _BLOCK))


def _checked_shape(stage_logits: Sequence[Floats]) -> tuple[int, int]:
    shapes = [np.shape(logits) for logits in stage_logits]
    if len(shapes) < 2 or any(shape != shapes[0] for shape in shapes) or len(shapes[0]) != 2:
        found = ", ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"logits: expected [n, K], the same for two stages or more, got {found}")
    return shapes[0][0], shapes[0][1]


def _checked_labels(labels: Integers, n: int, classes: int) -> Answer:
    values = np.asarray(labels)
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise ValueError(
            f"labels: expected integers [{n}], got {values.dtype} {list(values.shape)}"
        )
    if n and (values.min() < 0 or values.max() >= classes):
        raise ValueError(
            f"labels: expected 0 to {classes - 1}, got {values.min()} to {values.max()}"
        )
    return values.astype(np.int32)


def _checked_gate_scores(
    gate_scores: Sequence[Floats | None] | None, scores: tuple[Score, ...], n: int
) -> list[Floats | None]:
    found: list[Floats | None] = list(gate_scores or [None] * len(scores))
    if len(found) != len(scores):
        raise ValueError(f"gate_scores: expected {len(scores)}, one per gate, got {len(found)}")
    for gate, (score, values) in enumerate(zip(scores, found, strict=True)):
        if (score.name == "learned") != (values is not None):
            given = "none" if values is None else "some"
            raise ValueError(f"gate_scores: gate {gate} has the score {score.name}, got {given}")
        if values is not None:
            _check_score(gate, np.asarray(values), n)
    return found


def _check_score(gate: int, values: Floats, n: int) -> None:
    # A NaN escalates; above 1, no threshold could escalate everything.
    outside = (values < 0) | (values > 1)
    if values.shape != (n,) or outside.any():
        raise ValueError(
            f"gate_scores: expected [{n}] in [0, 1] for gate {gate}, got {list(values.shape)} with "
            f"{int(outside.sum())} outside"
        )


def _checked_thresholds(thresholds: Vector, gates: int, classes: int) -> list[Floats]:
    # Each is rounded to float32, as on every device, and then compared in float64.
    values: list[Floats] = [
        np.asarray(threshold, np.float32).astype(np.float64) for threshold in thresholds
    ]
    fits = len(values) == gates and all(
        value.shape in ((), (classes,)) and ((value >= 0) & (value <= 1)).all() for value in values
    )
    if not fits:
        raise ValueError(
            f"thresholds: expected {gates} in [0, 1], one per gate, or for a gate {classes} by "
            f"class, got {_shortened(thresholds)}"
        )
    return values


def _shortened(thresholds: Vector) -> str:
    text = str(list(thresholds))
    return text if len(text) <= 200 else f"{text[:200]}..."
