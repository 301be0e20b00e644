"""What a cascade answers on stored logits, for any thresholds, without running a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import reference
from runtime.schema import Score

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Answer = npt.NDArray[np.int32]

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

    Raises
    ------
    ValueError
        When shapes, labels or the number of scores do not fit, or a score is learned.
    """

    def __init__(
        self,
        stage_logits: Sequence[Floats],
        labels: Integers | None = None,
        *,
        scores: Sequence[Score] | None = None,
    ) -> None:
        self.n, classes = _checked_shape(stage_logits)
        self.gates = len(stage_logits) - 1
        self.scores = tuple(scores) if scores is not None else (Score(),) * self.gates
        if len(self.scores) != self.gates:
            raise ValueError(f"scores: expected {self.gates}, one per gate, got {len(self.scores)}")
        self._labels = None if labels is None else _checked_labels(labels, self.n, classes)
        # The last stage has no gate: its score is computed like any other and not read.
        facts = [_facts(z, s) for z, s in zip(stage_logits, (*self.scores, Score()), strict=True)]
        self._sureness = [sureness for sureness, _ in facts]
        self._answers = [answer for _, answer in facts]
        self._large_right = self._right(self._answers[-1])

    def answers(self, thresholds: Sequence[float] | Floats) -> Answers:
        """Return label and answering stage of each sample; thresholds are rounded to float32."""
        values = _checked_thresholds(thresholds, self.gates)
        label = self._answers[-1].copy()
        stage = np.full(self.n, self.gates, np.int8)
        for gate in reversed(range(self.gates)):
            kept = self._kept(gate, float(values[gate]))
            label[kept] = self._answers[gate][kept]
            stage[kept] = gate
        return Answers(label, stage)

    def drops(self, thresholds: Sequence[float] | Floats) -> npt.NDArray[np.int8]:
        """Return D i8 [n]: 1 where the cascade harms, -1 where it helps, else 0."""
        right = self._right(self.answers(thresholds).label)
        drops: npt.NDArray[np.int8] = self._large_right - right
        return drops

    def escalation_rates(self, thresholds: Sequence[float] | Floats) -> tuple[float, ...]:
        """Return the share of all samples that each gate sends on."""
        stage = self.answers(thresholds).stage
        return tuple(float((stage > gate).mean()) for gate in range(self.gates))

    def _kept(self, gate: int, threshold: float) -> npt.NDArray[np.bool_]:
        if self.scores[gate].name == "max_softmax":
            return reference.accept(self._sureness[gate], threshold)
        kept: npt.NDArray[np.bool_] = self._sureness[gate] > threshold
        return kept

    def _right(self, label: Answer) -> npt.NDArray[np.int8]:
        truth = self._answers[-1] if self._labels is None else self._labels
        return np.asarray(label == truth, np.int8)


def cascade_answers(
    stage_logits: Sequence[Floats],
    thresholds: Sequence[float] | Floats,
    scores: Sequence[Score] | None = None,
) -> Answers:
    """Return label and answering stage of each sample; `Simulation` for many thresholds."""
    return Simulation(stage_logits, scores=scores).answers(thresholds)


def _facts(logits: Floats, score: Score) -> tuple[npt.NDArray[np.float64], Answer]:
    """Return what a gate compares (`softmax`'s total, or a score), and the label, of each row."""
    z = np.asarray(logits)
    # One empty block stands for no rows, so that the results still have their dtypes.
    blocks = [z[row : row + _BLOCK] for row in range(0, max(1, len(z)), _BLOCK)]
    softmaxes = [reference.softmax(block, score.temperature) for block in blocks]
    label = np.concatenate([facts.label for facts in softmaxes])
    if score.name == "max_softmax":
        return np.concatenate([facts.total for facts in softmaxes]), label
    p = 2.0 if score.p is None else score.p
    values = [reference.score(b, score.name, temperature=score.temperature, p=p) for b in blocks]
    return np.concatenate(values), label


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


def _checked_thresholds(thresholds: Sequence[float] | Floats, gates: int) -> Floats:
    values = np.asarray(thresholds, np.float32)
    if values.shape != (gates,) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"thresholds: expected {gates} in [0, 1], one per gate, got {thresholds}")
    return values
