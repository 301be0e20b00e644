"""The float64 NumPy reference of preprocessing, on the host and in preprocess.cu: whole frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.frames import GREY_WEIGHTS, NetworkInput, PixelFormat, Size, place, taps

Float64 = npt.NDArray[np.float64]


def preprocess(frame: npt.NDArray[np.uint8], pixels: PixelFormat, network: NetworkInput) -> Float64:
    """Return the network input f64 [channels, height, width] of one frame.

    Parameters
    ----------
    frame
        u8 [H, W, C]. NV12 is [H * 3/2, W, 1]: the luma plane, and below it the chroma pairs.

    Raises
    ------
    ValueError
        When ``frame`` has another rank or number of channels, or a size that NV12 cannot have.
    """
    image = to_colour(to_rgb_or_grey(frame, pixels), network.colour)
    source, target = place((image.shape[0], image.shape[1]), network)
    part = image[source.rows, source.columns]
    fitted = bilinear(part, (target.height, target.width))
    normalised = (fitted / 255 - np.array(network.mean)) / np.array(network.std)
    result = np.zeros(network.shape)
    result[:, target.rows, target.columns] = normalised.transpose(2, 0, 1)
    return result


def to_rgb_or_grey(frame: npt.NDArray[np.uint8], pixels: PixelFormat) -> Float64:
    """Return f64 [H, W, 3] in the order red, green, blue; grey frames as f64 [H, W, 1]."""
    if frame.ndim != 3 or frame.shape[2] != pixels.bytes_per_pixel:
        raise ValueError(
            f"frame: expected u8 [H, W, {pixels.bytes_per_pixel}], "
            f"got {frame.dtype} {list(frame.shape)}"
        )
    if pixels.colour == "nv12":
        return _nv12_to_rgb(frame[..., 0], pixels)
    image = frame.astype(np.float64)
    return image[..., ::-1] if pixels.colour == "bgr" else image


def to_colour(image: Float64, colour: str) -> Float64:
    """Return an image, RGB or grey, in the channels of a network."""
    if colour == "grey":
        return image if image.shape[2] == 1 else (image @ GREY_WEIGHTS.astype(float))[..., None]
    rgb = np.broadcast_to(image, (*image.shape[:2], 3))
    return rgb[..., ::-1] if colour == "bgr" else rgb


def bilinear(image: Float64, size: Size) -> Float64:
    """Return ``image`` f64 [H, W, C] resized to ``size``: half-pixel centres, edges repeated."""
    rows, columns = (taps(old, new) for old, new in zip(image.shape[:2], size, strict=True))
    down = rows.weight[:, None, None]
    lines = (1 - down) * image[rows.first] + down * image[rows.second]
    across = columns.weight[:, None]
    result: Float64 = (1 - across) * lines[:, columns.first] + across * lines[:, columns.second]
    return result


def _nv12_to_rgb(planes: npt.NDArray[np.uint8], pixels: PixelFormat) -> Float64:
    """Convert every pixel with the chroma of its 2x2 block; clamped, not rounded."""
    height, width = pixels.picture_size(*planes.shape)
    luma = planes[:height].astype(np.float64)
    chroma = planes[height:].reshape(height // 2, width // 2, 2).astype(np.float64) - 128
    u, v = chroma.repeat(2, axis=0).repeat(2, axis=1).transpose(2, 0, 1)
    k = pixels.yuv
    y = k.luma_scale * (luma - k.luma_offset)
    rgb = (y + k.red_v * v, y + k.green_u * u + k.green_v * v, y + k.blue_u * u)
    clamped: Float64 = np.clip(np.stack(rgb, axis=-1), 0, 255)
    return clamped
