"""Preprocessing as ONNX nodes: what `runtime.preprocess` does, for frames of one size.

Resizing takes the pixels and weights of `kernels.frames.taps`, worked out here. ONNX's own Resize
finds them in float32 when it runs, and is off by 0.03 grey levels at 1920 pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines.errors import EngineError
from engines.export_nodes import Nodes
from kernels.frames import (
    GREY_WEIGHTS,
    NetworkInput,
    PixelFormat,
    Placement,
    Size,
    Taps,
    Window,
    Yuv,
    place,
    taps,
)
from runtime.schema import FrameFormat

Indices = npt.NDArray[np.int64]


def frame_size(frames: FrameFormat, wanted: Size | None) -> Size:
    """Return height and width of the frames that the exported file will take, as arrays.

    Parameters
    ----------
    wanted
        What the user asks for; needed where the bundle takes frames of any size.

    Raises
    ------
    EngineError
        When there is no size, another than the bundle's, or one that NV12 cannot have.
    """
    height, width = frames.shape[:2]
    if not height and wanted is None:
        raise EngineError(
            "this bundle takes frames of any size, one ONNX graph only of one. "
            "Name it: --frame-size 1080x1920 (height x width)."
        )
    if height and wanted not in (None, (height, width)):
        raise EngineError(
            f"--frame-size: the bundle takes frames of {height}x{width} (height x width), "
            f"got {wanted[0]}x{wanted[1]}. Leave the option out."
        )
    try:
        frames.pixels.picture_size(*(wanted or (height, width)))
    except ValueError as error:
        raise EngineError(f"--frame-size: {error}.") from None
    return wanted or (height, width)


def add_preprocessing(
    nodes: Nodes, frames: str, size: Size, *, pixels: PixelFormat, network: NetworkInput
) -> str:
    """Add a network input f32 [n, c, h, w] from frames f32 [n, H, W, C] of ``size``."""
    placement = place(pixels.picture_size(*size), network)
    if pixels.colour == "nv12":
        samples, colour = _add_nv12(nodes, frames, size, pixels, placement), "rgb"
    else:
        samples, colour = _add_samples(nodes, frames, size, placement), pixels.colour
    samples = nodes.add("Transpose", "channels_first", samples, perm=[0, 3, 1, 2])
    samples = _add_colour(nodes, samples, colour, network.colour)
    scaled = nodes.add("Mul", "scaled", samples, network.scale.reshape(-1, 1, 1))
    ready = nodes.add("Add", "normalised", scaled, network.offset.reshape(-1, 1, 1))
    return _add_border(nodes, ready, placement.target, network.size)


def _add_samples(nodes: Nodes, frames: str, size: Size, placement: Placement) -> str:
    """Add the part of packed frames that the network sees, in its size: f32 [n, h, w, C]."""
    source, target = placement
    if source[2:] != target[2:]:
        return _add_mixes(nodes, frames, *_taps(placement))
    if source[2:] == size:
        return frames
    ends = [source.rows.stop, source.columns.stop]
    return nodes.add("Slice", "cropped", frames, [source.top, source.left], ends, [1, 2])


def _add_nv12(
    nodes: Nodes, frames: str, size: Size, pixels: PixelFormat, placement: Placement
) -> str:
    """Add the same of NV12 frames, as red, green, blue; only pixels that are used are converted."""
    rows, columns = _taps(placement)
    down, across = (np.concatenate(line[:2]) for line in (rows, columns))
    chroma = pixels.picture_size(*size)[0] + down // 2
    y = _add_plane(nodes.within("y:"), frames, down, across)
    u = _add_plane(nodes.within("u:"), frames, chroma, across // 2 * 2)
    v = _add_plane(nodes.within("v:"), frames, chroma, across // 2 * 2 + 1)
    u, v = nodes.add("Sub", "u", u, 128.0), nodes.add("Sub", "v", v, 128.0)
    rgb = _add_rgb(nodes, y, u, v, pixels.yuv)
    return _add_mixes(nodes, rgb, _halves(rows), _halves(columns))


def _add_plane(nodes: Nodes, frames: str, rows: Indices, columns: Indices) -> str:
    lines = nodes.add("Gather", "rows", frames, rows, axis=1)
    return nodes.add("Gather", "pixels", lines, columns, axis=2)


def _add_rgb(nodes: Nodes, y: str, u: str, v: str, k: Yuv) -> str:
    k = Yuv(*map(float, k))  # some are integers, which as constants would be i64
    luma = nodes.add("Mul", "luma", nodes.add("Sub", "y", y, k.luma_offset), k.luma_scale)
    red = nodes.add("Add", "red", luma, nodes.add("Mul", "red_v", v, k.red_v))
    blue = nodes.add("Add", "blue", luma, nodes.add("Mul", "blue_u", u, k.blue_u))
    partly = nodes.add("Add", "partly_green", luma, nodes.add("Mul", "green_u", u, k.green_u))
    green = nodes.add("Add", "green", partly, nodes.add("Mul", "green_v", v, k.green_v))
    rgb = nodes.add("Concat", "rgb", red, green, blue, axis=3)
    return nodes.add("Clip", "clamped", rgb, 0.0, 255.0)


def _taps(placement: Placement) -> tuple[Taps, Taps]:
    """Return what rows and columns of a network's input are made of, in those of the frame."""
    source, target = placement
    rows, columns = taps(source.height, target.height), taps(source.width, target.width)
    return (
        Taps(rows.first + source.top, rows.second + source.top, rows.weight),
        Taps(columns.first + source.left, columns.second + source.left, columns.weight),
    )


def _halves(line: Taps) -> Taps:
    """Return the same taps for a line that has all first pixels, and after them the second."""
    places = np.arange(len(line.weight))
    return Taps(places, places + len(places), line.weight)


def _add_mixes(nodes: Nodes, tensor: str, rows: Taps, columns: Taps) -> str:
    lines = _add_mix(nodes.within("rows:"), tensor, rows, axis=1)
    return _add_mix(nodes.within("columns:"), lines, columns, axis=2)


def _add_mix(nodes: Nodes, tensor: str, line: Taps, *, axis: int) -> str:
    """Add ``first + weight * (second - first)`` along an axis of [n, h, w, C]."""
    first = nodes.add("Gather", "first", tensor, line.first, axis=axis)
    second = nodes.add("Gather", "second", tensor, line.second, axis=axis)
    weight = line.weight.reshape(-1, *[1] * (3 - axis))
    step = nodes.add("Mul", "step", nodes.add("Sub", "difference", second, first), weight)
    return nodes.add("Add", "mixed", first, step)


def _add_colour(nodes: Nodes, samples: str, source: str, wanted: str) -> str:
    if source == wanted:
        return samples
    if wanted == "grey":
        weights = GREY_WEIGHTS if source == "rgb" else GREY_WEIGHTS[::-1]
        weighted = nodes.add("Mul", "weighted", samples, weights.reshape(-1, 1, 1))
        return nodes.add("ReduceSum", "grey", weighted, [1], keepdims=1)
    channels = [0, 0, 0] if source == "grey" else [2, 1, 0]
    return nodes.add("Gather", "channels", samples, channels, axis=1)


def _add_border(nodes: Nodes, samples: str, part: Window, size: Size) -> str:
    """Add the border of a letterbox, which is the mean and so zero."""
    if part[2:] == size:
        return samples
    below, right = size[0] - part.rows.stop, size[1] - part.columns.stop
    pads = [0, 0, part.top, part.left, 0, 0, below, right]
    return nodes.add("Pad", "bordered", samples, pads, 0.0)
