"""Checked launches of the kernels.

Everything is checked once, when a launch is made: dtype, rank, sizes, alignment, overlap. The
`Launch` then only holds addresses, so that enqueuing or capturing it costs next to nothing::

    launch = ops.gate(inputs, outputs, scratch, buckets=(1, 2, 4, 8), stage=0)
    launch.enqueue(launcher, stream=stream)

Counts that a GPU produces stay on it: how many rows are valid or escalated is read by the kernels.
The ``.cu`` files say what every array means; `kernels.reference` is their judge.
"""

from __future__ import annotations

from kernels.dense import MOST_TENSORS, Combination, Escalated, gather, scatter
from kernels.frame_table import Frame, frame_table
from kernels.frames import Colour, NetworkInput, PixelFormat, Resize
from kernels.gate import (
    GateInputs,
    GateOutputs,
    GateScratch,
    ScoreName,
    check_buckets,
    gate,
    mask_words,
    rounds,
    temperature_value,
    threshold_values,
)
from kernels.launch import DeviceArray, Kernel, Launch, Launcher
from kernels.preprocess import preprocess
from kernels.select import MOST_HANDLES, select

__all__ = [
    "MOST_HANDLES",
    "MOST_TENSORS",
    "Colour",
    "Combination",
    "DeviceArray",
    "Escalated",
    "Frame",
    "GateInputs",
    "GateOutputs",
    "GateScratch",
    "Kernel",
    "Launch",
    "Launcher",
    "NetworkInput",
    "PixelFormat",
    "Resize",
    "ScoreName",
    "check_buckets",
    "frame_table",
    "gate",
    "gather",
    "mask_words",
    "preprocess",
    "rounds",
    "scatter",
    "select",
    "temperature_value",
    "threshold_values",
]
