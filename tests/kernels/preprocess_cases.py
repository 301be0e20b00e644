"""Cases of preprocessing: frames somewhere in memory, one run of the kernel, what it must give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import ops, reference_preprocess
from kernels.launch import DeviceArray
from tests.kernels.dense_cases import Plan
from tests.kernels.machine import Machine

Array = npt.NDArray[Any]

FORMATS = {
    "grey": ops.PixelFormat("grey"),
    "rgb": ops.PixelFormat("rgb"),
    "bgr": ops.PixelFormat("bgr"),
    "nv12": ops.PixelFormat("nv12", "bt601", "limited"),
    "nv12-709-full": ops.PixelFormat("nv12", "bt709", "full"),
}
UNTOUCHED = 99.0
PADDING = 0xA5
"""Bytes between the rows of a frame, which are no pixels."""

GREY_LEVELS = 2e-4
"""By which f32 may differ from f64: fifteen roundings of numbers up to 256, each 2^-17 at most. The
promise is 1e-3."""


class Source(NamedTuple):
    """A frame of noise; ``pitch`` bytes more than a row has, ``offset`` bytes of misalignment."""

    height: int
    width: int
    format: str = "rgb"
    pitch: int = 0
    offset: int = 0
    split: bool = False
    """The chroma plane of NV12 lies elsewhere, with a pitch of its own."""

    def frame(self, seed: int = 0) -> Array:
        """Return u8 [H, W, C], NV12 as [H * 3/2, W, 1]."""
        rng = np.random.default_rng([seed, self.height, self.width])
        pixels = FORMATS[self.format]
        rows = self.height * 3 // 2 if pixels.colour == "nv12" else self.height
        return rng.integers(0, 256, (rows, self.width, pixels.bytes_per_pixel), np.uint8)

    def upload(self, frame: Array, machine: Machine) -> ops.Frame:
        rows = frame.reshape(len(frame), -1)
        pitch = rows.shape[1] + self.pitch
        chroma, chroma_pitch = None, None
        if self.split:
            chroma_pitch = pitch + 3
            chroma = upload_plane(rows[self.height :], chroma_pitch, machine, self.offset + 1)
            rows = rows[: self.height]
        address = upload_plane(rows, pitch, machine, self.offset)
        pixels = FORMATS[self.format]
        dense = pitch == rows.shape[1]
        return ops.Frame(
            address,
            self.height,
            self.width,
            pixels,
            pitch=None if dense else pitch,
            chroma=chroma,
            chroma_pitch=chroma_pitch,
        )


def upload_plane(rows: Array, pitch: int, machine: Machine, offset: int) -> int:
    """Return the address of rows that lie ``pitch`` bytes apart, without padding after the last."""
    plane = np.full((len(rows), pitch), PADDING, np.uint8)
    plane[:, : rows.shape[1]] = rows
    last = rows.shape[1] - pitch
    return machine.upload(plane.reshape(-1)[: last or None], offset=offset).address


def network(
    height: int,
    width: int,
    colour: ops.Colour = "rgb",
    resize: ops.Resize = "stretch",
    *,
    unit: bool = True,
) -> ops.NetworkInput:
    """Return a network that takes grey levels as they are, or normalised as is usual."""
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if unit:
        mean, std = (0.0,) * 3, (1 / 255,) * 3
    channels = 1 if colour == "grey" else 3
    return ops.NetworkInput((height, width), colour, resize, mean[:channels], std[:channels])


def upload_table(
    frames: Sequence[ops.Frame], net: ops.NetworkInput, machine: Machine
) -> DeviceArray:
    table = ops.frame_table(frames, net)
    return machine.upload(table.view(np.uint8).reshape(len(table), -1))


def run_preprocess(
    sources: Sequence[Source],
    net: ops.NetworkInput,
    machine: Machine,
    *,
    dtype: str = "float32",
    valid: int | None = None,
    plan: Plan | None = None,
) -> None:
    """Preprocess all frames, the first ``valid``, or the escalated ones; compare."""
    frames = [source.frame(seed) for seed, source in enumerate(sources)]
    uploaded = [s.upload(frame, machine) for s, frame in zip(sources, frames, strict=True)]
    table = upload_table(uploaded, net, machine)
    count = len(frames) if valid is None else valid
    shown = np.where(np.arange(len(frames)) < count, np.arange(len(frames)), -1)
    if plan is None:
        rows: DeviceArray | ops.Escalated = machine.upload(np.array([count], np.int32))
    else:
        rows, shown = plan.upload(machine), plan.sources()
    out = machine.upload(np.full((len(shown), *net.shape), UNTOUCHED, dtype))
    machine.run(ops.preprocess(table, rows, out, net))
    found = machine.download(out)
    assert (found[shown < 0] == UNTOUCHED).all()
    for source in set(shown[shown >= 0].tolist()):
        pixels = FORMATS[sources[source].format]
        expected = reference_preprocess.preprocess(frames[source], pixels, net)
        for image in found[shown == source]:
            compare(image, expected, net)


def compare(found: Array, expected: Array, net: ops.NetworkInput) -> None:
    """Hold an image [c, h, w] against f64, in grey levels; fp16 also has its own rounding."""
    if found.dtype == np.float16:
        rounding = 2.0**-11 * np.abs(expected) + 2.0**-25
    else:
        # Normalising rounds twice, numbers of the size of the offset or the result.
        offset = np.abs(net.offset).max()
        rounding = 2.0**-23 * (np.abs(expected) + offset)
    levels = GREY_LEVELS / (255 * np.array(net.std))[:, None, None]
    worst = (np.abs(found - expected) - rounding) / levels
    assert worst.max() <= 1, f"off by {worst.max():.3g} times what is allowed"
