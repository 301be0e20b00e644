"""Frames to network inputs on the host: resize, colours and normalisation, in float32.

The arithmetic is that of `kernels.reference_preprocess`: bilinear with half-pixel centres on float
pixels, never rounded back to u8, so that a GPU gives the same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.frames import GREY_WEIGHTS, NetworkInput, Placement, Size, place
from runtime.sampler import Sample, Sampler, fast_sampler
from runtime.schema import FrameFormat, Preprocessing

Frames = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class _Source(NamedTuple):
    """How frames of one size are sampled."""

    size: Size
    placement: Placement
    sample: Sample


class Preprocessor:
    """Turns ``u8 [n, H, W, C]`` frames into ``f32 [n, c, h, w]``.

    A frame of NV12 is ``[H * 3/2, W, 1]``: the luma plane, and below it the chroma pairs.
    """

    def __init__(self, preprocessing: Preprocessing, frame_format: FrameFormat) -> None:
        self._network = network_input(preprocessing)
        self._pixels = frame_format.pixels
        self._scale = self._network.scale.reshape(-1, 1, 1)
        self._offset = self._network.offset.reshape(-1, 1, 1)
        self._last: _Source | None = None
        if frame_format.shape[0]:
            size = self._pixels.picture_size(*frame_format.shape[:2])
            placement = place(size, self._network)
            sample = fast_sampler(self._pixels, size, placement)
            self._last = _Source(size, placement, sample)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(c, h, w)`` of one network input."""
        return self._network.shape

    def __call__(self, frames: Frames, out: Float32 | None = None) -> Float32:
        """Return network inputs ``f32 [n, c, h, w]``, in ``out`` when it is given."""
        if out is None:
            out = np.empty((len(frames), *self.shape), np.float32)
        size = self._pixels.picture_size(*frames.shape[1:3])
        if size == self._network.size and self._pixels.colour != "nv12":
            # Casting first, then in place: a fifth faster than one multiplication of mixed types.
            np.copyto(out, self._colour(frames.transpose(0, 3, 1, 2)), casting="same_kind")
            self._normalise(out)
            return out
        _, placement, sample = self._source(size)
        for frame, row in zip(frames, out, strict=True):
            if placement.target[2:] != self._network.size:
                row.fill(0)  # the border of a letterbox is the mean, which normalises to zero
            part = row[:, placement.target.rows, placement.target.columns]
            np.copyto(part, self._colour(sample(frame)))
            self._normalise(part)
        return out

    def _normalise(self, pixels: Float32) -> None:
        pixels *= self._scale
        pixels += self._offset

    def _source(self, size: Size) -> _Source:
        if self._last is None or self._last.size != size:
            # Where frames have any size, each may come only once: trying OpenCV would not pay.
            placement = place(size, self._network)
            self._last = _Source(size, placement, Sampler(self._pixels, placement))
        return self._last

    def _colour(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return pixels [..., C, h, w] in the channels that the network wants."""
        source = "rgb" if self._pixels.colour == "nv12" else self._pixels.colour
        wanted = self._network.colour
        if source == wanted:
            return pixels
        if wanted == "grey":
            weights = GREY_WEIGHTS if source == "rgb" else GREY_WEIGHTS[::-1]
            grey: Float32 = np.moveaxis(pixels, -3, -1).astype(np.float32) @ weights
            return grey[..., None, :, :]
        if source == "grey":
            return pixels.repeat(3, axis=-3)
        return pixels[..., ::-1, :, :]


def network_input(preprocessing: Preprocessing) -> NetworkInput:
    """Return what a stage's network takes, as the kernels have it."""
    fields = preprocessing
    return NetworkInput(fields.size, fields.colour, fields.resize, fields.mean, fields.std)
