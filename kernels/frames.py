"""Frames and network inputs: which pixels go where, and what their colours mean.

The one home of this arithmetic. The reference, the host and the table that preprocess.cu reads take
it from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

FrameColour = Literal["grey", "rgb", "bgr", "nv12"]
Colour = Literal["grey", "rgb", "bgr"]
Resize = Literal["stretch", "centre_crop", "letterbox"]
Matrix = Literal["bt601", "bt709"]
Range = Literal["limited", "full"]
Size = tuple[int, int]
"""Height and width."""

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""Luma of red, green and blue (ITU-R BT.601)."""

MOST_SIDE = 2**15 - 1
"""Longest side of a frame or a network input: twice the product of two sides is then an i32."""

BYTES_PER_PIXEL = {"grey": 1, "rgb": 3, "bgr": 3, "nv12": 1}
"""In a row of packed pixels, or of the luma plane of NV12."""

_LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # weights of red and blue


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


class Placement(NamedTuple):
    """The part of a frame that is resized, and where it lies in the network's input."""

    source: Window
    target: Window


class Taps(NamedTuple):
    """What each pixel of a resized line is made of: ``(1 - weight) * first + weight * second``.

    Attributes
    ----------
    first, second
        i64 [n], pixels of the line that is resized.
    weight
        f64 [n], in [0, 1).
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]


class Yuv(NamedTuple):
    """How luma Y and chroma U, V of 8 bits give red, green and blue, before clamping to [0, 255].

    With ``y = luma_scale * (Y - luma_offset)``, ``u = U - 128`` and ``v = V - 128``:
    red is ``y + red_v * v``, green ``y + green_u * u + green_v * v``, blue ``y + blue_u * u``.
    """

    luma_offset: float
    luma_scale: float
    red_v: float
    green_u: float
    green_v: float
    blue_u: float


@dataclass(frozen=True)
class PixelFormat:
    """The colours of a frame; matrix and range are those of NV12, and given only for it.

    Raises
    ------
    ValueError
        When matrix or range lack for NV12, or are there for another colour.
    """

    colour: FrameColour
    matrix: Matrix | None = None
    range: Range | None = None

    def __post_init__(self) -> None:
        if {self.matrix is not None, self.range is not None} != {self.colour == "nv12"}:
            raise ValueError(
                f"matrix, range: expected for nv12, and only for it, "
                f"got {self.matrix}, {self.range} for {self.colour}"
            )

    @property
    def bytes_per_pixel(self) -> int:
        """Of packed pixels, or in the luma plane of NV12."""
        return BYTES_PER_PIXEL[self.colour]

    @property
    def yuv(self) -> Yuv:
        """The coefficients of NV12 (ITU-R BT.601 or BT.709, H.273).

        Raises
        ------
        ValueError
            For another colour.
        """
        if self.matrix is None:
            raise ValueError(f"colour: expected nv12, got {self.colour}")
        red, blue = _LUMA[self.matrix]
        green = 1 - red - blue
        offset, luma, chroma = (16, 255 / 219, 255 / 224) if self.range == "limited" else (0, 1, 1)
        red_v, blue_u = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
        return Yuv(offset, luma, red_v, -blue_u * blue / green, -red_v * red / green, blue_u)

    def picture_size(self, height: int, width: int) -> Size:
        """Return the size of the picture in an array ``u8 [height, width, bytes per pixel]``.

        An array of NV12 holds the luma plane and, below it, the plane of chroma pairs: its height
        is 3/2 of the picture's.

        Raises
        ------
        ValueError
            When no NV12 picture has this height and width.
        """
        if self.colour != "nv12":
            return height, width
        if height % 3 or width % 2:
            raise ValueError(
                f"nv12: expected an even width, and 3/2 of an even height as the number of rows, "
                f"got {height} rows of {width}"
            )
        return height // 3 * 2, width


@dataclass(frozen=True)
class NetworkInput:
    """What a network takes: ``[channels, height, width]``, ``(pixel / 255 - mean) / std``.

    Attributes
    ----------
    size
        Height and width.
    colour
        Order of the channels.
    resize
        How another aspect ratio is made to fit. The border of a letterbox is the mean, so zero.
    mean, std
        One number per channel, of pixels scaled to [0, 1].

    Raises
    ------
    ValueError
        For a side outside 1 to 32767, another number of means than channels, or a std that is not
        positive.
    """

    size: Size
    colour: Colour
    resize: Resize
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= min(self.size) <= max(self.size) <= MOST_SIDE:
            raise ValueError(f"size: expected sides of 1 to {MOST_SIDE}, got {list(self.size)}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean, std: expected {self.channels} number(s) each for {self.colour}, "
                f"got {len(self.mean)}, {len(self.std)}"
            )
        if not all(0 < std < float("inf") for std in self.std):
            raise ValueError(f"std: expected finite numbers > 0, got {list(self.std)}")

    @property
    def channels(self) -> int:
        """1 for grey, else 3."""
        return 1 if self.colour == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        return (self.channels, *self.size)

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """f32 [channels]: an input is ``scale * pixel + offset``."""
        return np.divide(1, 255 * np.array(self.std, np.float32), dtype=np.float32)

    @property
    def offset(self) -> npt.NDArray[np.float32]:
        """f32 [channels], see `scale`."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.divide(-mean, std, dtype=np.float32)


def place(frame: Size, network: NetworkInput) -> Placement:
    """Return which part of a frame ``(height, width)`` a network sees, and where."""
    source, target = Window(0, 0, *frame), Window(0, 0, *network.size)
    if network.resize == "centre_crop":
        source = crop_window(frame, network.size)
    if network.resize == "letterbox":
        target = letterbox_window(frame, network.size)
    return Placement(source, target)


def crop_window(frame: Size, size: Size) -> Window:
    """Return the largest centred part of a frame ``(height, width)`` that is shaped as ``size``."""
    ratio = min(frame[0] / size[0], frame[1] / size[1])
    return _centred(size, ratio, frame)


def letterbox_window(frame: Size, size: Size) -> Window:
    """Return where a frame ``(height, width)`` goes when fitted into ``size`` with a border."""
    ratio = min(size[0] / frame[0], size[1] / frame[1])
    return _centred(frame, ratio, size)


def taps(source: int, target: int) -> Taps:
    """Return how a line of ``source`` pixels becomes one of ``target``.

    Bilinear with half-pixel centres: pixel ``x`` lies at ``(x + 0.5) * source / target - 0.5``, and
    a position before the first or behind the last pixel takes that pixel. In integers, for a
    float32 position in the thousands has too few bits left for a weight: that costs 0.03 grey
    levels at 4096 pixels.
    """
    places = np.arange(target)
    position = np.maximum((2 * places + 1) * source - target, 0)  # in 1 / (2 * target) pixels
    first, part = np.divmod(position, 2 * target)
    return Taps(first, np.minimum(first + 1, source - 1), part / (2 * target))


def _centred(shape: Size, ratio: float, outer: Size) -> Window:
    height, width = (max(1, round(side * ratio)) for side in shape)
    return Window((outer[0] - height) // 2, (outer[1] - width) // 2, height, width)
