"""The static front: what single models of a pool reach, which every cascade has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Single(NamedTuple):
    """A model alone: its cost per sample and its accuracy."""

    name: str
    cost: float
    accuracy: float


def static_front(models: Iterable[Single]) -> list[Single]:
    """Return the models that none of lower or equal cost is as accurate as, by rising cost.

    Read as a step function, each reaches from its own cost up to the next one's: between two
    models there is none.
    """
    front: list[Single] = []
    for model in sorted(models, key=lambda item: (item.cost, -item.accuracy)):
        if not front or model.accuracy > front[-1].accuracy:
            front.append(model)
    return front


def cheapest_reaching(front: Sequence[Single], accuracy: float) -> Single | None:
    """Return the cheapest model of at least this accuracy, or None."""
    return next((model for model in front if model.accuracy >= accuracy), None)
