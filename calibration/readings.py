"""What a gate reads of each sample, and where along a path it first keeps the sample.

A path is laid for max-softmax at temperature 1: in logits of its threshold. Other scores live
elsewhere (a p-norm of ten classes between 0.3 and 0.95), so each gets the thresholds at which it
keeps as many of the selection samples as max-softmax keeps at the same point. Offsets between gates
then mean the same whatever the gates read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.curves import Floats, Points, first_kept_point
from kernels import reference
from runtime.schema import Score

Float32 = npt.NDArray[np.float32]


class Reading(NamedTuple):
    """What a gate compares with its threshold.

    Attributes
    ----------
    score
        Which it is.
    value
        f64 [n]: the total of `kernels.reference.softmax` for max-softmax, else the score; NaN
        where a row is not valid and therefore never kept.
    """

    score: Score
    value: Floats

    def first_kept(self, thresholds: Float32) -> Points:
        """Return the first point of f32 [points] at which each sample is kept, or their number."""
        if self.score.name == "max_softmax":
            return first_kept_point(self.value, thresholds)
        # The first threshold that is less than the score.
        kept: Points = np.searchsorted(-thresholds.astype(np.float64), -self.value, side="right")
        return kept

    def surest(self) -> Floats:
        """Return the scores of all samples, the greatest first; 0 where a row is not valid."""
        with np.errstate(invalid="ignore"):
            score = 1 / self.value if self.score.name == "max_softmax" else self.value
        return -np.sort(-np.nan_to_num(score))


def read(logits: npt.NDArray[np.floating[Any]], score: Score) -> Reading:
    """Return what a gate reads of logits [n, K], by a score that is computed from them."""
    facts = reference.softmax(logits, score.temperature)
    if score.name == "max_softmax":
        return Reading(score, facts.total)
    p = 2.0 if score.p is None else score.p
    value = reference.score(logits, score.name, temperature=score.temperature, p=p)
    return Reading(score, np.where(np.isnan(facts.total), np.nan, value))


def matched(surest: Floats, kept: Points) -> Float32:
    """Return thresholds f32 [points] that keep so many of the samples, where scores allow it.

    They lie midway between the scores of the last sample that is kept and the next.

    Parameters
    ----------
    surest
        f64 [n], scores in [0, 1], none above the one before it.
    kept
        i64 [points], never falling.
    """
    bounds = np.concatenate([[1.0], (surest[:-1] + surest[1:]) / 2, [surest[-1] / 2]])
    thresholds: Float32 = np.where(kept == 0, 1.0, bounds[kept]).astype(np.float32)
    return thresholds
