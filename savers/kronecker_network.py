"""Networks with some of their matrices in factors: which can be, in place of what, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from runtime.errors import InputError
from savers.kronecker_fit import (
    Decomposition,
    decompose,
    decompose_plain,
    decompose_shuffled,
    random_factors,
)
from savers.kronecker_layers import (
    Factored,
    KroneckerConv,
    KroneckerEmbedding,
    KroneckerLinear,
)
from savers.kronecker_shapes import Factoring

Plan = Mapping[str, Factoring]
"""Factors for modules, by their names in the network."""

SUPPORTED = "Linear, Embedding, and Conv2d of 1x1 without groups or padding"


@dataclass(frozen=True)
class Search:
    """How the orders of rows and columns are found.

    Attributes
    ----------
    method
        ``permuted`` searches for them and ``plain`` keeps those that there are. To compare with:
        ``shuffled`` draws the orders, ``random`` the factors.
    restarts
        Searches from random orders besides the first.
    """

    method: Literal["permuted", "plain", "shuffled", "random"] = "permuted"
    restarts: int = 4
    seed: int = 0

    def run(self, matrix: npt.NDArray[np.float64], factoring: Factoring) -> Decomposition:
        """Return the factors of a matrix."""
        if self.method == "plain":
            return decompose_plain(matrix, factoring)
        if self.method == "shuffled":
            return decompose_shuffled(matrix, factoring, seed=self.seed)
        if self.method == "random":
            return random_factors(matrix, factoring, seed=self.seed)
        return decompose(matrix, factoring, restarts=self.restarts, seed=self.seed)


def factorable(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose matrices can be factored, by name, in the network's order."""
    return {
        name: module for name, module in network.named_modules() if _reason_against(module) is None
    }


def dense_modules(network: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the named modules.

    Raises
    ------
    InputError
        When one is not there, or cannot be factored; the message says what can.
    """
    known = dict(network.named_modules())
    found = {}
    for name in names:
        if name not in known:
            raise InputError(
                f"module {name!r}: the network has none of that name. "
                f"These can be factored: {', '.join(factorable(network))}."
            )
        reason = _reason_against(known[name])
        if reason is not None:
            raise InputError(f"module {name}: {reason} cannot be factored; supported: {SUPPORTED}.")
        found[name] = known[name]
    return found


def matrix_size(module: nn.Module) -> tuple[int, int]:
    """Return rows and columns of a module's matrix: outputs and inputs, or numbers and width."""
    rows, columns = module.weight.shape[:2]
    return int(rows), int(columns)


def factor(network: nn.Module, plan: Plan, search: Search) -> dict[str, Decomposition]:
    """Put factors in place of the modules of a plan, and return them by name.

    Raises
    ------
    InputError
        When a module is not there or cannot be factored, or its factors do not fit.
    """
    found = {}
    for name, module in dense_modules(network, plan).items():
        matrix = module.weight.detach().cpu().double().numpy().reshape(matrix_size(module))
        found[name] = search.run(matrix, plan[name])
        put(network, name, _factored(module, found[name]).to(module.weight.device))
    return found


def merge(network: nn.Module) -> None:
    """Put dense layers of the same function in place of all that are factored."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Factored):
            put(network, name, module.merged())


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in place of the one of that name."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def parameters_with(network: nn.Module, plan: Plan) -> int:
    """Count the parameters of a network with a plan, all of them.

    A matrix that another module uses too stays: an output matrix tied to an embedding is still
    there, dense, when the embedding is in factors.
    """
    planned = dense_modules(network, plan)
    kept = {
        parameter
        for name, module in network.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if not (name in planned and own == "weight")
    }
    dense: int = sum(parameter.numel() for parameter in kept)
    return dense + sum(factoring.parameters for factoring in plan.values())


def _factored(module: nn.Module, found: Decomposition) -> Factored:
    if isinstance(module, nn.Linear):
        return KroneckerLinear(found, module.bias)
    if isinstance(module, nn.Embedding):
        return KroneckerEmbedding(found)
    return KroneckerConv(found, module.bias, module.stride)


def _reason_against(module: nn.Module) -> str | None:
    """Return what a module is, if it cannot be factored; None if it can."""
    if isinstance(module, nn.Linear):
        return None
    if isinstance(module, nn.Embedding):
        return "an Embedding with a padding index" if module.padding_idx is not None else None
    if not isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__}"
    if module.kernel_size != (1, 1):
        height, width = module.kernel_size
        return f"a convolution of {height}x{width}"
    if module.groups > 1:
        return f"a convolution in {module.groups} groups"
    return None if module.padding == (0, 0) else "a 1x1 convolution with padding"
