"""Small pictures of samples for a page: data URIs that need no file and no network."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.records import Data
from runtime.preprocess import Preprocessor
from runtime.schema import FrameFormat, Preprocessing

SIDE = 96
"""Longest side; larger frames are made smaller."""
LOSSLESS = 40
"""Up to this side a picture is a PNG: icons and digits. Larger ones, photographs, are JPEG."""


class Pictures:
    """Samples of a data set as pictures, whatever the colours of its frames.

    Parameters
    ----------
    frame_format
        Of the bundle; a size of 0 takes that of the data.
    """

    def __init__(self, data: Data, frame_format: FrameFormat) -> None:
        self._images = data.images
        height, width = frame_format.pixels.picture_size(*data.images.shape[1:3])
        ratio = min(1.0, SIDE / max(height, width))
        self.size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        shown = Preprocessing(size=self.size, colour="rgb", mean=(0.0,) * 3, std=(1.0,) * 3)
        self._preprocess = Preprocessor(shown, frame_format)

    def uri(self, index: int) -> str:
        """Return a sample as a data URI."""
        kind = "png" if max(self.size) <= LOSSLESS else "jpeg"
        content = _encoded(self.pixels(index), kind)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """Return a sample as it is shown, u8 [h, w, 3]."""
        planes = self._preprocess(self._images[index : index + 1])[0]
        levels = (255 * planes.transpose(1, 2, 0)).round().clip(0, 255)
        pixels: npt.NDArray[np.uint8] = levels.astype(np.uint8)
        return pixels


def _encoded(pixels: npt.NDArray[np.uint8], kind: str) -> bytes:
    from matplotlib.image import imsave

    stream = io.BytesIO()
    options: dict[str, Any] = {"optimize": True} if kind == "png" else {"quality": 80}
    imsave(stream, pixels, format=kind, pil_kwargs=options)
    return stream.getvalue()
