"""Bars fixed before an experiment, and what the experiment says about them.

A bar is met, or not met, if the whole 95 % interval lies on one side of it. The interval is that of
the paired bootstrap: seeds and units (test images, layers) are each drawn anew with replacement,
the same ones for everything that is compared. Three seeds say little about the spread over seeds;
the interval says how much of a difference the test images alone could make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

Floats = npt.NDArray[np.float64]
Outcome = Literal["MET", "NOT MET", "UNRESOLVED", "REPORTED"]

RESAMPLINGS = 2_000
BOOTSTRAP_SEED = 0
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """What an experiment is held against.

    Attributes
    ----------
    claim
        What is claimed, as the reader of a table reads it.
    control
        What it is compared with.
    bound
        The figure is to be at least this, or with ``at_most`` no more.
    unit
        Of the figure.
    """

    claim: str
    control: str
    bound: float
    at_most: bool = False
    unit: str = "points"

    def text(self) -> str:
        """Return the bar as ``>= 3 points``."""
        return f"{'<=' if self.at_most else '>='} {self.bound:g} {self.unit}".rstrip()

    def outcome(self, estimate: Estimate) -> Outcome:
        """Say on which side of the bar the whole interval lies."""
        sign = -1 if self.at_most else 1
        ends = sorted(sign * (end - self.bound) for end in (estimate.low, estimate.high))
        if ends[0] >= 0:
            return "MET"
        return "NOT MET" if ends[1] < 0 else "UNRESOLVED"


@dataclass(frozen=True)
class Verdict:
    """A bar, the figure found, and what follows.

    Attributes
    ----------
    judged
        Whether the bar was fixed for these images and this size of experiment.
    """

    bar: Bar
    estimate: Estimate
    judged: bool = True

    @property
    def outcome(self) -> Outcome:
        """MET, NOT MET, UNRESOLVED where the interval crosses the bar; REPORTED if not judged."""
        return self.bar.outcome(self.estimate) if self.judged else "REPORTED"

    def described(self) -> dict[str, JsonValue]:
        """Return what ``--json`` prints."""
        return {
            "claim": self.bar.claim,
            "control": self.bar.control,
            "bar": self.bar.text(),
            **self.estimate._asdict(),
            "verdict": self.outcome,
        }


def judge(bar: Bar, figure: Callable[..., float], *samples: npt.ArrayLike) -> Verdict:
    """Hold a figure of means against a bar.

    Parameters
    ----------
    figure
        Takes the mean of each of ``samples``, f64 [], and returns the figure in the bar's unit.
    samples
        Paired values, each ``[seeds, units]`` of the same shape.
    """
    return Verdict(bar, paired_bootstrap(figure, *samples))


def paired_bootstrap(figure: Callable[..., float], *samples: npt.ArrayLike) -> Estimate:
    """Return a figure of the means of paired samples ``[seeds, units]``, and its interval."""
    values = np.stack([np.asarray(sample, np.float64) for sample in samples])
    if values.ndim != 3:
        raise ValueError(f"samples: expected [seeds, units], got {list(values.shape[1:])}")
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    _, seeds, units = values.shape
    drawn = [
        _mean(values, rng.integers(0, seeds, (seeds,)), rng.integers(0, units, (units,)))
        for _ in range(RESAMPLINGS)
    ]
    ends = np.quantile(
        [figure(*means) for means in drawn], [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2]
    )
    return Estimate(float(figure(*values.mean((1, 2)))), float(ends[0]), float(ends[1]))


def _mean(values: Floats, seeds: npt.NDArray[np.int64], units: npt.NDArray[np.int64]) -> Floats:
    mean: Floats = values[:, seeds][:, :, units].mean((1, 2))
    return mean
