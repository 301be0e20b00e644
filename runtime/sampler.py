"""Bilinear samples of frames on the host, in float32.

By NumPy, or several times faster by OpenCV where that is precise enough. It is with Intel's IPP;
without, as on every Arm, cv2.resize keeps positions in float32, and is off by 0.02 grey levels at
1920 pixels, 20 times what backends may differ by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.frames import PixelFormat, Placement, Size, taps

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Indices = npt.NDArray[np.integer[Any]]
Sample = Callable[[Bytes], Float32]

MOST_ERROR = 2.5e-4
"""Grey levels by which OpenCV may be off: a quarter of what backends may differ by."""


def fast_sampler(pixels: PixelFormat, frame: Size, placement: Placement) -> Sample:
    """Return what samples frames of one size, height and width: OpenCV if it is precise, or NumPy.

    Whether it is depends on how it was built and on the sizes, so both sample a frame of noise.
    """
    precise = Sampler(pixels, placement)
    if pixels.colour == "nv12" or not precise.resizes:
        return precise
    try:
        fast = OpenCvSampler(placement)
    except ImportError:
        return precise
    shape = (*frame, pixels.bytes_per_pixel)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return fast if np.abs(fast(noise) - precise(noise)).max() <= MOST_ERROR else precise


class OpenCvSampler:
    """`Sampler` for packed pixels, by ``cv2.resize``. Raises ImportError where there is no cv2."""

    def __init__(self, placement: Placement) -> None:
        import cv2

        self._cv2 = cv2
        self._placement = placement

    def __call__(self, frame: Bytes) -> Float32:
        """Return samples f32 [channels, height, width] of ``frame u8 [H, W, C]``, from 0 to 255."""
        source, target = self._placement
        part = frame[source.rows, source.columns].astype(np.float32)
        size = (target.width, target.height)
        resized = self._cv2.resize(part, size, interpolation=self._cv2.INTER_LINEAR)
        samples: Float32 = resized.reshape(target.height, target.width, -1).transpose(2, 0, 1)
        return samples


class Sampler:
    """Takes the part of a frame that a network sees, in the size in which it sees it.

    Parameters
    ----------
    pixels
        Colours of the frames.
    placement
        From `kernels.frames.place`, for frames of one size.

    Attributes
    ----------
    resizes
        Whether that size is another than the part's.
    """

    def __init__(self, pixels: PixelFormat, placement: Placement) -> None:
        self._pixels = pixels
        source, target = placement
        self.resizes = source[2:] != target[2:]
        rows, columns = taps(source.height, target.height), taps(source.width, target.width)
        # Every row that is needed, once: an enlarged frame needs each of its few rows many times.
        self._rows, places = np.unique((rows.first, rows.second), return_inverse=True)
        self._rows += source.top
        self._upper, self._lower = places.reshape(2, -1)
        self._down = rows.weight.astype(np.float32)[:, None, None]
        self._columns = np.concatenate((columns.first, columns.second)) + source.left
        self._across = columns.weight.astype(np.float32)

    def __call__(self, frame: Bytes) -> Float32:
        """Return samples f32 [channels, height, width] of ``frame u8 [H, W, C]``, from 0 to 255.

        Packed pixels keep the order of their channels; NV12 becomes red, green, blue.
        """
        samples: Float32 = self._lines(frame).transpose(1, 0, 2)
        return samples

    def _lines(self, frame: Bytes) -> Float32:
        """Return f32 [height, channels, width]."""
        if not self.resizes:
            return self._read(frame, self._columns[: len(self._across)])
        left, right = np.split(self._read(frame, self._columns), 2, axis=2)
        lines = _mix(left, right, self._across)
        return _mix(lines[self._upper], lines[self._lower], self._down)

    def _read(self, frame: Bytes, columns: Indices) -> Float32:
        """Return f32 [rows, channels, columns]."""
        if self._pixels.colour == "nv12":
            return _read_nv12(frame[..., 0], self._rows, columns, self._pixels)
        return _read_packed(frame, self._rows, columns)


def _read_packed(frame: Bytes, rows: Indices, columns: Indices) -> Float32:
    height, _, channels = frame.shape
    places = columns * channels + np.arange(channels)[:, None]
    lines = frame.reshape(height, -1).take(rows, axis=0, mode="clip")
    return _floats(lines.take(places, axis=1, mode="clip"))


def _read_nv12(planes: Bytes, rows: Indices, columns: Indices, pixels: PixelFormat) -> Float32:
    """Convert the pixels asked for with the chroma of their 2x2 blocks; clamped, not rounded."""
    height, _ = pixels.picture_size(*planes.shape)
    k = pixels.yuv
    y = k.luma_scale * (_take(planes[:height], rows, columns) - k.luma_offset)
    u, v = (_take(planes[height:], rows // 2, columns // 2 * 2 + i) - 128 for i in range(2))
    rgb = np.stack((y + k.red_v * v, y + k.green_u * u + k.green_v * v, y + k.blue_u * u), axis=1)
    return np.clip(rgb, 0, 255, out=rgb)


def _take(plane: Bytes, rows: Indices, columns: Indices) -> Float32:
    return _floats(plane.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip"))


def _floats(pixels: Bytes) -> Float32:
    return pixels.astype(np.float32)


def _mix(first: Float32, second: Float32, weight: Float32) -> Float32:
    """Return ``first + weight * (second - first)``, in the memory of ``second``."""
    second -= first
    second *= weight
    second += first
    return second
