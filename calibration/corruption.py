"""Images as a camera might come to give them: blurred, noisy, brighter. To try a drift guard on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


class Corruption(NamedTuple):
    """A way to change images u8 [n, H, W, C], and how strongly.

    Attributes
    ----------
    strength
        Of a blur its standard deviation in pixels, of noise that in grey levels, of brightness the
        grey levels that are added.
    """

    name: str
    strength: float
    change: Callable[[Images, float], Images]

    def __call__(self, images: Images) -> Images:
        """Return changed images; the same each time."""
        return self.change(images, self.strength)


def blurred(images: Images, sigma: float) -> Images:
    """Return images under a Gaussian blur of ``sigma`` pixels; the border is repeated."""
    radius = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    values = images.astype(np.float32)
    for axis in (1, 2):
        width = [(0, 0)] * 4
        width[axis] = (radius, radius)
        padded, length = np.pad(values, width, mode="edge"), values.shape[axis]
        values = np.zeros_like(values)
        for place, weight in enumerate(weights):
            part = np.take(padded, range(place, place + length), axis)
            values += np.float32(weight) * part
    return _as_pixels(values)


def noisy(images: Images, deviation: float) -> Images:
    """Return images with Gaussian noise of ``deviation`` grey levels, another for each."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(images.shape, np.float32)
    return _as_pixels(images + np.float32(deviation) * noise)


def brighter(images: Images, levels: float) -> Images:
    """Return images ``levels`` grey levels brighter, white where that is too much."""
    return _as_pixels(images.astype(np.float32) + np.float32(levels))


CORRUPTIONS = (
    *(Corruption("blur", sigma, blurred) for sigma in (0.5, 0.75, 1.0)),
    *(Corruption("noise", deviation, noisy) for deviation in (10.0, 20.0, 40.0)),
    *(Corruption("brightness", levels, brighter) for levels in (20.0, 40.0, 80.0)),
)
"""Three strengths of each."""


def _as_pixels(values: npt.NDArray[np.float32]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
