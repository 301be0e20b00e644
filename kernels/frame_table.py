"""The table that preprocess.cu reads: where frames lie in device memory, and what becomes of them.

::

    frames = [Frame(address, 1080, 1920, PixelFormat("bgr"), pitch=6144)]
    table = frame_table(frames, network)  # to be uploaded before the kernel runs
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.frames import MOST_SIDE, NetworkInput, PixelFormat, Size, Yuv, place

_WINDOW = np.dtype([(name, np.int32) for name in ("top", "left", "height", "width")])

ENTRY = np.dtype(
    [
        ("pixels", np.uint64),
        ("chroma", np.uint64),
        ("pitch", np.int64),
        ("chroma_pitch", np.int64),
        ("source", _WINDOW),
        ("target", _WINDOW),
        ("format", np.int32),
        *((name, np.float32) for name in Yuv._fields),
        ("unused", np.int32),
    ]
)
"""``Frame`` of preprocess.cu."""

_FORMATS = {"grey": 0, "rgb": 1, "bgr": 2, "nv12": 3}  # FrameFormat of preprocess.cu
_LAST_ADDRESS = 2**63 - 1


@dataclass(frozen=True)
class Frame:
    """A frame in device memory, at any address.

    Attributes
    ----------
    address
        Of the first packed pixel, or of the luma plane of NV12.
    height, width
        Of the picture; at least 2, and even for NV12.
    pixels
        Its colours.
    pitch
        Bytes from a row to the next; rows lie close where it is None.
    chroma, chroma_pitch
        The plane of chroma pairs of NV12. It follows the luma plane, with the same pitch, where
        they are None.

    Raises
    ------
    ValueError
        When a size or a pitch is not one that a frame can have.
    """

    address: int
    height: int
    width: int
    pixels: PixelFormat
    pitch: int | None = None
    chroma: int | None = None
    chroma_pitch: int | None = None

    def __post_init__(self) -> None:
        size = f"{self.height}x{self.width}"
        if not 2 <= min(self.height, self.width) <= max(self.height, self.width) <= MOST_SIDE:
            raise ValueError(f"frame: expected sides of 2 to {MOST_SIDE}, got {size}")
        if self.is_nv12 and (self.height % 2 or self.width % 2):
            raise ValueError(f"frame: expected even sides for nv12, got {size}")
        if not self.is_nv12 and (self.chroma, self.chroma_pitch) != (None, None):
            raise ValueError(f"chroma: expected none for {self.pixels.colour}, got a plane")
        self._check_plane("address", self.address, "pitch", self.pitch)
        if self.is_nv12:
            self._check_plane("chroma", self.chroma, "chroma_pitch", self.chroma_pitch)

    @property
    def is_nv12(self) -> bool:
        """Whether there is a plane of chroma pairs."""
        return self.pixels.colour == "nv12"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of pixels; of NV12 those of luma, and of chroma just as many."""
        return self.width * self.pixels.bytes_per_pixel

    def planes(self) -> list[tuple[int, int, int]]:
        """Return address, pitch and rows of the pixels, then of chroma if there is any."""
        pitch = self.row_bytes if self.pitch is None else self.pitch
        luma = (self.address, pitch, self.height)
        if not self.is_nv12:
            return [luma]
        chroma = self.address + self.height * pitch if self.chroma is None else self.chroma
        chroma_pitch = pitch if self.chroma_pitch is None else self.chroma_pitch
        return [luma, (chroma, chroma_pitch, self.height // 2)]

    def _check_plane(
        self, name: str, address: int | None, pitch_name: str, pitch: int | None
    ) -> None:
        if address is not None and not 0 < address <= _LAST_ADDRESS:
            raise ValueError(f"{name}: expected an address of device memory, got {address:#x}")
        if pitch is not None and not self.row_bytes <= pitch <= _LAST_ADDRESS // self.height:
            raise ValueError(
                f"{pitch_name}: expected at least {self.row_bytes} bytes, "
                f"a row of {self.width} {self.pixels.colour} pixels, got {pitch}"
            )


def frame_table(frames: Sequence[Frame], network: NetworkInput) -> npt.NDArray[Any]:
    """Return the table to upload, `ENTRY` [frames].

    The kernel looks at the first entry even where no row counts, to fill padding: it must be that
    of a frame that can be read.
    """
    table = np.zeros(len(frames), ENTRY)
    for row, frame in enumerate(frames):
        table[row] = _geometry((frame.height, frame.width), frame.pixels, network)
        planes = frame.planes()
        table[row]["pixels"], table[row]["pitch"], _ = planes[0]
        if frame.is_nv12:
            table[row]["chroma"], table[row]["chroma_pitch"], _ = planes[1]
    return table


@functools.lru_cache(maxsize=64)
def _geometry(frame: Size, pixels: PixelFormat, network: NetworkInput) -> npt.NDArray[Any]:
    """Return an entry without addresses."""
    entry = np.zeros((), ENTRY)
    entry["source"], entry["target"] = place(frame, network)
    entry["format"] = _FORMATS[pixels.colour]
    if pixels.colour == "nv12":
        for name, value in pixels.yuv._asdict().items():
            entry[name] = value
    return entry
