"""Frames to network inputs on the host: resize and normalise, in float32.

The arithmetic is that of `runtime.schema.Preprocessing`: bilinear with half-pixel centres on float
pixels, never rounded back to u8, so that a GPU gives the same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.errors import BundleError
from runtime.schema import FrameFormat, Preprocessing

Frames = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""Luma of red, green and blue (ITU-R BT.601)."""


class Window(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows in an array."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns in an array."""
        return slice(self.left, self.left + self.width)


class Preprocessor:
    """Turns ``u8 [n, H, W, C]`` frames into ``f32 [n, c, h, w]``.

    Raises
    ------
    BundleError
        When frames have a format the host cannot read, or a resize is needed and OpenCV is missing.
    """

    def __init__(self, preprocessing: Preprocessing, frame_format: FrameFormat) -> None:
        if frame_format.colour == "nv12":
            raise BundleError(
                "input.colour: the CPU device reads grey, rgb and bgr frames, got nv12."
            )
        self._spec = preprocessing
        self._source = frame_format.colour
        self._resizes = frame_format.shape[:2] != preprocessing.size
        if self._resizes:
            _require_opencv()
        std = np.array(preprocessing.std, np.float32)
        self._scale = (1 / (255 * std)).reshape(-1, 1, 1)
        self._offset = (-np.array(preprocessing.mean, np.float32) / std).reshape(-1, 1, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(c, h, w)`` of one network input."""
        return (len(self._spec.mean), *self._spec.size)

    def __call__(self, frames: Frames, out: Float32 | None = None) -> Float32:
        """Return network inputs ``f32 [n, c, h, w]``, in ``out`` when it is given."""
        if out is None:
            out = np.empty((len(frames), *self.shape), np.float32)
        pixels = self._resize(frames) if self._resizes else self._colour(frames)
        # Casting first, then in place: a fifth faster than one multiplication of mixed types.
        np.copyto(out, pixels.transpose(0, 3, 1, 2), casting="same_kind")
        out *= self._scale
        out += self._offset
        return out

    def _colour(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        source, wanted = self._source, self._spec.colour
        if source == wanted:
            return pixels
        if wanted == "grey":
            weights = GREY_WEIGHTS if source == "rgb" else GREY_WEIGHTS[::-1]
            return (pixels.astype(np.float32) @ weights)[..., None]
        if source == "grey":
            return np.repeat(pixels, 3, axis=-1)
        return pixels[..., ::-1]

    def _resize(self, frames: Frames) -> Float32:
        height, width = self._spec.size
        if not len(frames):
            return np.empty((0, height, width, len(self._spec.mean)), np.float32)
        resized: Float32 = np.stack([self._resize_one(frame) for frame in frames])
        return resized

    def _resize_one(self, frame: Frames) -> Float32:
        height, width = self._spec.size
        pixels = frame.astype(np.float32)
        if self._spec.resize == "centre_crop":
            place = crop_window(pixels.shape[:2], self._spec.size)
            pixels = pixels[place.rows, place.columns]
        if self._spec.resize == "letterbox":
            return self._letterbox(pixels)
        return self._colour(_bilinear(pixels, height, width))

    def _letterbox(self, pixels: Float32) -> Float32:
        height, width = self._spec.size
        place = letterbox_window(pixels.shape[:2], self._spec.size)
        fitted = self._colour(_bilinear(pixels, place.height, place.width))
        # The border is the mean, which normalises to zero.
        border = 255 * np.array(self._spec.mean, np.float32)
        canvas: Float32 = np.broadcast_to(border, (height, width, len(border))).copy()
        canvas[place.rows, place.columns] = fitted
        return canvas


def crop_window(frame: tuple[int, ...], size: tuple[int, int]) -> Window:
    """Return the largest centred part of a frame ``(height, width)`` that is shaped as ``size``."""
    ratio = min(frame[0] / size[0], frame[1] / size[1])
    return _centred(size, ratio, frame)


def letterbox_window(frame: tuple[int, ...], size: tuple[int, int]) -> Window:
    """Return where a frame ``(height, width)`` goes when fitted into ``size`` with a border."""
    ratio = min(size[0] / frame[0], size[1] / frame[1])
    return _centred(frame, ratio, size)


def _centred(shape: tuple[int, ...], ratio: float, outer: tuple[int, ...]) -> Window:
    height, width = (max(1, round(side * ratio)) for side in shape)
    return Window((outer[0] - height) // 2, (outer[1] - width) // 2, height, width)


def _bilinear(pixels: Float32, height: int, width: int) -> Float32:
    import cv2

    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32).reshape(height, width, pixels.shape[2])


def _require_opencv() -> None:
    try:
        import cv2  # noqa: F401
    except ImportError:
        raise BundleError(
            "This bundle resizes its frames, which needs OpenCV (cv2). On JetPack use its own; "
            "elsewhere: pip install 'tinysaver-runtime[opencv]'."
        ) from None
