"""Which score a saver's gate should read: by the area under its risk-coverage curve.

Risk is *harm*, "the saver is wrong and the large model right", not every error of the saver: where
both are wrong nothing is lost by keeping the sample, and nothing won by sending it on. Max-softmax
at temperature 1 stays unless another score has less area and a paired bootstrap puts the difference
beyond chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.bootstrap import Interval, intervals
from calibration.curves import Weights
from calibration.learned_gate import Learned, learn
from calibration.readings import Reading, read
from calibration.risk_coverage import resampled_area
from engines.score_head import OUTPUT
from runtime.schema import Score

Logits = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

PLAIN = Score()
TEMPERATURES = (0.5, 0.75, 1.5, 2.0, 3.0)
"""Of max-softmax, beside 1: they change the order of samples where there are over two classes.

Below 0.5 too many confidences are 1 in float32, and no threshold tells them apart."""
MARGIN_TEMPERATURES = (0.5, 1.0, 2.0)
ENTROPY_TEMPERATURES = (0.5, 1.0)
EXPONENTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
LEARNED = Score(name="learned", output=OUTPUT)


class Area(NamedTuple):
    """A score with the area under its risk-coverage curve, less is better."""

    score: Score
    area: float


class Choice(NamedTuple):
    """The score that was chosen for a saver.

    Attributes
    ----------
    reading
        By the chosen score.
    plain
        Area of max-softmax at temperature 1.
    best
        The score of least area, which is the chosen one only where ``interval`` is below 0.
    interval
        Of the best's area less the plain one's, 95 %, by a paired bootstrap.
    tried
        How many scores were compared, the plain one included.
    learned
        The gate that was learned, if that was asked for.
    """

    reading: Reading
    plain: float
    best: Area
    interval: Interval
    tried: int
    learned: Learned | None

    @property
    def score(self) -> Score:
        """The chosen score."""
        return self.reading.score


def family() -> list[Score]:
    """Return all scores that are computed from logits, the plain one first."""
    return [
        PLAIN,
        *(Score(temperature=t) for t in TEMPERATURES),
        *(Score(name="margin", temperature=t) for t in MARGIN_TEMPERATURES),
        *(Score(name="entropy", temperature=t) for t in ENTROPY_TEMPERATURES),
        *(Score(name="p_norm", p=p) for p in EXPONENTS),
    ]


def choose_score(
    logits: Logits,
    harmed: Flags,
    weights: Weights,
    *,
    computed: bool = True,
    learning: bool = False,
) -> Choice:
    """Choose a saver's score.

    Parameters
    ----------
    logits
        f32 [n, K].
    harmed
        Bool [n].
    weights
        i64 [draws, n] of the bootstrap, how often each sample was drawn.
    computed, learning
        Whether scores of the `family`, and a learned gate, take part beside the plain one.
    """
    learned = learn(logits, harmed) if learning else None
    readings = list(_readings(logits, learned, computed=computed))
    once = np.ones((1, len(harmed)), np.int64)
    areas = [float(_areas(reading, harmed, once)[0]) for reading in readings]
    best = int(np.argmin(areas))
    differences = _areas(readings[best], harmed, weights) - _areas(readings[0], harmed, weights)
    (interval,) = intervals(differences[:, np.newaxis])
    chosen = readings[best if interval.high < 0 else 0]
    return Choice(
        chosen, areas[0], Area(readings[best].score, areas[best]), interval, len(areas), learned
    )


def words(score: Score) -> str:
    """Return a score for people."""
    name = {"max_softmax": "max-softmax", "p_norm": "p-norm", "learned": "learned gate"}
    shown = name.get(score.name, score.name)
    if score.p is not None:
        return f"{shown} p {score.p:g}"
    return shown if score.temperature == 1 else f"{shown} T {score.temperature:g}"


def _readings(logits: Logits, learned: Learned | None, *, computed: bool) -> Iterator[Reading]:
    first = read(logits, PLAIN)
    yield first
    for score in family()[1:] if computed else []:
        yield read(logits, score)
    if learned:
        yield Reading(LEARNED, np.where(np.isnan(first.value), np.nan, learned.score))


def _areas(reading: Reading, harmed: Flags, weights: Weights) -> npt.NDArray[np.float64]:
    value = reading.value
    sureness = -value if reading.score.name == "max_softmax" else value
    return resampled_area(np.where(np.isnan(value), -np.inf, sureness), harmed, weights)
