"""A paired bootstrap: samples drawn anew, the same ones for everything that is compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.curves import Weights

SEED = 0
LEVELS = (0.025, 0.975)


class Interval(NamedTuple):
    """A 95 % interval of the paired bootstrap."""

    low: float
    high: float


def resampling_weights(n: int, draws: int) -> Weights:
    """Return how often each of n samples is drawn, i64 [draws, n], n with replacement."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(n, np.full(n, 1 / n), size=draws)


def resampling_blocks(n: int, draws: int, *, size: int = 100) -> Iterator[Weights]:
    """Yield the rows of `resampling_weights` in blocks, for many samples and draws."""
    rng = np.random.default_rng(SEED)
    for start in range(0, draws, size):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(size, draws - start))


def intervals(values: npt.NDArray[np.float64]) -> list[Interval]:
    """Return the 95 % interval of each column of f64 [draws, candidates]."""
    if values.shape[1] == 0:
        return []
    low, high = np.quantile(values, LEVELS, axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]
