"""Exits inside a frozen large model that go on from what a saver knew (TinySaver's ESN).

After each block of the large model its feature map is pooled to a token. A small causal transformer
reads the saver's own token and those of the blocks so far; what comes out is added to the saver's
logits (Exit Sequence Network, arXiv 2403.17726). An exit thus corrects the saver, and one whose
weights are zero answers as the saver did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

HEAD_WIDTH = 16
"""Of attention: a token of 32 numbers has two heads."""


class Embedding(nn.Sequential):
    """A pooled feature map as a token: ``f32 [n, channels] -> [n, width]``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.LayerNorm(channels), nn.Linear(channels, width), nn.ReLU())


class CausalLayer(nn.Module):
    """Attention of each token to those up to it, then, unless last, a two-layer network."""

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.width = width
        self.last = last
        self.before = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.network = nn.Sequential() if last else _feed_forward(width)

    def forward(self, x: Tensor, *, count: int, only_last: bool = False) -> Tensor:
        """Return tokens of the shape of ``x``, ``f32 [n, count, width]``, or the last alone."""
        normal = self.before(x)
        wanted = 1 if only_last else count
        query = self._by_head(self.query(normal[:, count - wanted :]), wanted)
        key, value = (
            self._by_head(part, count) for part in self.memory(normal).split(self.width, -1)
        )
        scores = query * (self.width // self.heads) ** -0.5 @ key.transpose(-2, -1)
        if not only_last:
            scores = scores + torch.full((count, count), -1e4).triu(1)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, wanted, self.width)
        x = x[:, count - wanted :] + self.output(mixed)
        return x if self.last else x + cast(Tensor, self.network(x))

    def macs(self, count: int, *, only_last: bool) -> int:
        """Count the multiply-accumulates for ``count`` tokens of one sample."""
        wanted, square = 1 if only_last else count, self.width**2
        linear = 2 * wanted + 2 * count + (0 if self.last else 8 * wanted)
        return linear * square + 2 * wanted * count * self.width

    def _by_head(self, x: Tensor, count: int) -> Tensor:
        return x.reshape(-1, count, self.heads, self.width // self.heads).transpose(1, 2)


class ExitSequence(nn.Module):
    """Exits after every block of a large model.

    Parameters
    ----------
    channels
        Of the saver's last feature map, then of each block's.
    classes
        Logits of saver and large model.
    width, layers
        Of the tokens, and of the transformer over them.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.channels, self.classes, self.width = tuple(channels), classes, width
        self.embeddings = nn.ModuleList(Embedding(count, width) for count in channels)
        self.layers = nn.ModuleList(
            CausalLayer(width, last=number == layers - 1) for number in range(layers)
        )
        self.heads = nn.ModuleList(nn.Linear(width, classes, bias=False) for _ in channels[1:])
        for head in self.heads:
            nn.init.zeros_(cast(nn.Linear, head).weight)

    def forward(self, pooled: Sequence[Tensor], saver: Tensor) -> Tensor:
        """Return the logits of all exits, ``f32 [exits, n, K]``.

        Parameters
        ----------
        pooled
            ``f32 [n, channels]`` of each position, the saver's first.
        saver
            Logits ``f32 [n, K]`` of the saver.
        """
        tokens = torch.stack(self.embed(0, pooled), 1)
        for layer in self.layers:
            tokens = layer(tokens, count=len(pooled))
        answers = [head(tokens[:, 1 + place]) + saver for place, head in enumerate(self.heads)]
        return torch.stack(answers)

    def embed(self, first: int, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Return the tokens ``f32 [n, width]`` of positions from ``first`` on."""
        return [self.embeddings[first + place](part) for place, part in enumerate(pooled)]

    def answer(self, position: int, tokens: Tensor, saver: Tensor) -> Tensor:
        """Return the logits of one exit from the tokens up to it, ``f32 [n, position + 1, d]``.

        They are those that `forward` gives, for less: only the last token leaves the transformer.
        """
        count = position + 1
        for number, layer in enumerate(self.layers):
            only_last = number == len(self.layers) - 1
            tokens = layer(tokens, count=count, only_last=only_last)
        return cast(Tensor, self.heads[position - 1](tokens[:, -1]) + saver)

    def macs(self, position: int, *, after: int = 0) -> int:
        """Count what one exit adds to its blocks, where the exit ``after`` left its tokens.

        Parameters
        ----------
        after
            Position of the exit before it; 0 where there is none, and the saver's token is new.
        """
        new = self.channels[after + 1 if after else 0 : position + 1]
        transformer = sum(
            cast(CausalLayer, layer).macs(position + 1, only_last=number == len(self.layers) - 1)
            for number, layer in enumerate(self.layers)
        )
        return sum(new) * self.width + transformer + self.width * self.classes


class ExitHead(nn.Module):
    """One exit as a cascade runs it: new tokens behind those that an earlier stage left.

    Parameters
    ----------
    position, after
        Of the exit and of the one before it, 0 where there is none.
    """

    def __init__(self, exits: ExitSequence, position: int, *, after: int = 0) -> None:
        super().__init__()
        self.exits, self.position, self.after = exits, position, after

    def forward(self, earlier: Tensor, saver: Tensor, *pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``f32 [n, K]`` and all tokens so far ``f32 [n, position + 1, width]``.

        Parameters
        ----------
        earlier
            Tokens ``f32 [n, after + 1, width]``, or where no exit came before, the saver's pooled
            feature ``f32 [n, channels]``.
        pooled
            Of the blocks since.
        """
        if self.after:
            known, new = [earlier], self.exits.embed(self.after + 1, pooled)
        else:
            known, new = [], self.exits.embed(0, (earlier, *pooled))
        tokens = torch.cat([*known, *(token.unsqueeze(1) for token in new)], 1)
        return self.exits.answer(self.position, tokens, saver), tokens


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    )
