"""Networks as chains of stages with fixed interfaces, so that one stage can take another's place.

Stage 0 begins with what turns an image into features, the last one ends with the classifier. What a
stage takes and gives depends on its place alone, not on how many blocks it has: a shallow network's
stage and a deep one's are interchangeable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from torch import Tensor, nn

from runtime.errors import InputError
from savers.networks import GlobalMaxPool, Residual, conv
from savers.transformer import Block, MeanOfTokens, Tokens, convolutional_stem

Family = Literal["transformer", "residual"]


@dataclass(frozen=True)
class Architecture:
    """A family of networks of equally many stages.

    Attributes
    ----------
    family
        ``transformer``: pre-norm blocks over the patches of an image. ``residual``: two 3x3
        convolutions a block, at ``width`` channels in stage 0 and twice as many in each later one
        up to ``widest``.
    stages
        How many.
    width
        Of a token, or channels of the first stage.
    side
        Of the images ``f32 [n, channels, side, side]``.
    patch
        Side of a transformer's patch in pixels; it divides ``side``.
    widening
        How much wider the two-layer network of a transformer's block is inside.
    stem
        What a transformer makes tokens with: ``patches``, each projected, or ``convolutions``, two
        of stride 2, which stand for patches of 4 pixels.
    """

    family: Family
    stages: int
    width: int
    side: int
    patch: int = 4
    heads: int = 4
    classes: int = 10
    widest: int = 64
    # Not in repr, by which finished modules are known; their meta model's weights show both.
    channels: int = field(default=1, repr=False)
    widening: int = field(default=2, repr=False)
    stem: Literal["patches", "convolutions"] = field(default="patches", repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.stages < 2:
            raise InputError(f"stages: expected 2 or more, got {self.stages}.")
        if self.family == "transformer" and self.side % self.patch:
            raise InputError(
                f"patch: expected a divisor of the image's side {self.side}, got {self.patch}."
            )
        if self.stem == "convolutions" and self.patch != 4:
            raise InputError(f"patch: expected 4 with a stem of convolutions, got {self.patch}.")

    def network(self, blocks: Sequence[int]) -> list[nn.Module]:
        """Return new stages, the i-th with ``blocks[i]`` blocks.

        Raises
        ------
        InputError
            When there is not one number, at least 1, for each stage.
        """
        if len(blocks) != self.stages or min(blocks, default=0) < 1:
            raise InputError(
                f"blocks: expected {self.stages} numbers from 1 on, one a stage, "
                f"got {list(blocks)}."
            )
        return [self.stage(place, depth) for place, depth in enumerate(blocks)]

    def divided(self, network: nn.Module) -> list[nn.Module]:
        """Return stages of one block each with the weights of a whole network.

        Raises
        ------
        InputError
            When the network is not of this architecture with a block a stage.
        """
        chain = nn.Sequential(*self.network([1] * self.stages))
        names, weights = list(chain.state_dict()), network.state_dict().values()
        try:
            chain.load_state_dict(dict(zip(names, weights, strict=True)))
        except (RuntimeError, ValueError):
            raise InputError(
                f"meta model: expected a {self.family} of {self.stages} stages with a block each, "
                f"{len(names)} tensors, got another network, {len(weights)} tensors."
            ) from None
        return list(chain)

    def stage(self, place: int, blocks: int) -> nn.Module:
        """Return one new stage."""
        if self.family == "transformer":
            return self._transformer(place, blocks)
        return self._residual(place, blocks)

    def _transformer(self, place: int, blocks: int) -> nn.Module:
        width, tokens = self.width, (self.side // self.patch) ** 2
        layers: list[nn.Module] = [
            Block(tokens, width, heads=self.heads, hidden=self.widening * width)
            for _ in range(blocks)
        ]
        if place == 0:
            layers = [*self._stem(), Tokens(tokens, width), *layers]
        if place == self.stages - 1:
            layers += [nn.LayerNorm(width), MeanOfTokens(), nn.Linear(width, self.classes)]
        return nn.Sequential(*layers)

    def _stem(self) -> list[nn.Module]:
        if self.stem == "convolutions":
            return convolutional_stem(self.channels, self.width)
        return [nn.Conv2d(self.channels, self.width, self.patch, self.patch)]

    def _residual(self, place: int, blocks: int) -> nn.Module:
        width = self._channels(place)
        inputs = self.channels if place == 0 else self._channels(place - 1)
        layers = [conv(inputs, width, pool=place > 0), *(Residual(width) for _ in range(blocks))]
        if place == self.stages - 1:
            layers += [GlobalMaxPool(), nn.Linear(width, self.classes)]
        return nn.Sequential(*layers)

    def _channels(self, place: int) -> int:
        return min(self.width << place, max(self.width, self.widest))


class Chain(nn.Module):
    """Stages one after the other, of which only some are trained.

    The others keep every parameter and every running mean: gradients pass through those behind a
    trained stage, and stop before the first one.

    Parameters
    ----------
    stages
        Not copied.
    trained
        Places of the stages that are trained; None for all of them.
    """

    def __init__(self, stages: Iterable[nn.Module], trained: Iterable[int] | None = None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        places = range(len(self.stages))
        self.trained = tuple(sorted(places if trained is None else set(trained)))
        for place, stage in enumerate(self.stages):
            stage.requires_grad_(place in self.trained)
        self.train()

    def train(self, mode: bool = True) -> Chain:
        """Set training mode, in the trained stages alone."""
        super().train(mode)
        for place, stage in enumerate(self.stages):
            stage.train(mode and place in self.trained)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``f32 [n, K]`` of images ``f32 [n, channels, side, side]``."""
        for stage in self.stages:
            x = cast(Tensor, stage(x))
        return x
