"""Which nodes of a network stay in higher precision, so that its accuracy holds.

Nodes are ranked by the damage that each does when it alone is quantised. Of that ranking the
shortest beginning that keeps the loss within the budget is left unquantised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Model = TypeVar("Model")


@dataclass(frozen=True)
class Settled(Generic[Model]):
    """A model within the budget, and the nodes it keeps, the most sensitive first."""

    model: Model
    kept: tuple[str, ...]


def settle(
    quantise: Callable[[Collection[str]], Model],
    candidates: Sequence[str],
    *,
    holds: Callable[[Model], bool],
    damage: Callable[[Model], float],
    advance: Callable[[], object] = lambda: None,
) -> Settled[Model] | None:
    """Return the model with the fewest nodes kept that holds, or None when only all kept would.

    Parameters
    ----------
    quantise
        Makes the model with the named nodes kept in higher precision.
    candidates
        Nodes that may be kept.
    holds
        Whether a model is within the budget.
    damage
        Of a model in which one candidate is quantised; asked only when not all can be.
    advance
        Told each of the ``len(candidates)`` models that are ranked.

    Notes
    -----
    The number of nodes is found by bisection. The loss need not fall with every node that is kept,
    so fewer might do; but the model that is returned was measured, and holds.
    """
    whole = quantise(())
    if holds(whole):
        return Settled(whole, ())
    order = _ranked(quantise, candidates, damage, advance)
    too_few, enough, found = 0, len(order), None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        model = quantise(order[:middle])
        if holds(model):
            enough, found = middle, model
        else:
            too_few = middle
    return None if found is None else Settled(found, tuple(order[:enough]))


def _ranked(
    quantise: Callable[[Collection[str]], Model],
    candidates: Sequence[str],
    damage: Callable[[Model], float],
    advance: Callable[[], object],
) -> list[str]:
    """Return the candidates, the one that does most damage first."""
    damages = {}
    for name in candidates:
        damages[name] = damage(quantise([other for other in candidates if other != name]))
        advance()
    return sorted(candidates, key=lambda name: -damages[name])
