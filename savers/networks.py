"""Image classifiers for the demo pool, by name, and their cost in MACs.

Widths are multiples of 16 where a model is meant for CPUs: ONNX Runtime's blocked convolution works
on 16 channels at a time with AVX-512, so 8 channels cost as much time as 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from savers.transformer import Attention, vision_transformer


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


def plain(width: int) -> nn.Sequential:
    """Return three convolutions with a maximum after each, and a linear layer."""
    w = width
    return nn.Sequential(
        conv(1, w, pool=True),
        conv(w, 2 * w, pool=True),
        conv(2 * w, 4 * w, pool=True),
        GlobalAveragePool(),
        nn.Linear(4 * w, 10),
    )


def separable_conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution per channel, then one across channels, both normalised, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def separable(width: int) -> nn.Sequential:
    """Return a network of depthwise-separable convolutions (Howard et al., arXiv 1704.04861)."""
    w = width
    return nn.Sequential(
        conv(1, w, stride=2),
        separable_conv(w, 2 * w),
        separable_conv(2 * w, 4 * w, stride=2),
        separable_conv(4 * w, 4 * w),
        separable_conv(4 * w, 8 * w, stride=2),
        GlobalAveragePool(),
        nn.Linear(8 * w, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "tiny": lambda: strided(16, 16, 32),
    "middle": narrow_start,
    "large": lambda: resnet9(32),
    "strided-8": lambda: strided(8, 16, 32),
    "strided-32": lambda: strided(32, 32, 64),
    "strided-64": lambda: strided(32, 64, 128),
    "plain-16": lambda: plain(16),
    "separable-16": lambda: separable(16),
    "separable-32": lambda: separable(32),
    "resnet-8": lambda: resnet9(8),
    "resnet-12": lambda: resnet9(12),
    "resnet-16": lambda: resnet9(16),
    "resnet-24": lambda: resnet9(24),
    "vit-64": lambda: vision_transformer(64, depth=4),
}


@runtime_checkable
class Counted(Protocol):
    """A module that knows its own cost, without that of modules in it."""

    def macs(self, output: Tensor) -> int:
        """Return the multiply-accumulates that gave ``output``."""
        ...


def count_macs(network: nn.Module, shape: tuple[int, int, int] = (1, 28, 28)) -> int:
    """Count the multiply-accumulates of one ``[c, h, w]`` sample.

    Convolutions, linear layers and the two products of attention count; sums, normalisation and
    softmax do not.
    """
    total = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _macs(module, output)

    handles = [module.register_forward_hook(add) for module in network.modules()]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return total


def _macs(module: nn.Module, output: Tensor) -> int:
    """Return the multiply-accumulates of one module without those of the modules in it."""
    each = 0
    if isinstance(module, nn.Conv2d):
        each = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
    elif isinstance(module, nn.Linear):
        each = module.in_features
    elif isinstance(module, Attention):
        each = 2 * output.shape[1]
    elif isinstance(module, Counted):
        return module.macs(output)
    return int(output.numel()) * each
