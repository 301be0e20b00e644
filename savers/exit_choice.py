"""Which exits become stages: the cascade that is expected to cost least, by the selection split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.certificates import Forecast, forecast
from calibration.chains import Chain, Pool
from calibration.costs import Floats, Unit
from calibration.errors import CertificationRefused
from calibration.recorded import Claim
from calibration.screen import Screen
from runtime.schema import Threshold, ThresholdPath
from runtime.simulation import Simulation
from savers.exits import ExitSequence

REST = "rest"
"""Name of the last stage: what is left of the large model."""
FINALISTS = 10
_EXIT = re.compile(r"exit(\d+)")

Logits = npt.NDArray[np.float32]


def exit_name(position: int) -> str:
    """Return the name of the stage that ends in the exit after this block."""
    return f"exit{position}"


def exit_positions(names: Sequence[str]) -> tuple[int, ...]:
    """Return the blocks after which a cascade has exits."""
    return tuple(int(found[1]) for name in names if (found := _EXIT.fullmatch(name)))


@dataclass(frozen=True)
class SegmentCosts:
    """Multiply-accumulates of cascades whose later stages are parts of one large model.

    Attributes
    ----------
    macs
        Of the models that are whole.
    blocks
        Of the large model up to each block's end, and of the whole.
    exits
        None for cascades without exits.
    """

    macs: Mapping[str, int]
    blocks: Sequence[int]
    exits: ExitSequence | None = None
    unit: Unit = "macs"

    def alone(self, name: str) -> float:
        """Return what a whole model costs by itself."""
        return float(self.blocks[-1] if name == REST else self.macs[name])

    def stages(self, names: Sequence[str]) -> list[int]:
        """Return what a sample costs in each stage of a cascade."""
        costs, after = [], 0
        for name in names:
            if name in self.macs:
                costs.append(self.macs[name])
                continue
            position = len(self.blocks) if name == REST else exit_positions([name])[0]
            costs.append(self._segment(position, after, ends=name == REST))
            after = position
        return costs

    def cascade(self, names: Sequence[str], rates: Floats) -> Floats:
        """Return the mean over samples, f64 [...] for rates f64 [..., gates]."""
        first, *later = self.stages(names)
        total: Floats = first + np.asarray(rates) @ np.array(later, np.float64)
        return total

    def _segment(self, position: int, after: int, *, ends: bool) -> int:
        blocks = self.blocks[position - 1] - (self.blocks[after - 1] if after else 0)
        if ends or self.exits is None:
            return blocks
        return blocks + self.exits.macs(position, after=after)


@dataclass(frozen=True)
class Trial:
    """One trained set of exits, and its logits f32 [exits, n, K] on the selection split."""

    exits: ExitSequence
    logits: Logits

    @property
    def title(self) -> str:
        """What tells it from others."""
        return f"d {self.exits.width}, {len(self.exits.layers)} layers"


class Screened(NamedTuple):
    """A cascade with the path that costs least by the screen, and that cost per sample."""

    names: Chain
    path: ThresholdPath
    cost: float
    trial: Trial | None


class Estimate(NamedTuple):
    """A cascade and what is forecast of it; not certified.

    Attributes
    ----------
    costs
        Multiply-accumulates per sample at the forecast's quantile levels.
    drop
        In accuracy against the large model, on the selection split, at the median's thresholds.
    """

    names: Chain
    path: ThresholdPath
    forecast: Forecast
    costs: tuple[float, ...]
    drop: float
    trial: Trial | None

    @property
    def cost(self) -> float:
        """Multiply-accumulates per sample at the median."""
        return self.costs[self.forecast.median]

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """Thresholds at the median."""
        return self.forecast.median_thresholds

    @property
    def accept_rates(self) -> tuple[float, ...]:
        """Share of all samples that each stage answers, at the median."""
        reached = (1.0, *self.forecast.median_rates, 0.0)
        return tuple(here - on for here, on in pairwise(reached))


@dataclass(frozen=True)
class Question:
    """What the exits are chosen for.

    Attributes
    ----------
    savers
        The stages before the exits, in their order.
    answers
        f32 [n, K] of the selection split, by model; of the large one as `REST`.
    labels
        i32 [n].
    macs, blocks
        As of `SegmentCosts`.
    claim, size
        What will be certified, and on how many samples.
    """

    savers: Chain
    answers: Mapping[str, Logits]
    labels: npt.NDArray[np.int32]
    macs: Mapping[str, int]
    blocks: Sequence[int]
    claim: Claim
    size: int

    def pool(self, trial: Trial | None) -> Pool:
        """Return the models' answers, with those of a trial's exits."""
        exits = (
            {}
            if trial is None
            else {exit_name(place): logits for place, logits in enumerate(trial.logits, 1)}
        )
        return Pool({**self.answers, **exits}, self.labels, REST)

    def costs(self, trial: Trial | None) -> SegmentCosts:
        """Return the costs of cascades with a trial's exits."""
        return SegmentCosts(self.macs, self.blocks, trial.exits if trial else None)

    def screen(self, chains: Sequence[Chain], trial: Trial | None = None) -> list[Screened]:
        """Return cascades with the offsets that cost least by the screen."""
        screen = Screen(self.pool(trial), self.costs(trial), self.claim, self.size)
        best = [screen.best(names) for names in chains]
        return [Screened(item.names, screen.path(item), item.cost, trial) for item in best]

    def forecast(self, found: Screened, *, draws: int) -> Estimate | None:
        """Return what is forecast of a cascade; None if its claim is refused every time."""
        names, path, _, trial = found
        pool, claim = self.pool(trial), self.claim
        logits = [pool.logits[name] for name in names]
        try:
            made = forecast(
                logits,
                self.labels,
                path,
                n=self.size,
                epsilon=claim.epsilon,
                delta=claim.delta,
                method=claim.method,
                draws=draws,
            )
        except CertificationRefused:
            return None
        costs = self.costs(trial).cascade(names, np.array(made.escalation_rates))
        thresholds = made.median_thresholds
        drop = float(Simulation(logits, self.labels).drops(thresholds).mean())
        return Estimate(names, path, made, tuple(costs.tolist()), drop, trial)

    def plain(self, names: Chain, *, draws: int) -> Estimate | None:
        """Return what is forecast of a cascade without exits."""
        return self.forecast(self.screen([names])[0], draws=draws)


