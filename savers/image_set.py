"""Training and test images of one task, as experiments take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from savers.dataset import Split
from savers.recipe import Recipe
from savers.views import Images, Level

_EXPECTED = "images u8 [n, side, side, c] with c 1 or 3"


class ImageSet(NamedTuple):
    """Square grey or colour images ``u8 [n, side, side, c]``, to train on and to test on.

    Attributes
    ----------
    mean, std
        Of the training pixels scaled to [0, 1].
    """

    name: str
    train: Split
    test: Split
    mean: Level
    std: Level

    @property
    def side(self) -> int:
        """Height and width, in pixels."""
        return int(self.train.images.shape[1])

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.train.images.shape[3])

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.train.labels.max()) + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """``[c, h, w]`` of a network's input."""
        return self.channels, self.side, self.side

    def examples(self, split: Split, recipe: Recipe) -> Images:
        """Return a split as a trainer, or a network, reads it."""
        return Images(split, recipe, mean=self.mean, std=self.std)

    def first(self, count: int) -> ImageSet:
        """Return the same with no more than the first so many training images."""
        return self._replace(train=self.train.rows(np.arange(min(count, len(self.train.labels)))))

    def require(self, count: int) -> None:
        """Check that there are enough training images.

        Raises
        ------
        InputError
            When there are fewer than ``count``.
        """
        found = len(self.train.labels)
        if found < count:
            raise InputError(
                f"{self.name}: expected {count:,} training images or more, got {found:,}. "
                "The experiment's batches need as many."
            )


def image_set(name: str, train: Split, test: Split) -> ImageSet:
    """Return two splits as a task, normalised by the statistics of each training channel.

    Parameters
    ----------
    name
        What errors call the task.

    Raises
    ------
    InputError
        When a split is empty, images are not square or of other sizes in the two splits, or the
        labels are not those of the same classes, each of which has training images.
    """
    for part, split in (("train", train), ("test", test)):
        _check_images(f"{name}: {part}", split.images)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{name}: expected test images of the training images' {list(train.images.shape[1:])}, "
            f"got {list(test.images.shape[1:])}."
        )
    _check_labels(name, train.labels, test.labels)
    return ImageSet(name, train, test, *_statistics(train.images))


def _check_images(place: str, images: npt.NDArray[np.uint8]) -> None:
    square = images.ndim == 4 and images.shape[1] == images.shape[2] > 0
    if images.dtype != np.uint8 or not square or images.shape[3] not in (1, 3):
        raise InputError(f"{place}: expected {_EXPECTED}, got {images.dtype} {list(images.shape)}.")
    if not len(images):
        raise InputError(f"{place}: expected images, got none.")


def _check_labels(name: str, train: npt.NDArray[np.int32], test: npt.NDArray[np.int32]) -> None:
    known = np.unique(train)
    if known[0] != 0 or known[-1] != len(known) - 1 or len(known) < 2:
        raise InputError(
            f"{name}: expected training labels 0, 1, ... without gaps, two classes or more, "
            f"got {_listed(known)}."
        )
    other = np.setdiff1d(test, known)
    if len(other):
        raise InputError(
            f"{name}: expected test labels among the training images' 0 to {known[-1]}, "
            f"got {_listed(other)} too."
        )


def _listed(labels: npt.NDArray[np.int32]) -> str:
    shown = ", ".join(map(str, labels[:8]))
    return shown if len(labels) <= 8 else f"{shown}, ... ({len(labels)} of them)"


def _statistics(
    images: npt.NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, from counts of the 256 levels."""
    levels = np.arange(256) / 255.0
    means, deviations = [], []
    for channel in range(images.shape[3]):
        counts = sum(np.bincount(image.ravel(), minlength=256) for image in images[..., channel])
        share = counts / np.sum(counts)
        means.append(float(share @ levels))
        deviations.append(float(share @ (levels - means[-1]) ** 2) ** 0.5)
    # A channel that never changes is left at 0, not divided by 0.
    return tuple(means), tuple(deviation or 1.0 for deviation in deviations)
