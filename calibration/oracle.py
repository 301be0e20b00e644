"""The thresholds that TinySaver reports (arXiv 2403.17726), read off the samples that judge them.

Its released code tries the thresholds 0, 0.001, ..., 1 on the records of the test split and keeps
the points that no other beats in both accuracy and multiply-accumulates. What is quoted at a drop
of 0.01, 0.5 or 1 points is the cheapest of these that loses no more. Nobody has such a threshold
before the labels of the test split are known: it is an oracle's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.paper import Floats, kept_above

STEPS = 1000


class Operating(NamedTuple):
    """A threshold and what it does on the samples it was tried on.

    Attributes
    ----------
    kept
        Share of the samples that the saver keeps.
    drop
        How much less accurate the cascade is than the large model; negative where it is better.
    """

    threshold: float
    kept: float
    drop: float


def pareto_points(
    confidence: Floats, saver_right: npt.NDArray[np.bool_], large_right: npt.NDArray[np.bool_]
) -> list[Operating]:
    """Return the thresholds that no other one beats, by a falling share that the saver keeps.

    Of thresholds that keep the same samples the highest is returned.

    Parameters
    ----------
    confidence
        f32 or f64 [n], the saver's largest softmax probability; n > 0.
    saver_right, large_right
        Bool [n].
    """
    scan = np.arange(STEPS, -1, -1) / STEPS
    above, lead = kept_above(scan, confidence, saver_right, large_right)
    n, found = len(confidence), list[Operating]()
    best = -n - 1
    # The most kept first: a threshold counts if it is more accurate than all that cost less.
    for step in np.lexsort((np.arange(len(scan)), -above)):
        if lead[step] > best:
            best = int(lead[step])
            found.append(Operating(float(scan[step]), float(above[step] / n), float(-best / n)))
    return found


def cheapest_within(points: Sequence[Operating], drop: float) -> Operating:
    """Return the point that keeps most at this drop; threshold 1, which loses nothing, always does.

    Parameters
    ----------
    points
        Of `pareto_points`.
    drop
        From 0.
    """
    # A drop of 0.01 points is one sample in 10,000, which no rounding may exclude.
    return next(point for point in points if point.drop <= drop + 1e-12)
