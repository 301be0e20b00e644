"""The models of a pool with what they answer, and the cascades that can be made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from calibration.costs import Costs
from kernels import reference

EXHAUSTIVE = 3
"""Stages up to which all cascades are tried; longer ones grow from the best that are shorter."""
BEAM = 10
"""How many of the best cascades of one length grow by a stage."""

Chain = tuple[str, ...]
"""The stages of a cascade, the large model last."""


@dataclass(frozen=True)
class Pool:
    """What the models of a pool answer on the selection split.

    Attributes
    ----------
    logits
        f32 [n, K] by model.
    labels
        i32 [n].
    large
        The model that every cascade ends in and is compared with.
    """

    logits: Mapping[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int32]
    large: str

    @cached_property
    def answers(self) -> Mapping[str, npt.NDArray[np.int32]]:
        """What each model alone answers, i32 [n]."""
        return {name: reference.softmax(z).label for name, z in self.logits.items()}

    @cached_property
    def right(self) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Where each model alone is right, bool [n]."""
        return {name: label == self.labels for name, label in self.answers.items()}

    def accuracy(self, name: str) -> float:
        """Return the accuracy of a model alone."""
        return float(self.right[name].mean())


def cheaper(pool: Pool, costs: Costs) -> list[str]:
    """Return the models that alone cost less than the large one, cheapest first."""
    limit = costs.alone(pool.large)
    return sorted((name for name in pool.logits if costs.alone(name) < limit), key=costs.alone)


def chains(savers: Sequence[str], large: str, length: int) -> Iterator[Chain]:
    """Yield all cascades of ``length`` stages, in every order, that end in the large model."""
    for chosen in itertools.permutations(savers, length - 1):
        yield (*chosen, large)


def grown(shorter: Sequence[Chain], savers: Sequence[str]) -> list[Chain]:
    """Return every cascade that one of ``shorter`` becomes by one more saver, anywhere in it."""
    longer = {
        (*chain[:place], saver, *chain[place:]): None
        for chain in shorter
        for saver in savers
        if saver not in chain
        for place in range(len(chain))
    }
    return list(longer)
