"""From histograms to the ranges that INT8 spans.

A range is ``[max(low, -T), min(high, T)]`` for a limit T on absolute values; what lies outside is
clipped. A small T clips more, a large one makes the steps between integers larger:

``min_max``     nothing is clipped
``percentile``  T is a quantile of the absolute values
``entropy``     T loses least information: the smallest Kullback-Leibler divergence between the
                values and what is left of them after clipping and rounding (Migacz, "8-bit
                inference with TensorRT", GTC 2017)
``mse``         T has the smallest mean squared error, of clipping and of rounding
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.histograms import BINS, Histogram
from calibration.quantisation import PERCENTILE, Method

Floats = npt.NDArray[np.float64]
Edges = npt.NDArray[np.int64]

_SIGNED, _UNSIGNED = 127, 255
_SMALLEST_SHARE = 1 / 32
"""Of the largest value: no method looks at limits below."""
_ENTROPY_BINS, _ENTROPY_STRIDE, _ENTROPY_FLOOR = 2048, 8, 1e-6


class Quantiser(NamedTuple):
    """How integers span a range.

    Attributes
    ----------
    symmetric
        Signed integers from -127 to 127 around zero, as TensorRT's; else 0 to 255 over the range.
    """

    symmetric: bool

    def step(self, histogram: Histogram, limits: Floats) -> Floats:
        """Return the distance between two integers for each limit T."""
        if self.symmetric:
            return limits / _SIGNED
        below, above = np.minimum(limits, -histogram.low), np.minimum(limits, histogram.high)
        step: Floats = (below + above) / _UNSIGNED
        return step


HOST = Quantiser(symmetric=False)
TRT = Quantiser(symmetric=True)


def value_range(
    histogram: Histogram, method: Method, quantiser: Quantiser, *, percentile: float = PERCENTILE
) -> tuple[float, float]:
    """Return the least and the largest value that integers are to span; zero lies between them.

    A tensor that was always zero gets ``(-1, 1)``: a scale must be positive.

    Parameters
    ----------
    percentile
        For the method of that name, in percent of all values, zeros included.
    """
    largest = histogram.largest
    if largest == 0.0:
        return (-1.0, 1.0)
    limit = largest
    if method == "percentile":
        limit = _quantile(histogram, percentile / 100)
    elif method == "mse":
        limit = _least(_squared_error, histogram, quantiser)
    elif method == "entropy":
        limit = _least(_divergence, histogram, quantiser)
    limit = float(np.clip(limit, _SMALLEST_SHARE * largest, largest))
    return (max(histogram.low, -limit), min(histogram.high, limit))


Loss = Callable[[Histogram, Quantiser, Edges], Floats]


def _least(loss: Loss, histogram: Histogram, quantiser: Quantiser) -> float:
    """Return the limit of least loss among bin edges; the largest of those, where several are."""
    width = histogram.limit / (BINS // 2)
    last = int(np.ceil(histogram.largest / width))
    first = max(1, int(last * _SMALLEST_SHARE))
    edges = np.arange(last, first - 1, -1)
    losses = loss(histogram, quantiser, edges)
    return float(edges[np.argmin(losses)] * width)


def _squared_error(histogram: Histogram, quantiser: Quantiser, edges: Edges) -> Floats:
    """Return the summed squared error of nonzero values for each limit.

    Rounding errs evenly between two integers, by step^2 / 12 in the mean.
    """
    counts = histogram.folded().astype(np.float64)
    width = histogram.limit / len(counts)
    centres = (np.arange(len(counts)) + 0.5) * width
    above = [_sum_from(counts * centres**power) for power in range(3)]
    limits = (edges * width).astype(np.float64)
    clipped = above[2][edges] - 2 * limits * above[1][edges] + limits**2 * above[0][edges]
    inside = above[0][0] - above[0][edges]
    error: Floats = clipped + inside * quantiser.step(histogram, limits) ** 2 / 12
    return error


def _divergence(histogram: Histogram, quantiser: Quantiser, edges: Edges) -> Floats:
    """Return the divergence of nonzero values from their quantised form for each limit.

    Only every eighth limit is tried, and none with fewer bins than integers, where nothing is
    rounded: the losses of the others are infinite.
    """
    counts = histogram.folded().reshape(_ENTROPY_BINS, -1).sum(1).astype(np.float64)
    merged = BINS // 2 // _ENTROPY_BINS
    width = histogram.limit / _ENTROPY_BINS
    losses = np.full(len(edges), np.inf)
    for place in range(0, len(edges), _ENTROPY_STRIDE * merged):
        edge = -(-int(edges[place]) // merged)
        limit = np.array([edge * width])
        levels = max(1, round(float(limit[0] / quantiser.step(histogram, limit)[0])))
        if edge >= levels or place == 0:
            losses[place] = _divergence_at(counts, edge, min(levels, edge))
    return losses


def _divergence_at(counts: Floats, edge: int, levels: int) -> float:
    """Return KL(P || Q): P has what is clipped in its last bin, Q the mean of each level's bins."""
    inside = counts[:edge]
    p = inside.copy()
    p[-1] += counts[edge:].sum()
    level = np.arange(edge) * levels // edge
    filled = inside > 0
    means = np.bincount(level, inside) / np.maximum(np.bincount(level, filled), 1)
    q = np.where(filled, means[level], 0.0)
    used = p > 0
    p = p[used] / p.sum()
    # The last bin may hold only what was clipped: the divergence would be infinite.
    q = np.maximum(q[used] / max(1.0, q.sum()), _ENTROPY_FLOOR)
    return float((p * np.log(p / (q / q.sum()))).sum())


def _quantile(histogram: Histogram, share: float) -> float:
    """Return the upper edge of the bin in which the share of all absolute values is reached."""
    reached = histogram.zeros + np.cumsum(histogram.folded())
    place = int(np.searchsorted(reached, share * histogram.total))
    width = histogram.limit / (BINS // 2)
    return (place + 1) * width


def _sum_from(values: Floats) -> Floats:
    """Return the sums of ``values[k:]`` for k from 0 to n."""
    sums: Floats = np.append(np.cumsum(values[::-1])[::-1], 0.0)
    return sums
