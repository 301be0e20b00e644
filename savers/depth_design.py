"""Which networks of shared depth there are: for images and for bytes, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from runtime.errors import InputError
from savers.depth_network import Affine, SharedDepth, Step, checked_steps
from savers.transformer import MeanOfTokens, Tokens, convolutional_stem

Training = Literal["plain", "small-step", "step-randomised"]
TRAININGS: tuple[Training, ...] = ("plain", "small-step", "step-randomised")
SMALL = 4
"""How many times smaller than 1 a step of the large model is, where steps are small."""

_SHARES = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)


@dataclass(frozen=True)
class Design:
    """A network of shared depth, and how its depth is trained.

    Attributes
    ----------
    training
        ``plain``: steps of size 1, as any residual network has. ``small-step``: of size 1/4, so
        that the states follow a smoother curve. ``step-randomised``: through the time of
        ``small-step`` in a number of steps that is drawn anew for each batch; this variant is ours
        and not the paper's.
    steps
        N of the large model, which is trained (at most, where it is drawn).
    hidden
        Width between the two layers of a token's network.
    partly
        Whether the first and the last block have weights of their own.
    """

    training: Training
    steps: int
    width: int
    heads: int
    hidden: int
    partly: bool = False

    def __post_init__(self) -> None:
        """Check what a user may choose."""
        checked_steps(self.steps)
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise InputError(
                f"width {self.width}: expected a multiple of the number of heads, {self.heads}."
            )

    @property
    def time(self) -> float:
        """T."""
        return self.steps / (1 if self.training == "plain" else SMALL)

    @property
    def draws(self) -> tuple[int, ...]:
        """The numbers of steps that a training draws from; one, where it draws none."""
        return shares(self.steps) if self.training == "step-randomised" else (self.steps,)

    def dedicated(self, steps: int) -> Design:
        """Return the control: a network that is trained with so many steps and no others."""
        return replace(self, training="plain", steps=steps)

    def epochs_alone(self, steps: int, epochs: int) -> int:
        """Return how long a network of so many steps alone trains at the cost of this one.

        Parameters
        ----------
        epochs
            Of this one. The cost is how often a block is run for a sample.
        """
        return max(1, round(epochs * sum(self.draws) / len(self.draws) / steps))

    def vary(self, network: SharedDepth) -> Callable[[np.random.Generator], object]:
        """Return what the trainer calls before each step."""
        if len(self.draws) == 1:
            return lambda rng: None
        return partial(network.draw, choices=self.draws)

    def images(
        self, side: int, *, classes: int, patch: int | None = None, channels: int = 1
    ) -> SharedDepth:
        """Return a classifier of images ``f32 [n, channels, side, side]``.

        Parameters
        ----------
        patch
            Side of the squares that become tokens; None has two convolutions of stride 2 instead,
            as `savers.transformer` does.

        Raises
        ------
        InputError
            When patches do not tile the image.
        """
        places = side // patch if patch else (side + 3) // 4
        if patch and places * patch != side:
            raise InputError(f"patch {patch}: expected a divisor of the image's side, {side}.")
        tokens = places**2
        stem = nn.Sequential(*self._stem(patch, channels), Tokens(tokens, self.width))
        head = nn.Sequential(
            nn.LayerNorm(self.width), MeanOfTokens(), nn.Linear(self.width, classes)
        )
        return self._shared(stem, head, tokens, causal=False)

    def text(self, tokens: int, *, vocabulary: int = 256) -> SharedDepth:
        """Return a causal language model: ``i64 [n, tokens]`` to ``f32 [n, tokens, vocabulary]``.

        The logits at a place are of the token after it.
        """
        head = nn.Sequential(nn.LayerNorm(self.width), Affine(self.width, vocabulary))
        return self._shared(_Embedding(vocabulary, tokens, self.width), head, tokens, causal=True)

    def _stem(self, patch: int | None, channels: int) -> list[nn.Module]:
        if patch:
            return [nn.Conv2d(channels, self.width, patch, patch)]
        return convolutional_stem(channels, self.width)

    def _shared(
        self, stem: nn.Module, head: nn.Module, tokens: int, *, causal: bool
    ) -> SharedDepth:
        def block() -> Step:
            return Step(tokens, self.width, heads=self.heads, hidden=self.hidden, causal=causal)

        ends = (block(), block()) if self.partly else None
        return SharedDepth(stem, block(), head, steps=self.steps, time=self.time, ends=ends)


def shares(steps: int) -> tuple[int, ...]:
    """Return numbers of steps worth asking for, ascending to the given one."""
    return tuple(sorted({max(1, round(steps * share)) for share in _SHARES}))


class _Embedding(nn.Module):
    """A learned vector per token and per place."""

    def __init__(self, vocabulary: int, tokens: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``f32 [n, tokens, width]``."""
        return self.token(x) + self.position
