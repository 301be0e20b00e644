"""Options of a cascade beside the plain rule: scores, thresholds by class, combined answers.

All of them are compared on the samples that also chose the cascade, so each has to cost less on
97.5 % of the resampled splits. Of scores only those take part that `calibration.scores` chose. The
plain cascade is forecast beside the one with what passed, and stays where that does not cost less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from calibration.bootstrap import Interval, intervals
from calibration.chains import Chain
from calibration.class_offsets import STRENGTHS
from calibration.curves import Weights
from calibration.scores import PLAIN
from calibration.screen import Candidate, Options, Screen
from runtime.schema import Combination, Score

COMBINATION_WEIGHTS = (0.1, 0.25, 0.5, 1.0)
"""Of an earlier stage's logits in the last stage's answers, beside none."""

Kind = Literal["scores", "classes", "combination"]


class Trial(NamedTuple):
    """The best option of a kind, against the same cascade without it.

    Attributes
    ----------
    options
        With it.
    tried
        How many of the kind were compared.
    ratio
        Of the cost with it to that without, by the screen: of their means over resampled splits.
    interval
        Of the ratio on one of them.
    promising
        Whether it is worth a forecast, which then decides.
    """

    names: Chain
    kind: Kind
    options: Options
    tried: int
    ratio: float
    interval: Interval
    promising: bool


class Improved(NamedTuple):
    """A cascade with the options that look worth it, and all that were tried on it."""

    candidate: Candidate
    trials: list[Trial]


@dataclass(frozen=True)
class OptionSearch:
    """Finds the options of cascades.

    Parameters
    ----------
    weights
        i64 [draws, n] of the paired bootstrap.
    scores, classes, combinations
        Which options are tried.
    """

    screen: Screen
    weights: Weights
    scores: bool = True
    classes: bool = True
    combinations: bool = True

    def improved(self, names: Chain) -> Improved:
        """Return a cascade with the options that look worth it."""
        plain = best = self.screen.best(names)
        trials = []
        for kind in self._kinds():
            others = list(self._variants(kind, plain, best))
            if others:
                trial, other = self._tried(kind, best, others)
                trials.append(trial)
                best = other if trial.promising else best
        return Improved(best, trials)

    def _kinds(self) -> Iterator[Kind]:
        if self.scores:
            yield "scores"
        if self.classes:
            yield "classes"
        if self.combinations:
            yield "combination"

    def _variants(self, kind: Kind, plain: Candidate, best: Candidate) -> Iterator[Candidate]:
        names = plain.names
        if kind == "scores":
            for scores in self._score_sets(names):
                yield self.screen.best(names, Options(scores))
        elif kind == "classes":
            for strength in STRENGTHS:
                yield self.screen.best(names, plain.options._replace(strength=strength))
        else:
            for stage in names[:-1]:
                for weight in COMBINATION_WEIGHTS:
                    combination = Combination(stage=stage, weight=weight)
                    options = best.options._replace(combination=combination)
                    yield self.screen.at(names, best.offsets, options)

    def _chosen(self, names: Chain) -> tuple[Score, ...]:
        choices = self.screen.choices
        return tuple(choices[name].score if name in choices else PLAIN for name in names[:-1])

    def _score_sets(self, names: Chain) -> list[tuple[Score, ...]]:
        """Return the chosen scores of all gates, and of each gate alone, without the plain ones."""
        chosen = self._chosen(names)
        plain = (PLAIN,) * len(chosen)
        alone = [(*plain[:gate], chosen[gate], *plain[gate + 1 :]) for gate in range(len(chosen))]
        return [scores for scores in dict.fromkeys([*alone, chosen]) if scores != plain]

    def _tried(
        self, kind: Kind, best: Candidate, others: list[Candidate]
    ) -> tuple[Trial, Candidate]:
        before = self.screen.resampled(best, self.weights)
        costs = [self.screen.resampled(item, self.weights) for item in others]
        place = int(np.argmin([values.mean() for values in costs]))
        (interval,) = intervals((costs[place] / before)[:, np.newaxis])
        other, ratio = others[place], float(costs[place].mean() / before.mean())
        trial = Trial(
            best.names, kind, other.options, len(others), ratio, interval, interval.high < 1
        )
        return trial, other
