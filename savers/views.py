"""What networks are trained on: augmented images, or sequences of tokens."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from savers.dataset import Split
from savers.recipe import Recipe

MEAN = 0.2860
STD = 0.3530
"""Of the Fashion-MNIST training images scaled to [0, 1]."""

Level: TypeAlias = "float | tuple[float, ...]"
"""One for all channels, or one for each."""

Rows = npt.NDArray[np.int64]


class Examples(Protocol):
    """Samples with labels, as the trainer reads them.

    Attributes
    ----------
    labels
        ``i64 [n]``, or ``i64 [n, t]`` where each of t tokens has a label.
    """

    labels: Tensor

    def training(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        """Return a random view of each of the given rows, as the network reads it."""
        ...

    def plain(self, rows: Rows) -> Tensor:
        """Return the given rows as they are, as the network reads them."""
        ...


class Images:
    """Labelled images ``u8 [n, h, w, c]``; views are shifted, mirrored and partly erased.

    Parameters
    ----------
    recipe
        Says how far views differ from the images.
    mean, std
        Of pixels scaled to [0, 1].
    """

    def __init__(
        self, split: Split, recipe: Recipe, *, mean: Level = MEAN, std: Level = STD
    ) -> None:
        self.labels = torch.from_numpy(split.labels.astype(np.int64))
        self._images, self._recipe = split.images, recipe
        self._views = Views(split.images, recipe.shift, mean=mean, std=std)
        self._mean, self._std = mean, std

    def plain(self, rows: Rows) -> Tensor:
        """Return normalised ``f32 [rows, c, h, w]``."""
        return normalise(self._images[rows], mean=self._mean, std=self._std)

    def training(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        """Return a random view of each row, normalised ``f32 [rows, c, h, w]``."""
        views = rng.integers(0, self._views.count, len(rows))
        if not self._recipe.mirror:
            views -= views % 2
        pixels = self._views.pixels(rows, views)
        return cut_out(pixels, self._recipe.cutout, rng) if self._recipe.cutout else pixels


class Sequences:
    """Token numbers ``i64 [n, t]``, the same at each epoch, and the label of each token.

    Parameters
    ----------
    tokens, labels
        ``i64 [n, t]``. For a language model a label is the token after.
    """

    def __init__(self, tokens: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> None:
        if tokens.shape != labels.shape:
            raise ValueError(f"labels: expected one per token {tokens.shape}, got {labels.shape}")
        self._tokens, self.labels = torch.from_numpy(tokens), torch.from_numpy(labels)

    def plain(self, rows: Rows) -> Tensor:
        """Return ``i64 [rows, t]``."""
        return self._tokens[rows]

    def training(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        """Return ``i64 [rows, t]``."""
        return self._tokens[rows]


class Views:
    """Shifted and mirrored views of images ``u8 [n, h, w, c]``, numbered.

    View ``v`` of image ``i`` is image ``i`` moved by ``v // 2`` (row-major over the
    ``(2 * shift + 1)^2`` translations) and mirrored when ``v`` is odd.
    """

    def __init__(
        self, images: npt.NDArray[np.uint8], shift: int, *, mean: Level = MEAN, std: Level = STD
    ) -> None:
        padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        # [n, down, right, c, h, w]
        self._windows = np.lib.stride_tricks.sliding_window_view(
            padded, images.shape[1:3], axis=(1, 2)
        )
        self._steps = 2 * shift + 1
        self._mean, self._std = mean, std
        self.count = 2 * self._steps**2

    def pixels(self, rows: Rows, views: Rows) -> Tensor:
        """Return normalised ``f32 [n, c, h, w]`` of the given view of each row."""
        down, right = np.divmod(views // 2, self._steps)
        chosen = self._windows[rows, down, right]
        chosen = np.where((views % 2 == 1)[:, None, None, None], chosen[..., ::-1], chosen)
        return normalise(chosen.transpose(0, 2, 3, 1), mean=self._mean, std=self._std)


def levels(level: Level) -> tuple[float, ...]:
    """Return a level as one number a channel, or one for all."""
    return level if isinstance(level, tuple) else (level,)


def normalise(images: npt.NDArray[np.uint8], *, mean: Level = MEAN, std: Level = STD) -> Tensor:
    """Return ``f32 [n, c, h, w]``, zero mean and unit variance, of ``u8 [n, h, w, c]``."""
    centre, spread = (np.asarray(level, np.float32).reshape(-1, 1, 1) for level in (mean, std))
    scaled = (images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255) - centre) / spread
    return torch.from_numpy(np.ascontiguousarray(scaled))


def cut_out(pixels: Tensor, side: int, rng: np.random.Generator) -> Tensor:
    """Return ``f32 [n, c, h, w]`` with a square of each image, anywhere, set to the mean.

    DeVries and Taylor, arXiv 1708.04552. A square may lie partly outside.
    """
    inside = []
    for extent in pixels.shape[-2:]:
        corner = torch.from_numpy(rng.integers(-side // 2, extent - side // 2, len(pixels)))
        place = torch.arange(extent)
        inside.append((place >= corner[:, None]) & (place < corner[:, None] + side))
    erased = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return pixels.masked_fill(erased, 0.0)