def chains_with_exits(savers: Chain, positions: int, *, most: int) -> Iterator[Chain]:
    """Yield all cascades of the savers, one to ``most`` exits, and the rest of the large model."""
    for count in range(1, most + 1):
        for chosen in combinations(range(1, positions + 1), count):
            yield (*savers, *map(exit_name, chosen), REST)


def screen_trials(
    question: Question,
    trials: Sequence[Trial],
    *,
    most: int = 2,
    advance: Callable[[], object] = lambda: None,
) -> list[Screened]:
    """Return every cascade of every trial with its cost by the screen, cheapest first.

    Parameters
    ----------
    most
        Exits of a cascade at most.
    advance
        Told the end of each trial.
    """
    found: list[Screened] = []
    for trial in trials:
        chains = list(chains_with_exits(question.savers, len(trial.logits), most=most))
        found += question.screen(chains, trial)
        advance()
    return sorted(found, key=lambda item: item.cost)


def choose_exits(
    question: Question, screened: Sequence[Screened], *, draws: int
) -> dict[int, Estimate]:
    """Forecast the best few cascades of each number of exits; return the cheapest, by number.

    A number is left out if no forecast passes the claim.
    """
    chosen = {}
    for count in sorted({len(exit_positions(item.names)) for item in screened}):
        alike = [item for item in screened if len(exit_positions(item.names)) == count]
        forecasts = [question.forecast(item, draws=draws) for item in alike[:FINALISTS]]
        passing = [item for item in forecasts if item]
        if passing:
            chosen[count] = min(passing, key=lambda item: item.cost)
    return chosen
