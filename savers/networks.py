"""Image classifiers for the demo pool, by name, and their cost in MACs.

Widths are multiples of 16 where a model is meant for CPUs: ONNX Runtime's blocked convolution works
on 16 channels at a time with AVX-512, so 8 channels cost as much time as 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """``x + f(x)`` with ``f`` two 3x3 convolutions of unchanged width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``, ``f32 [n, c, h, w]``."""
        return x + cast(Tensor, self.body(x))


class GlobalMaxPool(nn.Module):
    """Maximum over height and width: ``[n, c, h, w] -> [n, c]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the maximum of each channel."""
        return torch.amax(x, (2, 3))


class GlobalAveragePool(nn.Module):
    """Mean over height and width: ``[n, c, h, w] -> [n, c]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of each channel."""
        return x.mean((2, 3))


def conv(inputs: int, outputs: int, *, stride: int = 1, pool: bool = False) -> nn.Sequential:
    """Return 3x3 convolution, batch norm, ReLU and, with ``pool``, a 2x2 maximum."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def resnet9(width: int) -> nn.Sequential:
    """Return a nine-layer residual network; its cost grows with ``width`` squared."""
    w = width
    return nn.Sequential(
        conv(1, w),
        conv(w, 2 * w, pool=True),
        Residual(2 * w),
        conv(2 * w, 4 * w, pool=True),
        conv(4 * w, 4 * w, pool=True),
        Residual(4 * w),
        GlobalMaxPool(),
        nn.Linear(4 * w, 10),
    )


def strided(first: int, second: int, third: int) -> nn.Sequential:
    """Return three convolutions of stride 2 and a linear layer: the smallest saver."""
    return nn.Sequential(
        conv(1, first, stride=2),
        conv(first, second, stride=2),
        conv(second, third, stride=2),
        GlobalAveragePool(),
        nn.Linear(third, 10),
    )


def narrow_start() -> nn.Sequential:
    """Return a residual network that keeps 16 channels until its maps are 14x14."""
    return nn.Sequential(
        conv(1, 16),
        conv(16, 16, stride=2),
        Residual(16),
        conv(16, 32, pool=True),
        conv(32, 64, pool=True),
        Residual(64),
        GlobalMaxPool(),
        nn.Linear(64, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "tiny": lambda: strided(16, 16, 32),
    "middle": narrow_start,
    "large": lambda: resnet9(32),
}


def count_macs(network: nn.Module, shape: tuple[int, int, int] = (1, 28, 28)) -> int:
    """Count multiply-accumulates of convolutions and linear layers for one ``[c, h, w]`` sample."""
    total = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            total += output.numel() * kernel * module.in_channels // module.groups
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    handles = [module.register_forward_hook(add) for module in network.modules()]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return total
