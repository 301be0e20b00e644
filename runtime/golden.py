"""Frames as a bundle takes them, and its golden samples: a few, with every stage's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle
from runtime.errors import BundleError, InputError
from runtime.images import read_npz
from runtime.schema import Form, FrameFormat

Logits = npt.NDArray[np.float32]

GOLDEN_TOLERANCE: dict[Form, float] = {
    "fp32": 0.01,
    "fp16": 0.05,
    "int8_host": 0.1,
    "int8_trt": 0.5,
}
"""Largest difference of a golden logit: far below another model's output, and above what the same
form gives with other kernels (of 1,000 images 0.012, 0.03 and 0.4 for the last three, measured)."""


@dataclass(frozen=True)
class Golden:
    """Golden samples for one form of each stage.

    Attributes
    ----------
    frames
        u8 [g, H, W, C].
    logits
        Per stage f32 [g, K].
    """

    bundle: Bundle
    forms: tuple[Form, ...]
    frames: npt.NDArray[np.uint8]
    logits: tuple[Logits, ...]

    def worst(self, found: Sequence[Logits]) -> list[float]:
        """Return per stage the largest difference to logits of the first frames; NaN if one is."""
        pairs = zip(found, self.logits, strict=True)
        return [float(np.abs(some - wanted[: len(some)]).max()) for some, wanted in pairs]

    def check(self, found: Sequence[Logits], *, engine: str) -> None:
        """Hold the logits that an engine gave for the first frames against the stored ones.

        Raises
        ------
        BundleError
            When a stage's differ by more than `GOLDEN_TOLERANCE`.
        """
        for number, worst in enumerate(self.worst(found)):
            form = self.forms[number]
            if not worst <= GOLDEN_TOLERANCE[form]:
                raise BundleError(
                    f"{self.bundle.model(number, form)}: golden samples give other logits than "
                    f"when the bundle was made (largest difference {worst:.3g}, allowed "
                    f"{GOLDEN_TOLERANCE[form]}). Update {engine}, or rebuild the bundle."
                )


def load_golden(bundle: Bundle, forms: tuple[Form, ...]) -> Golden | None:
    """Return a bundle's golden samples for these forms, or None where it has none at all.

    Raises
    ------
    BundleError
        When the file is damaged or lacks a stage's form.
    """
    described = bundle.spec.golden
    if described is None:
        return None
    path = bundle.verified(described.file, described.sha256)
    pairs = zip(bundle.spec.stages, forms, strict=True)
    names = [f"logits/{stage.name}/{form}" for stage, form in pairs]
    try:
        content = read_npz(path)
        if not {"frames", *names} <= set(content):
            raise InputError(f"expected {', '.join(['frames', *names])}, got {', '.join(content)}.")
        frames = check_frames(content["frames"], bundle.spec.input)
        shape = (max(1, len(frames)), len(bundle.spec.labels))
        for name in names:
            if content[name].shape != shape:
                raise InputError(
                    f"{name}: expected {list(shape)}, got {list(content[name].shape)}."
                )
    except InputError as error:
        raise BundleError(f"{path}: golden samples: {error} Rebuild the bundle.") from None
    return Golden(bundle, forms, frames, tuple(content[name] for name in names))


def check_frames(array: Any, expected: FrameFormat) -> Any:
    """Return frames of the host or a device, if they fit."""
    height, width, channels = expected.shape
    fits = array.ndim == 4 and array.shape[3] == channels and 0 not in array.shape[1:]
    if fits and height:
        fits = array.shape[1:3] == (height, width)
    if not fits or array.dtype != np.uint8:
        size = f"{height or 'height'}, {width or 'width'}, {channels}"
        raise InputError(
            f"frames: expected u8 [N, {size}] ({expected.colour}), "
            f"got {array.dtype} {list(array.shape)}. {_advice(array, channels)}"
        )
    try:
        expected.pixels.picture_size(*array.shape[1:3])
    except ValueError as error:
        raise InputError(f"frames: {error}. Crop them to even sides.") from None
    return array


def _advice(array: npt.NDArray[np.generic], channels: int) -> str:
    if array.ndim == 3 and array.shape[-1] == channels:
        return "For one frame pass frame[None]."
    if array.ndim == 3 and channels == 1:
        return "For grey frames without a channel axis pass frames[..., None]."
    if array.dtype != np.uint8:
        return "Pass pixels as 0..255 in numpy.uint8; the cascade normalises them itself."
    return "Resize the frames, or make a bundle for this size."
