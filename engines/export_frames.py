"""Preprocessing as ONNX nodes: what `runtime.preprocess` does, for frames of one size."""

from __future__ import annotations

from typing import Literal

import numpy as np
from onnx import TensorProto

from engines.errors import EngineError
from engines.export_nodes import Nodes
from kernels.frames import GREY_WEIGHTS, Window, crop_window, letterbox_window
from runtime.schema import FrameFormat, Preprocessing

FrameSize = tuple[int, int]
"""Height and width."""


def frame_size(frames: FrameFormat, wanted: FrameSize | None) -> FrameSize:
    """Return the size of the frames that the exported file will take.

    Parameters
    ----------
    wanted
        What the user asks for; needed where the bundle takes frames of any size.

    Raises
    ------
    EngineError
        When there is no size, or another than the bundle's, or frames are NV12.
    """
    if frames.colour == "nv12":
        raise EngineError(
            "input.colour: NV12 frames cannot be read by one ONNX graph. "
            "Convert them before, and export a bundle that takes rgb or bgr frames."
        )
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
    return wanted or (height, width)


def add_pixels(nodes: Nodes, frames: str) -> str:
    """Add f32 [n, C, H, W] from frames u8 [n, H, W, C]."""
    # First to f32, since TensorRT moves no u8 tensors around.
    pixels = nodes.add("Cast", "float", frames, to=TensorProto.FLOAT)
    return nodes.add("Transpose", "pixels", pixels, perm=[0, 3, 1, 2])


def add_preprocessing(
    nodes: Nodes,
    pixels: str,
    size: FrameSize,
    *,
    colour: Literal["grey", "rgb", "bgr", "nv12"],
    wanted: Preprocessing,
) -> str:
    """Add a network input f32 [n, c, h, w] from pixels f32 [n, C, H, W] of ``size``."""
    border = None
    if wanted.resize == "centre_crop" and size != wanted.size:
        window = crop_window(size, wanted.size)
        pixels, size = _add_crop(nodes, pixels, window), (window.height, window.width)
    fitted = wanted.size
    if wanted.resize == "letterbox" and size != wanted.size:
        border = letterbox_window(size, wanted.size)
        fitted = (border.height, border.width)
    if size != fitted:
        pixels = _add_resize(nodes, pixels, fitted)
    pixels = _add_colour(nodes, pixels, colour, wanted.colour)
    std = np.array(wanted.std, np.float32).reshape(-1, 1, 1)
    scaled = nodes.add("Mul", "scaled", pixels, 1 / (255 * std))
    offset = -np.array(wanted.mean, np.float32).reshape(-1, 1, 1) / std
    pixels = nodes.add("Add", "normalised", scaled, offset)
    # The border is the mean, which normalises to zero.
    return pixels if border is None else _add_border(nodes, pixels, border, wanted.size)


def _add_crop(nodes: Nodes, pixels: str, window: Window) -> str:
    starts = [window.top, window.left]
    ends = [window.top + window.height, window.left + window.width]
    return nodes.add("Slice", "cropped", pixels, starts, ends, [2, 3])


def _add_resize(nodes: Nodes, pixels: str, size: FrameSize) -> str:
    shape = nodes.add("Shape", "shape", pixels)
    kept = nodes.add("Slice", "kept_sizes", shape, [0], [2], [0])
    sizes = nodes.add("Concat", "sizes", kept, list(size), axis=0)
    return nodes.add(
        "Resize",
        "resized",
        pixels,
        "",
        "",
        sizes,
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )


def _add_colour(nodes: Nodes, pixels: str, source: str, wanted: str) -> str:
    if source == wanted:
        return pixels
    if wanted == "grey":
        weights = GREY_WEIGHTS if source == "rgb" else GREY_WEIGHTS[::-1]
        weighted = nodes.add("Mul", "weighted", pixels, weights.reshape(-1, 1, 1))
        return nodes.add("ReduceSum", "grey", weighted, [1], keepdims=1)
    channels = [0, 0, 0] if source == "grey" else [2, 1, 0]
    return nodes.add("Gather", "channels", pixels, channels, axis=1)


def _add_border(nodes: Nodes, pixels: str, place: Window, size: FrameSize) -> str:
    below, right = size[0] - place.top - place.height, size[1] - place.left - place.width
    pads = [0, 0, place.top, place.left, 0, 0, below, right]
    return nodes.add("Pad", "bordered", pixels, pads, 0.0)
