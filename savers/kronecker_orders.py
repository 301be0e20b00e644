"""Orders between consecutive layers, taken into the weights around them.

What a factored layer puts out in another order may stay so through everything that treats each
channel alone, up to the next matrix: a dense one takes the order into its columns, a factored one
into the order of its own inputs, so that of two gathers one is left, or none. Nothing of the kind
is possible across a residual sum, whose terms must agree.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from savers.kronecker_layers import KroneckerConv, KroneckerLinear, order_or_none

_ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
    nn.LeakyReLU,
    nn.Dropout,
    nn.Identity,
)
_PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d)
_PRODUCT = (nn.Linear, nn.Conv2d, KroneckerLinear, KroneckerConv)


def absorb_orders(network: nn.Module) -> int:
    """Take orders into the weights around them, in each ``nn.Sequential`` of a network.

    No module may occur twice, nor share its weights with another.

    Returns
    -------
    int
        Gathers that are gone.
    """
    before = count_gathers(network)
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            for first, between, second in _neighbours(module):
                _absorb(first, between, second)
    return before - count_gathers(network)


def count_gathers(network: nn.Module) -> int:
    """Return how many orders a network works out at run time."""
    return sum(
        order is not None
        for module in network.modules()
        if isinstance(module, KroneckerLinear | KroneckerConv)
        for order in (module.inputs, module.outputs)
    )


def _neighbours(
    chain: nn.Sequential,
) -> Iterator[tuple[nn.Module, list[nn.Module], nn.Module]]:
    """Yield products that follow each other with only channelwise modules between them."""
    first: nn.Module | None = None
    between: list[nn.Module] = []
    for module in chain:
        if isinstance(module, _PRODUCT) and getattr(module, "groups", 1) == 1:
            if first is not None:
                yield first, between, module
            first, between = module, []
        elif isinstance(module, _ELEMENTWISE + _PER_CHANNEL):
            between = [*between, module]
        else:
            first = None


def _absorb(first: nn.Module, between: list[nn.Module], second: nn.Module) -> None:
    """Leave what ``first`` puts out in the order in which it, or ``second``, has it."""
    own = isinstance(first, KroneckerLinear | KroneckerConv)
    if own and first.outputs is not None:
        place = first.outputs
        first.outputs = None
        _reorder_channels([first.bias, *_channelwise(between)], torch.argsort(place))
        _take_inputs(second, place)
    elif not own and getattr(second, "inputs", None) is not None:
        order, second.inputs = second.inputs, None
        _reorder_channels([first.weight, first.bias, *_channelwise(between)], order)


def _take_inputs(second: nn.Module, place: Tensor) -> None:
    """Make a product read its input ``i`` at ``place[i]``."""
    if isinstance(second, KroneckerLinear | KroneckerConv):
        order = place if second.inputs is None else place[second.inputs]
        second.inputs = order_or_none(order.cpu().numpy())
    else:
        with torch.no_grad():
            second.weight.copy_(second.weight[:, torch.argsort(place)])


def _channelwise(modules: list[nn.Module]) -> list[Tensor | None]:
    return [
        tensor
        for module in modules
        if isinstance(module, _PER_CHANNEL)
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var)
    ]


def _reorder_channels(tensors: list[Tensor | None], order: Tensor) -> None:
    with torch.no_grad():
        for tensor in tensors:
            if tensor is not None:
                tensor.copy_(tensor[order])
