"""Forecasts of what the screen found best: the exact test on resampled selection splits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from calibration.certificates import Forecast, forecast
from calibration.chains import Chain
from calibration.errors import CertificationRefused
from calibration.screen import Candidate, Screen
from runtime.schema import Threshold, ThresholdPath
from runtime.simulation import Simulation, Weighted


class Estimate(NamedTuple):
    """A candidate's forecast; ``costs`` per sample are at the forecast's quantile levels.

    ``accuracy`` is on the selection split, at the thresholds of the median.
    """

    candidate: Candidate
    path: ThresholdPath
    forecast: Forecast
    costs: tuple[float, ...]
    accuracy: float

    @property
    def names(self) -> Chain:
        """The stages."""
        return self.candidate.names

    @property
    def cost(self) -> float:
        """Cost per sample at the median."""
        return self.costs[self.forecast.median]

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """Thresholds at the median."""
        return self.forecast.median_thresholds

    @property
    def escalation_rates(self) -> tuple[float, ...]:
        """Share of all samples that each gate sends on, at the median."""
        return self.forecast.median_rates


def rank(
    screen: Screen,
    candidates: Iterable[Candidate],
    *,
    draws: int,
) -> list[Estimate]:
    """Forecast candidates and return those that may be certified, cheapest first.

    Of equal costs the earlier candidate is first.

    Parameters
    ----------
    draws
        Resamplings of each forecast.
    """
    estimates = [_forecast(screen, candidate, draws) for candidate in candidates]
    return sorted((item for item in estimates if item), key=lambda item: item.cost)


def _forecast(screen: Screen, candidate: Candidate, draws: int) -> Estimate | None:
    pool, claim, names = screen.pool, screen.claim, candidate.names
    logits, path = [pool.logits[name] for name in names], screen.path(candidate)
    rule: dict[str, Any] = {
        "scores": candidate.options.scores,
        "combination": _weighted(candidate),
        "gate_scores": screen.gate_scores(candidate),
    }
    try:
        found = forecast(
            logits,
            pool.labels,
            path,
            n=screen.size,
            epsilon=claim.epsilon,
            delta=claim.delta,
            method=claim.method,
            draws=draws,
            **rule,
        )
    except CertificationRefused:
        return None
    costs = screen.costs.cascade(names, np.array(found.escalation_rates))
    thresholds = found.median_thresholds
    drop = Simulation(logits, pool.labels, **rule).drops(thresholds).mean()
    accuracy = pool.accuracy(pool.large) - float(drop)
    return Estimate(candidate, path, found, tuple(costs.tolist()), accuracy)


def _weighted(candidate: Candidate) -> Weighted | None:
    combination = candidate.options.combination
    if combination is None:
        return None
    return candidate.names.index(combination.stage), combination.weight
