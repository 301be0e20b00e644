"""Timings and rates: interleaved runs, every sample kept, quantiles and intervals.

Machines are shared and noisy, so subjects that are compared take turns within one run, and a ratio
is the median of the ratios of neighbouring turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

P99_NEEDS = 1_000
"""Fewer samples than this leave p99 to a handful of them: the report marks it."""

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass
class Subject:
    """One thing that is timed again and again.

    Attributes
    ----------
    seconds, images
        One entry per call: wall time, and how many images it classified.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)

    def measure(self, call: Callable[[], Any], images: int) -> Any:
        """Time one call and return what it returned."""
        begin = perf_counter()
        value = call()
        self.seconds.append(perf_counter() - begin)
        self.images.append(images)
        return value

    @property
    def throughput(self) -> float:
        """Images per second over all calls."""
        return sum(self.images) / sum(self.seconds) if self.seconds else math.nan

    def latency_ms(self, percentiles: Sequence[float]) -> dict[str, float | int | bool]:
        """Return quantiles, min, max, mean of one call in milliseconds, and how many calls."""
        if not self.seconds:
            return {"samples": 0}
        times = 1e3 * np.asarray(self.seconds)
        quantiles = {f"p{p:g}": float(np.percentile(times, p)) for p in percentiles}
        return {
            **quantiles,
            "min": float(times.min()),
            "max": float(times.max()),
            "mean": float(times.mean()),
            "samples": len(times),
            "p99_reliable": len(times) >= P99_NEEDS,
        }


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson, JASA 1927)."""
    if n == 0:
        return (0.0, 1.0)
    share, z2 = hits / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, centre - half), min(1.0, centre + half))


def paired_interval(harm: int, help_: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wald interval of a paired difference of two accuracies.

    ``harm`` samples only the first model has right, ``help_`` only the second; their difference is
    the mean of ``n`` values in {-1, 0, 1}. Meant for thousands of samples.
    """
    mean = (harm - help_) / n
    half = Z95 * math.sqrt(max(0.0, (harm + help_) / n - mean * mean) / n)
    return (mean - half, mean + half)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over turns of ``above[i] / below[i]``; NaN without turns."""
    ratios = [a / b for a, b in zip(above, below, strict=True) if b > 0]
    return float(np.median(ratios)) if ratios else math.nan
