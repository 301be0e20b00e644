"""Risk against coverage: how many errors are among the samples that a score is surest of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Ordering(NamedTuple):
    """Errors among the samples that a score is surest of.

    Attributes
    ----------
    coverage, risk
        f64 [n], the share kept, and the share of wrong answers among them.
    aurc
        Area under the curve: the mean of ``risk``. Less is better.
    """

    coverage: Floats
    risk: Floats
    aurc: float


def ordering(score: Floats, right: npt.NDArray[np.bool_]) -> Ordering:
    """Return risk at each coverage; samples of equal score share their mean error.

    Parameters
    ----------
    score
        f64 [n], greater is surer; n > 0.
    """
    order = np.argsort(-score, kind="stable")
    wrong, sorted_score = (~right[order]).astype(np.float64), score[order]
    starts = np.flatnonzero(np.concatenate(([True], np.diff(sorted_score) != 0)))
    sizes = np.diff(np.append(starts, len(score)))
    shared = np.repeat(np.add.reduceat(wrong, starts) / sizes, sizes)
    kept = np.arange(1, len(score) + 1)
    risk = np.cumsum(shared) / kept
    return Ordering(kept / len(score), risk, float(risk.mean()))


def resampled_area(
    score: Floats, harmed: npt.NDArray[np.bool_], weights: npt.NDArray[np.integer[Any]]
) -> Floats:
    """Return the area under the curve on each resampled set, f64 [draws].

    Samples of equal score stand in the order that they have; `ordering` shares their risk.

    Parameters
    ----------
    weights
        i64 [draws, n], how often each sample was drawn.
    """
    order = np.argsort(-score, kind="stable")
    drawn = weights[:, order].astype(np.float64)
    kept = np.cumsum(drawn, axis=1)
    harm = np.cumsum(drawn * harmed[order], axis=1)
    risk = harm / np.maximum(kept, 1)
    area: Floats = (drawn * risk).sum(1) / kept[:, -1]
    return area
