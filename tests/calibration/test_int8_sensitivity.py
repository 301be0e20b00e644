"""Which nodes are kept in higher precision, on models whose loss is known."""

from __future__ import annotations

import itertools

import pytest

from calibration.sensitivity import settle

NODES = ["a", "b", "c", "d", "e", "f", "g"]
LOSS = {"a": 1, "b": 16, "c": 2, "d": 64, "e": 4, "f": 32, "g": 8}


class Quantiser:
    """A model is the set of quantised nodes; it loses the sum of what they lose."""

    def __init__(self) -> None:
        self.made: list[frozenset[str]] = []

    def __call__(self, keep):
        self.made.append(frozenset(NODES) - set(keep))
        return self.made[-1]


def loss(model: frozenset[str]) -> int:
    return sum(LOSS[name] for name in model)


def run(budget: float, quantise: Quantiser | None = None, **options):
    return settle(
        quantise or Quantiser(), NODES, holds=lambda m: loss(m) <= budget, damage=loss, **options
    )


def test_nothing_is_kept_where_all_holds_and_nothing_is_ranked() -> None:
    quantise = Quantiser()
    settled = run(127, quantise)
    assert (settled.kept, settled.model) == ((), frozenset(NODES))
    assert len(quantise.made) == 1


@pytest.mark.parametrize(
    ("budget", "kept"),
    [(126, "d"), (63, "d"), (62, "df"), (31, "df"), (15, "dfb"), (7, "dfbg"), (1, "dfbgec")],
)
def test_the_fewest_of_the_most_sensitive_are_kept(budget: int, kept: str) -> None:
    settled = run(budget)
    assert settled.kept == tuple(kept)
    assert settled.model == frozenset(NODES) - set(kept)
    assert loss(settled.model) <= budget


def test_no_model_at_all_where_only_fp32_would_hold() -> None:
    assert run(0.5) is None
    assert settle(Quantiser(), [], holds=lambda m: False, damage=loss) is None


def test_each_node_is_ranked_by_the_damage_it_does_alone() -> None:
    quantise = Quantiser()
    ranked = []
    run(40, quantise, advance=lambda: ranked.append(quantise.made[-1]))
    assert ranked == [frozenset(name) for name in NODES]


def test_bisection_measures_few_models() -> None:
    quantise = Quantiser()
    run(1, quantise)
    assert len(quantise.made) <= 1 + len(NODES) + 3


@pytest.mark.parametrize("order", list(itertools.permutations(range(7)))[9::500])
def test_what_is_returned_was_measured_even_where_losses_do_not_add_up(order) -> None:
    good = {frozenset(NODES[k] for k in order[:size]) for size in range(0, 6, 2)}
    settled = settle(
        Quantiser(), NODES, holds=lambda model: model in good,
        damage=lambda model: order.index(NODES.index(min(model))),
    )  # fmt: skip
    assert settled is None or settled.model in good
