"""The search itself: cost, screen, forecast and bootstrap of every cascade of a pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich.progress import Progress

from calibration.bootstrap import Interval, intervals, resampling_weights
from calibration.bounds import smallest_passing_n
from calibration.candidates import Selection, saturated, too_costly
from calibration.chains import BEAM, EXHAUSTIVE, Chain, chains, cheaper, grown
from calibration.costs import Costs
from calibration.errors import CalibrationError
from calibration.front import Single, static_front
from calibration.options import OptionSearch, Trial
from calibration.paper import PaperScore, paper_score
from calibration.ranking import Estimate, rank
from calibration.recorded import Claim
from calibration.scores import Choice, choose_score
from calibration.screen import Candidate, Float64, Screen

REFINING = 25
"""Resampled splits that offsets are refined on."""


@dataclass(frozen=True)
class Tried:
    """Which options beside the plain rule a search tries."""

    scores: bool = True
    learned: bool = False
    classes: bool = True
    combinations: bool = True


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
    optioned
        How many of those, the best by the screen, have options tried on them.
    resamplings
        Of the paired bootstrap.
    options
        Which options beside the plain rule are tried.
    """

    claim: Claim
    size: int
    lengths: Sequence[int] = (2, 3)
    finalists: int = 12
    optioned: int = 6
    draws: int = 20
    resamplings: int = 100
    options: Tried = field(default_factory=Tried)


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
    choices
        The score that was chosen for each saver; empty where none was asked for.
    trials
        The options that were tried on the finalists.
    """

    selection: Selection
    costs: Costs
    ranking: list[Ranked]
    paper: list[PaperScore]
    singles: list[Single]
    left_out: dict[str, str]
    choices: dict[str, Choice]
    trials: list[Trial]

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
    options: OptionSearch = field(init=False)

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
        pool, tried = self.selection.pool, self.scope.options
        self.screen = Screen(pool, self.costs, claim, self.scope.size)
        self.options = OptionSearch(
            self.screen,
            resampling_weights(len(pool.labels), self.scope.resamplings),
            tried.scores or tried.learned,
            tried.classes,
            tried.combinations,
        )

    def run(self) -> Found:
        """Search."""
        pool = self.selection.pool
        useless = too_costly(self.selection, self.costs) | self._saturated()
        savers = [name for name in self._savers() if name not in useless]
        self.screen.choices = choices = self._choices(savers)
        screened = self._screened(savers)
        finalists = self._finalists(screened)
        forecast, trials = self._forecast(finalists)
        refused = {item.names for _, item in finalists} - set(forecast)
        kept = [item for item in screened if item.names not in refused]
        singles = [Single(n, self.costs.alone(n), pool.accuracy(n)) for n in pool.logits]
        return Found(
            self.selection,
            self.costs,
            self._ranking(kept, forecast),
            self._paper(),
            sorted(singles, key=lambda single: single.cost),
            {**self.selection.left_out, **useless},
            choices,
            trials,
        )

    def _choices(self, savers: Sequence[str]) -> dict[str, Choice]:
        """Choose a score for each saver, where other scores than max-softmax are asked for."""
        pool, tried = self.selection.pool, self.scope.options
        if not (tried.scores or tried.learned):
            return {}
        large = pool.right[pool.large]
        harmed = {name: large & ~pool.right[name] for name in savers}
        task = self.progress.add_task("scores", total=len(harmed))
        choices = {}
        for name, flags in harmed.items():
            choices[name] = choose_score(
                pool.logits[name],
                flags,
                self.options.weights,
                computed=tried.scores,
                learning=tried.learned,
            )
            self.progress.advance(task)
        return choices

    def _finalists(self, screened: Sequence[Candidate]) -> list[tuple[int, Candidate]]:
        """Return the best of each length with their places.

        The screen is kinder to long cascades than the test is.
        """
        limit = self.costs.alone(self.selection.pool.large)
        paying = [item for item in screened if item.cost < limit]
        of_length = [[c for c in paying if len(c.names) == n] for n in self.scope.lengths]
        return [item for items in of_length for item in enumerate(items[: self.scope.finalists])]

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

    def _forecast(
        self, finalists: Sequence[tuple[int, Candidate]]
    ) -> tuple[dict[Chain, Estimate], list[Trial]]:
        """Forecast finalists, the best of each length plain and with what looks worth it."""
        task = self.progress.add_task("forecast", total=len(finalists))
        forecast: dict[Chain, Estimate] = {}
        trials = []
        for place, item in finalists:
            candidates = [item]
            if place < self.scope.optioned:
                improved = self.options.improved(item.names)
                trials += improved.trials
                candidates = [self.screen.best(item.names), improved.candidate]
            weights = self.options.weights[:REFINING]
            refined = (self.screen.refined(candidate, weights) for candidate in candidates)
            # On ties the first, and so the simpler one.
            found = rank(self.screen, dict.fromkeys(refined), draws=self.scope.draws)
            if found:
                forecast[item.names] = found[0]
            self.progress.advance(task)
        return forecast, trials

    def _ranking(
        self, candidates: Sequence[Candidate], forecast: Mapping[Chain, Estimate]
    ) -> list[Ranked]:
        """Return forecast candidates by that cost, then the others by the screen's."""
        judged = (forecast[item.names].candidate for item in candidates if item.names in forecast)
        first = sorted(judged, key=lambda item: forecast[item.names].cost)
        ordered = [*first, *(item for item in candidates if item.names not in forecast)]
        costs = self._resampled(ordered)
        of_cost, of_ratio = intervals(costs), intervals(costs / costs[:, :1])
        return [
            Ranked(item, forecast.get(item.names), cost, ratio)
            for item, cost, ratio in zip(ordered, of_cost, of_ratio, strict=True)
        ]

    def _resampled(self, candidates: Sequence[Candidate]) -> Float64:
        """Return each candidate's cost on each resampled split, f64 [resamplings, candidates]."""
        weights = self.options.weights
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
