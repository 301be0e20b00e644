"""A small vision transformer (Dosovitskiy et al., arXiv 2010.11929) with a convolutional stem.

Two convolutions in place of one patch projection make so small a transformer train like the other
networks of the pool (Xiao et al., arXiv 2106.14881). The classifier reads the mean of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from runtime.errors import InputError


class Attention(nn.Module):
    """Self-attention with ``heads`` heads; ``f32 [n, tokens, width]`` in and out.

    Sizes but n are numbers here, so that the exported graph computes no shapes. A causal one looks
    at no later token.

    Parameters
    ----------
    affine
        Makes the layers before and behind, from how many numbers they take and give.
    """

    _mask: Tensor | None

    def __init__(
        self,
        tokens: int,
        width: int,
        heads: int,
        *,
        causal: bool = False,
        affine: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.tokens, self.width, self.heads = tokens, width, heads
        self.inputs = affine(width, 3 * width)
        self.output = affine(width, width)
        later = torch.full((tokens, tokens), -math.inf).triu(1) if causal else None
        self.register_buffer("_mask", later, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, each a mixture of all."""
        depth = self.width // self.heads
        split = (-1, self.tokens, self.heads, depth)
        query, key, value = (
            part.reshape(split).transpose(1, 2) for part in self.inputs(x).split(self.width, -1)
        )
        scores = query * depth**-0.5 @ key.transpose(-2, -1)
        scores = scores if self._mask is None else scores + self._mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, self.tokens, self.width)
        return cast(Tensor, self.output(mixed))


class Block(nn.Module):
    """Attention, then a two-layer network per token, each normalised before and added."""

    def __init__(
        self, tokens: int, width: int, *, heads: int, hidden: int, causal: bool = False
    ) -> None:
        super().__init__()
        attention = Attention(tokens, width, heads, causal=causal)
        self.attention = nn.Sequential(nn.LayerNorm(width), attention)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape of ``x``, ``f32 [n, tokens, width]``."""
        x = x + self.attention(x)
        return x + cast(Tensor, self.network(x))


class Tokens(nn.Module):
    """Places of a map as tokens, plus a learned position: ``[n, c, h, w] -> [n, h * w, c]``."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, row by row."""
        _, count, width = self.position.shape
        return x.reshape(-1, width, count).transpose(1, 2) + self.position


class Positions(nn.Module):
    """Adds a learned position to each of ``count`` tokens."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape of ``x``, ``f32 [n, count, width]``."""
        return x + self.position


class MeanOfTokens(nn.Module):
    """``[n, tokens, width] -> [n, width]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over tokens."""
        return x.mean(1)


def convolutional_stem(channels: int, width: int) -> list[nn.Module]:
    """Return what makes ``[n, width, h / 4, w / 4]`` of an image: two convolutions of stride 2."""
    first = nn.Conv2d(channels, 16, 3, 2, 1, bias=False)
    return [first, nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, width, 3, 2, 1)]


def vision_transformer(width: int, depth: int, *, heads: int = 4) -> nn.Sequential:
    """Return a transformer over the 7x7 places of a 28x28 image."""
    return nn.Sequential(
        *convolutional_stem(1, width),
        Tokens(49, width),
        *(Block(49, width, heads=heads, hidden=2 * width) for _ in range(depth)),
        nn.LayerNorm(width),
        MeanOfTokens(),
        nn.Linear(width, 10),
    )


def patch_transformer(
    side: int, *, patch: int, width: int, depth: int, channels: int = 1, classes: int = 10
) -> nn.Sequential:
    """Return a transformer over square patches of an image, four times as wide inside its blocks.

    Module 0 cuts the patches, 1 makes tokens of them, and the blocks follow.

    Parameters
    ----------
    side, patch
        Of the image ``f32 [n, channels, side, side]`` and of a patch, in pixels.

    Raises
    ------
    InputError
        When patches do not tile the image.
    """
    if side % patch:
        raise InputError(f"patch: expected a divisor of the image's side {side}, got {patch}.")
    count = (side // patch) ** 2
    return nn.Sequential(
        nn.Conv2d(channels, width, patch, patch),
        Tokens(count, width),
        *(Block(count, width, heads=4, hidden=4 * width) for _ in range(depth)),
        nn.LayerNorm(width),
        MeanOfTokens(),
        nn.Linear(width, classes),
    )


def language_transformer(vocabulary: int, tokens: int, *, width: int, depth: int) -> nn.Sequential:
    """Return a causal transformer: ``i64 [n, tokens]`` to logits ``f32 [n, tokens, vocabulary]``.

    Module 0 is the embedding, which is not tied to the output matrix, the last module.
    """
    return nn.Sequential(
        nn.Embedding(vocabulary, width),
        Positions(tokens, width),
        *(Block(tokens, width, heads=4, hidden=4 * width, causal=True) for _ in range(depth)),
        nn.LayerNorm(width),
        nn.Linear(width, vocabulary),
    )
