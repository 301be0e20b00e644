"""Transformers whose block is shared over depth, read as an ordinary differential equation.

A pre-LN block adds branches to a hidden state, ``h + F(h)``. With one block for all of the depth
that is a step of Euler's method, of size 1, for ``dh/dt = F(h)``: so the same weights may be
stepped through the same time ``T`` in any number N of steps of size ``T / N``, which scales the
branches. Fewer steps cost less and follow the curve less closely.

The idea is that of W. Chen et al., "Parameter-shared PLMs as ODEs", arXiv 2310.12818. Only its
abstract could be read: what is here is a reconstruction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from runtime.errors import InputError
from savers.transformer import Attention

Field = Callable[[Tensor, float], Tensor]
"""One step: ``f32 [n, tokens, width]`` and a step size give the state after it."""

Network = TypeVar("Network", bound="SharedDepth")


class Affine(nn.Module):
    """``x W + b`` with ``W [inputs, outputs]``.

    That is how a runtime multiplies. ``nn.Linear`` keeps the transpose, which an exported graph
    would hold turned round, and so a second time.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        most = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-most, most))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-most, most))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``f32 [..., outputs]``."""
        return x @ self.weight + self.bias

    def macs(self, output: Tensor) -> int:
        """Return the multiply-accumulates that gave ``output``."""
        return int(output.numel()) * int(self.weight.shape[0])


class Step(nn.Module):
    """A pre-LN block as one step: attention, then a two-layer network per token, each scaled.

    Taking the two branches after one another is Lie's splitting of the field, also of first order.
    """

    def __init__(
        self, tokens: int, width: int, *, heads: int, hidden: int, causal: bool = False
    ) -> None:
        super().__init__()
        attention = Attention(tokens, width, heads, causal=causal, affine=Affine)
        self.attention = nn.Sequential(nn.LayerNorm(width), attention)
        self.network = nn.Sequential(
            nn.LayerNorm(width), Affine(width, hidden), nn.GELU(), Affine(hidden, width)
        )

    def forward(self, x: Tensor, size: float = 1.0) -> Tensor:
        """Return ``f32 [n, tokens, width]`` after a step of the given size."""
        x = x + size * self.attention(x)
        return x + size * cast(Tensor, self.network(x))


def integrate(field: Field, x: Tensor, steps: int, *, time: float) -> Tensor:
    """Return the state after ``time``, stepped through in equal steps."""
    for _ in range(steps):
        x = field(x, time / steps)
    return x


class SharedDepth(nn.Module):
    """A stem, one block iterated over depth, and a head.

    Parameters
    ----------
    stem
        Gives ``f32 [n, tokens, width]`` for a batch of inputs.
    field
        The shared block.
    head
        Gives logits for the last state.
    steps
        N that it answers with, unless it is asked `at` another.
    time
        T; a step has size ``T / N``.
    ends
        Blocks with weights of their own before and after the shared one, each a step of size 1:
        the partly shared form. Only what is between them is iterated.

    Raises
    ------
    InputError
        When ``steps`` is not a whole number from 1 on, or ``time`` is not positive.
    """

    def __init__(
        self,
        stem: nn.Module,
        field: Step,
        head: nn.Module,
        *,
        steps: int,
        time: float,
        ends: tuple[Step, Step] | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(time) and time > 0):
            raise InputError(f"time: expected a positive number, got {time}.")
        self.stem, self.field, self.head = stem, field, head
        self.first: Step | None = ends[0] if ends else None
        self.last: Step | None = ends[1] if ends else None
        self.steps, self.time = checked_steps(steps), time
        self._drawn: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a batch."""
        return cast(Tensor, self.head(self.state(x)))

    def state(self, x: Tensor) -> Tensor:
        """Return the state that the head reads, ``f32 [n, tokens, width]``."""
        steps = self._drawn if self.training and self._drawn else self.steps
        state = self.stem(x)
        if self.first is not None:
            state = self.first(state)
        state = integrate(self.field, state, steps, time=self.time)
        return state if self.last is None else cast(Tensor, self.last(state))

    def at(self: Network, steps: int, *, time: float | None = None) -> Network:
        """Return this network with another number of steps: the same tensors, not copies.

        Parameters
        ----------
        time
            None keeps T, so that steps grow as they become fewer. To leave steps out instead and
            keep their size, pass ``steps * size``.

        Raises
        ------
        InputError
            When ``steps`` is not a whole number from 1 on.
        """
        view = copy.copy(self)
        view.steps, view._drawn = checked_steps(steps), None
        view.time = self.time if time is None else time
        return view

    def draw(self, rng: np.random.Generator, choices: tuple[int, ...]) -> None:
        """Draw the number of steps that it trains with until the next draw."""
        self._drawn = int(rng.choice(choices))


def checked_steps(steps: object) -> int:
    """Return a number of steps.

    Raises
    ------
    InputError
        When it is not a whole number from 1 on.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps: expected a whole number from 1 on, got {steps!r}.")
    return steps


def euler_errors(
    network: SharedDepth, inputs: Tensor, steps: tuple[int, ...], *, reference: int = 192
) -> list[float]:
    """Return how far the state after N steps is from that after ``reference`` steps, for each N.

    The root mean square over all numbers of the state, in float64. For a smooth field it is
    proportional to ``1 / N``: Euler's method is of first order.
    """
    exact = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        goal = exact.at(reference).state(inputs.double())
        found = [exact.at(count).state(inputs.double()) - goal for count in steps]
    return [float(difference.square().mean().sqrt()) for difference in found]
