"""Where a cascade stands against single models: what it costs beside the cheapest as accurate.

The samples are a draw, so both the cascade's cost and which single model is as accurate as it are
subject to chance. A paired bootstrap draws them anew, the same ones for the cascade and every
single model; where none is as accurate, the cascade costs no share of any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.bootstrap import Interval, intervals, resampling_blocks
from calibration.costs import Costs, Floats
from calibration.curves import Weights
from runtime.simulation import Simulation, Vector

Flags = npt.NDArray[np.bool_]

GOAL = 0.5
"""At most this share of the cheapest single model as accurate is worth a cascade's trouble."""
DRAWS = 1000

Verdict = Literal["yes", "not beyond chance", "no"]


@dataclass(frozen=True)
class Contest:
    """A cascade and single models on the same samples.

    Attributes
    ----------
    names
        Stages of the cascade.
    right
        Where it is right, bool [n].
    stage
        Which stage answers, i8 [n].
    singles
        Where each model alone is right, bool [n].
    """

    names: tuple[str, ...]
    right: Flags
    stage: npt.NDArray[np.int8]
    singles: Mapping[str, Flags]

    @property
    def accuracy(self) -> float:
        """Of the cascade."""
        return float(self.right.mean())


class Standing(NamedTuple):
    """What a cascade costs beside the cheapest single model of at least its accuracy.

    Attributes
    ----------
    single, single_cost
        That model; None and infinite where no single model is as accurate.
    share, interval
        The cascade's cost over the model's, and its 95 % interval by the paired bootstrap.
    drawn
        In which share of the draws each model was the cheapest as accurate; the rest had none.
    """

    unit: str
    cost: float
    single: str | None
    single_cost: float
    share: float
    interval: Interval
    drawn: dict[str, float]

    @property
    def verdict(self) -> Verdict:
        """Whether the cascade costs at most `GOAL` of the model, on these samples and beyond."""
        if self.share > GOAL:
            return "no"
        return "yes" if self.interval.high <= GOAL else "not beyond chance"


def contest(
    names: Sequence[str],
    simulation: Simulation,
    thresholds: Vector,
    labels: npt.NDArray[np.int32],
    singles: Mapping[str, Flags],
) -> Contest:
    """Return a cascade at its thresholds against single models."""
    label, stage = simulation.answers(thresholds)
    return Contest(tuple(names), label == labels, stage, singles)


def standing(found: Contest, costs: Costs, *, draws: int = DRAWS) -> Standing:
    """Return what the cascade costs beside the cheapest single model of at least its accuracy.

    Parameters
    ----------
    costs
        Of the stages and of every single model.
    draws
        Of the bootstrap.
    """
    n = len(found.right)
    once = np.ones((1, n), np.int64)
    cost, alone, which = _compared(found, costs, once)
    blocks = [_compared(found, costs, weights) for weights in resampling_blocks(n, draws)]
    drawn_cost, drawn_alone, drawn = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    names = list(found.singles)
    times = np.bincount(drawn + 1, minlength=len(names) + 1)[1:] / draws
    return Standing(
        costs.unit,
        float(cost[0]),
        names[which[0]] if which[0] >= 0 else None,
        float(alone[0]),
        float(cost[0] / alone[0]),
        intervals((drawn_cost / drawn_alone)[:, None])[0],
        {name: float(share) for name, share in zip(names, times, strict=True) if share},
    )


def _compared(
    found: Contest, costs: Costs, weights: Weights
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Return f64 [draws] of the cascade's cost and of the model's, and which that is; -1 if none.

    Parameters
    ----------
    weights
        i64 [draws, n], how often each sample was drawn.
    """
    gates = range(len(found.names) - 1)
    # Sums of at most n ones and integers: float64 holds them exactly, and multiplies faster.
    drawn = weights.astype(np.float64)
    sent = np.stack([drawn @ (found.stage > gate) for gate in gates], axis=1)
    cost = costs.cascade(found.names, sent / weights.sum(1, keepdims=True))
    hits = np.stack([drawn @ right for right in found.singles.values()], axis=1)
    alone = np.array([costs.alone(name) for name in found.singles])
    price = np.where(hits >= (drawn @ found.right)[:, None], alone, np.inf)
    cheapest = price.argmin(1)
    lowest = price[np.arange(len(price)), cheapest]
    return cost, lowest, np.where(np.isfinite(lowest), cheapest, -1)
