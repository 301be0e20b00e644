"""Which factors a network's matrices should have, under a budget for all of the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime.errors import InputError
from savers.kronecker_network import dense_modules, matrix_size, parameters_with
from savers.kronecker_shapes import Factoring, Limit, propose
from savers.networks import count_macs

SHARES = [percent / 100 for percent in range(99, 0, -1)]


@dataclass(frozen=True)
class Budget:
    """The most that a network may have, with everything in it; None is no limit."""

    parameters: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class _Matrix:
    """A matrix and how many vectors it is multiplied with in one sample; 0 for an embedding."""

    name: str
    rows: int
    columns: int
    vectors: int

    def proposal(self, share: float, budget: Budget) -> Factoring | None:
        """Return factors with a share of the dense cost; None where there are none so small."""
        most = share * self.rows * self.columns
        limit = Limit(
            parameters=None if budget.parameters is None else most,
            macs=None if budget.macs is None or self.vectors == 0 else most,
        )
        try:
            return propose(self.rows, self.columns, limit)
        except InputError:
            return None


def plan_network(
    network: nn.Module,
    names: Iterable[str],
    budget: Budget,
    *,
    shape: tuple[int, int, int] = (1, 28, 28),
) -> dict[str, Factoring]:
    """Return factors for named modules that keep a network within a budget.

    Each gets the same share of what it costs dense, the largest with which everything fits. One
    that has no factors so small stays as it is and is not in the plan.

    Parameters
    ----------
    shape
        ``[c, h, w]`` of a sample, for counting multiply-accumulates.

    Raises
    ------
    InputError
        When a module is not there or cannot be factored, or nothing fits the budget, or
        the network does so dense.
    """
    matrices = _matrices(network, list(names), shape if budget.macs is not None else None)
    total = count_macs(network, shape) if budget.macs is not None else 0
    dense = parameters_with(network, {})
    size = f"{dense} parameters" + (f" and {total} multiply-accumulates" if total else "")
    if _fits(dense, total, budget):
        raise InputError(
            f"budget of {_text(budget)}: the network is within it as it is, with {size}. "
            "Lower the budget."
        )
    for share in SHARES:
        proposals = {item.name: item.proposal(share, budget) for item in matrices}
        plan = {name: found for name, found in proposals.items() if found is not None}
        macs = total + sum(_macs_gained(item, plan) for item in matrices)
        if plan and _fits(parameters_with(network, plan), macs, budget):
            return plan
    raise InputError(
        f"budget of {_text(budget)}: cannot be met by factoring {', '.join(names)}. The network "
        f"has {size}. Raise the budget, or factor more of it."
    )


def _macs_gained(matrix: _Matrix, plan: dict[str, Factoring]) -> int:
    found = plan.get(matrix.name)
    if found is None:
        return 0
    return matrix.vectors * (found.macs - matrix.rows * matrix.columns)


def _fits(parameters: int, macs: int, budget: Budget) -> bool:
    return (budget.parameters is None or parameters <= budget.parameters) and (
        budget.macs is None or macs <= budget.macs
    )


def _matrices(
    network: nn.Module, names: list[str], shape: tuple[int, int, int] | None
) -> list[_Matrix]:
    modules = dense_modules(network, names)
    vectors = dict.fromkeys(modules, 0) if shape is None else _vectors(network, modules, shape)
    return [_Matrix(name, *matrix_size(item), vectors[name]) for name, item in modules.items()]


def _vectors(
    network: nn.Module, modules: dict[str, nn.Module], shape: tuple[int, int, int]
) -> dict[str, int]:
    """Run one sample and return how many vectors each module gave."""
    found = dict.fromkeys(modules, 0)

    def counter(name: str, module: nn.Module) -> None:
        def count(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not isinstance(module, nn.Embedding):
                found[name] += output.numel() // matrix_size(module)[0]

        handles.append(module.register_forward_hook(count))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in modules.items():
        counter(name, module)
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return found


def _text(budget: Budget) -> str:
    parts = []
    if budget.parameters is not None:
        parts.append(f"{budget.parameters} parameters")
    if budget.macs is not None:
        parts.append(f"{budget.macs} multiply-accumulates")
    return " and ".join(parts) or "nothing"
