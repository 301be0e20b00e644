"""The checked launch of preprocess.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kernels.dense import DenseArguments, Escalated, check_escalated, dense_arguments
from kernels.frame_table import ENTRY
from kernels.frames import NetworkInput
from kernels.launch import (
    Arguments,
    DeviceArray,
    Kernel,
    Launch,
    ceil_div,
    check_alignment,
    check_count,
)

_COLOURS = {"grey": 0, "rgb": 1, "bgr": 2}  # NetworkColour of preprocess.cu
_TABLE_ALIGNMENT = 16
_TILE = 32
_MOST_GRID_Y = 65535


class _PreprocessArguments(ctypes.Structure):
    _fields_ = (
        ("frames", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("dense", DenseArguments),
        *((name, ctypes.c_int) for name in ("rows", "height", "width", "colour")),
        ("scale", ctypes.c_float * 3),
        ("offset", ctypes.c_float * 3),
    )


def preprocess(
    table: DeviceArray,
    rows: DeviceArray | Escalated,
    out: DeviceArray,
    network: NetworkInput,
    *,
    memory: Sequence[DeviceArray] = (),
) -> Launch:
    """Return the launch that turns frames into a network's input.

    The table is read when the kernel runs: what it says may change from one run to the next.

    Parameters
    ----------
    table
        u8 [frames, 96], from `kernels.frame_table.frame_table` for the same ``network``.
    rows
        How many frames are valid, i32 [1]: row j of ``out`` is then frame j, and rows behind them
        are not written. Or the rows that a gate sends on, numbered as the frames of the table.
    out
        f16 or f32 [rows, channels, height, width].
    memory
        u8, of any shape: where frames lie, as far as that is known, to hold ``out`` against it.

    Raises
    ------
    ValueError
        For an array of another dtype, shape or alignment than stated, or arrays that overlap; the
        message names the array.
    """
    check = Arguments()
    dense, length, frames = _check_rows(check, rows)
    (out_rows, *_) = check.write("out", out, "f16 f32", (length, *network.shape)).shape
    check_count("rows", out_rows)
    check.read("table", table, "u8", (frames or out_rows, ENTRY.itemsize))
    check_count("frames", table.shape[0], least=min(1, out_rows))
    check_alignment("table", table, _TABLE_ALIGNMENT)
    for index, array in enumerate(memory):
        check.read(f"memory {index}", array, "u8", array.shape)
    check.separate()
    height, width = network.size
    arguments = _PreprocessArguments(
        frames=table.address,
        out=out.address,
        dense=dense,
        rows=out_rows,
        height=height,
        width=width,
        colour=_COLOURS[network.colour],
        scale=_three(network.scale),
        offset=_three(network.offset),
    )
    tiles = ceil_div(width, _TILE) * ceil_div(height, _TILE)
    grid = (tiles, min(out_rows, _MOST_GRID_Y), 1)
    kernel = Kernel("preprocess", f"preprocess_fp{8 * out.dtype.itemsize}")
    return Launch(kernel, grid if out_rows else None, arguments)


def _check_rows(
    check: Arguments, rows: DeviceArray | Escalated
) -> tuple[DenseArguments, int | str, str | None]:
    """Return the struct of dense.cuh, the rows of ``out``, and the table's length if it is free."""
    if isinstance(rows, Escalated):
        dense_rows = check_escalated(check, rows)
        return dense_arguments(rows), dense_rows, "frames"
    check.read("valid", rows, "i32", (1,))
    return DenseArguments(count=rows.address), "rows", None


def _three(values: npt.NDArray[np.float32]) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * 3)(*values)
