"""The search itself: cost, screen, forecast and bootstrap of every cascade of a pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich.progress import Progress

from calibration.bounds import smallest_passing_n
from calibration.candidates import Selection, saturated, too_costly
from calibration.costs import Costs
from calibration.errors import CalibrationError
from calibration.front import Single, static_front
from calibration.paper import PaperScore, paper_score
from calibration.ranking import (
    BEAM,
    EXHAUSTIVE,
    Candidate,
    Chain,
    Estimate,
    Float64,
    Interval,
    Screen,
    chains,
    cheaper,
    grown,
    intervals,
    rank,
    resampling_weights,
)
from calibration.recorded import Claim


@dataclass(frozen=True)
class Scope:
    """How far a search goes.

    Attributes
    ----------
    lengths
        Numbers of stages.
    size
        Samples that will certify.
    finalists
        Cascades of each length that are forecast with the exact test, ``draws`` times each.
    resamplings
        Of the paired bootstrap.
    """

    claim: Claim
    size: int
    lengths: Sequence[int] = (2, 3)
    finalists: int = 12
    draws: int = 20
    resamplings: int = 100


class Ranked(NamedTuple):
    """A cascade in the ranking.

    Attributes
    ----------
    estimate
        None for one that was only screened.
    interval
        Of the screen's cost, 95 %, by the paired bootstrap.
    to_best
        The same of the ratio of its cost to the cost of the first in the ranking.
    """

    candidate: Candidate
    estimate: Estimate | None
    interval: Interval
    to_best: Interval

    @property
    def cost(self) -> float:
        """Per sample, at the median of the forecast; if there is none, by the screen."""
        return self.estimate.cost if self.estimate else self.candidate.cost

    @property
    def names(self) -> Chain:
        """The stages."""
        return self.candidate.names


@dataclass(frozen=True)
class Found:
    """What a search found, best first.

    Attributes
    ----------
    ranking
        All cascades that the claim allows, those that were forecast before the others.
    paper
        The paper's own score of each saver, best first.
    singles
        All single models, by cost.
    left_out
        Why models are in no cascade.
    """

    selection: Selection
    costs: Costs
    ranking: list[Ranked]
    paper: list[PaperScore]
    singles: list[Single]
    left_out: dict[str, str]

    @property
    def alone(self) -> float:
        """Cost per sample of the large model alone."""
        return self.costs.alone(self.selection.pool.large)

    @property
    def front(self) -> list[Single]:
        """The static front of single models."""
        return static_front(self.singles)

    @property
    def paying(self) -> list[Estimate]:
        """Forecast cascades that are expected to cost less than the large model alone."""
        forecast = [item.estimate for item in self.ranking if item.estimate]
        return [estimate for estimate in forecast if estimate.cost < self.alone]


@dataclass
class SaverSearch:
    """Finds the cheapest cascade of a pool at a claim, on its selection split.

    Raises
    ------
    CalibrationError
        When the samples that will certify are too few for the claim.
    """

    selection: Selection
    costs: Costs
    scope: Scope
    progress: Progress
    screen: Screen = field(init=False)

    def __post_init__(self) -> None:
        """Refuse a claim that no number of lossless samples could support."""
        claim = self.scope.claim
        needed = smallest_passing_n(epsilon=claim.epsilon, delta=claim.delta, method=claim.method)
        if self.scope.size < needed:
            raise CalibrationError(
                f"{self.scope.size} samples are too few to certify a drop of {claim.epsilon:g} at "
                f"delta {claim.delta:g} with {claim.method}: even without any loss it takes "
                f"{needed}. Certify on more samples, or claim less."
            )
        self.screen = Screen(self.selection.pool, self.costs, claim, self.scope.size)

    def run(self) -> Found:
        """Search."""
        pool = self.selection.pool
        useless = too_costly(self.selection, self.costs) | self._saturated()
        screened = self._screened([name for name in self._savers() if name not in useless])
        finalists = self._finalists(screened)
        forecast = {item.names: item for item in self._forecast(finalists)}
        refused = {item.names for item in finalists} - set(forecast)
        singles = [Single(n, self.costs.alone(n), pool.accuracy(n)) for n in pool.logits]
        return Found(
            self.selection,
            self.costs,
            self._ranking([item for item in screened if item.names not in refused], forecast),
            self._paper(),
            sorted(singles, key=lambda single: single.cost),
            {**self.selection.left_out, **useless},
        )

    def _finalists(self, screened: Sequence[Candidate]) -> list[Candidate]:
        """Return the best of each length: the screen is kinder to long cascades than the test."""
        limit = self.costs.alone(self.selection.pool.large)
        paying = [item for item in screened if item.cost < limit]
        of_length = [[c for c in paying if len(c.names) == n] for n in self.scope.lengths]
        return [item for items in of_length for item in items[: self.scope.finalists]]

    def _savers(self) -> list[str]:
        return cheaper(self.selection.pool, self.costs)

    def _screened(self, savers: Sequence[str]) -> list[Candidate]:
        """Return the candidates of the wanted lengths, cheapest first."""
        task = self.progress.add_task("screen", total=None)
        wanted: list[Candidate] = []
        best: list[Candidate] = []
        for length in range(2, max(self.scope.lengths) + 1):
            found = []
            for chain in self._chains(savers, length, best):
                found.append(self.screen.best(chain))
                self.progress.advance(task)
            best = sorted(found, key=lambda item: item.cost)
            wanted += best if length in self.scope.lengths else []
        return sorted(wanted, key=lambda item: item.cost)

    def _chains(
        self, savers: Sequence[str], length: int, shorter: Sequence[Candidate]
    ) -> Iterable[Chain]:
        if length <= EXHAUSTIVE:
            return chains(savers, self.selection.pool.large, length)
        return grown([item.names for item in shorter[:BEAM]], savers)

    def _forecast(self, finalists: Sequence[Candidate]) -> list[Estimate]:
        task = self.progress.add_task("forecast", total=len(finalists))
        return rank(
            self.screen,
            finalists,
            draws=self.scope.draws,
            advance=lambda: self.progress.advance(task),
        )

    def _ranking(
        self, candidates: Sequence[Candidate], forecast: Mapping[Chain, Estimate]
    ) -> list[Ranked]:
        """Return forecast candidates by that cost, then the others by the screen's."""
        first = sorted(
            (c for c in candidates if c.names in forecast), key=lambda c: forecast[c.names].cost
        )
        ordered = [*first, *(item for item in candidates if item.names not in forecast)]
        costs = self._resampled(ordered)
        of_cost, of_ratio = intervals(costs), intervals(costs / costs[:, :1])
        return [
            Ranked(item, forecast.get(item.names), cost, ratio)
            for item, cost, ratio in zip(ordered, of_cost, of_ratio, strict=True)
        ]

    def _resampled(self, candidates: Sequence[Candidate]) -> Float64:
        """Return each candidate's cost on each resampled split, f64 [resamplings, candidates]."""
        n = len(self.selection.pool.labels)
        weights = resampling_weights(n, self.scope.resamplings)
        task = self.progress.add_task("intervals", total=len(candidates))
        costs = np.empty((self.scope.resamplings, len(candidates)))
        for column, item in enumerate(candidates):
            costs[:, column] = self.screen.resampled(item, weights)
            self.progress.advance(task)
        return costs

    def _paper(self) -> list[PaperScore]:
        """Score every saver that has fewer multiply-accumulates than the large model."""
        pool, cards = self.selection.pool, self.selection.cards
        limit = cards[pool.large].macs
        scores = [
            paper_score(
                name,
                pool.logits[name],
                pool.logits[pool.large],
                pool.labels,
                cost_ratio=cards[name].macs / limit,
            )
            for name in pool.logits
            if cards[name].macs < limit
        ]
        return sorted(scores, key=lambda score: score.delta_c)

    def _saturated(self) -> dict[str, str]:
        found = {name: self.screen.kept_at_once(name) for name in self._savers()}
        return {
            name: saturated(kept) for name, (kept, passes) in found.items() if kept and not passes
        }
