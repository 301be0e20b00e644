"""What describing frames and launching preprocess refuse, with the message, and what they make."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import ops
from kernels.launch import DeviceArray

GREY, RGB = ops.PixelFormat("grey"), ops.PixelFormat("rgb")
NV12 = ops.PixelFormat("nv12", "bt709", "limited")
NETWORK = ops.NetworkInput((40, 50), "rgb", "letterbox", (0.5,) * 3, (0.25,) * 3)
ROWS = 6


def array(address, dtype, *shape):
    """Memory that nobody reads: checks look at addresses only."""
    return DeviceArray(address, np.dtype(dtype), shape)


TABLE = array(0x10000, "u1", ROWS, 96)
VALID = array(0x20000, "i4", 1)
OUT = array(0x100000, "f4", ROWS, 3, 40, 50)


def escalated(largest=2, rounds=3, **changes):
    arrays = {
        "idx": array(0x30000, "i4", ROWS),
        "count": array(0x40000, "i4", 1),
        "bucket": array(0x50000, "i4", rounds),
        **changes,
    }
    return ops.Escalated(**arrays, largest=largest, rounds=rounds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 1}, "frame: expected sides of 2 to 32767, got 1x8"),
        ({"width": 1}, "frame: expected sides of 2 to 32767, got 6x1"),
        ({"width": 32768}, "frame: expected sides of 2 to 32767, got 6x32768"),
        ({"height": -6}, "frame: expected sides of 2 to 32767, got -6x8"),
        ({"pixels": NV12, "height": 5}, "frame: expected even sides for nv12, got 5x8"),
        ({"pixels": NV12, "width": 7}, "frame: expected even sides for nv12, got 6x7"),
        ({"pitch": 23}, "pitch: expected at least 24 bytes, a row of 8 rgb pixels, got 23"),
        ({"pitch": -24}, "pitch: expected at least 24 bytes, a row of 8 rgb pixels, got -24"),
        ({"pitch": 2**62}, "pitch: expected at least 24 bytes"),
        (
            {"pixels": NV12, "chroma_pitch": 7},
            "chroma_pitch: expected at least 8 bytes, a row of 8",
        ),
        ({"pixels": NV12, "chroma": 0}, "chroma: expected an address of device memory, got 0x0"),
        ({"address": 0}, "address: expected an address of device memory, got 0x0"),
        ({"address": 2**64}, "address: expected an address of device memory, got 0x1000"),
        ({"chroma": 0x9000}, "chroma: expected none for rgb, got a plane"),
        ({"chroma_pitch": 24}, "chroma: expected none for rgb, got a plane"),
    ],
)
def test_frames_that_cannot_be_are_refused(changes, message):
    arguments = {"address": 0x5000, "height": 6, "width": 8, "pixels": RGB, **changes}
    with pytest.raises(ValueError, match=f"^{message}"):
        ops.Frame(**arguments)


def test_the_chroma_plane_follows_the_luma_plane_by_default():
    frame = ops.Frame(0x5000, 6, 8, NV12, pitch=100)
    assert frame.planes() == [(0x5000, 100, 6), (0x5000 + 600, 100, 3)]
    apart = ops.Frame(0x5000, 6, 8, NV12, chroma=0x900, chroma_pitch=64)
    assert apart.planes() == [(0x5000, 8, 6), (0x900, 64, 3)]
    assert ops.Frame(0x5000, 6, 8, RGB).planes() == [(0x5000, 24, 6)]


def test_a_table_has_an_entry_for_each_frame():
    frames = [ops.Frame(2**40 + 1, 20, 50, GREY), ops.Frame(0x9000, 80, 80, NV12, pitch=96)]
    table = ops.frame_table(frames, NETWORK)
    assert (table.shape, table.dtype.itemsize) == ((2,), 96)
    assert table["pixels"].tolist() == [2**40 + 1, 0x9000]
    assert table["chroma"].tolist() == [0, 0x9000 + 80 * 96]
    assert table["pitch"].tolist() == [50, 96]
    assert table["chroma_pitch"].tolist() == [0, 96]
    assert table["format"].tolist() == [0, 3]
    assert table["source"].tolist() == [(0, 0, 20, 50), (0, 0, 80, 80)]
    assert table["target"].tolist() == [(10, 0, 20, 50), (0, 5, 40, 40)]
    assert table["luma_offset"].tolist() == [0, 16]
    assert ops.frame_table([], NETWORK).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": array(0x10000, "u1", 5, 96)}, r"table: expected u8 \[6, 96\], got u8 \[5, 96\]"),
        ({"table": array(0x10000, "u1", 6, 95)}, r"table: expected u8 \[6, 96\], got u8 \[6, 95\]"),
        (
            {"table": array(0x10000, "f4", 6, 96)},
            r"table: expected u8 \[6, 96\], got f32 \[6, 96\]",
        ),
        (
            {"table": array(0x10008, "u1", 6, 96)},
            "table: expected an address that is a multiple of 16",
        ),
        ({"rows": array(0x20000, "i8", 1)}, r"valid: expected i32 \[1\], got i64 \[1\]"),
        ({"rows": array(0x20002, "i4", 1)}, "valid: expected an address that is a multiple of 4"),
        (
            {"out": array(0x100000, "f8", 6, 3, 40, 50)},
            r"out: expected f16 or f32 \[rows, 3, 40, 50\], got f64 \[6, 3, 40, 50\]",
        ),
        (
            {"out": array(0x100000, "f4", 6, 3, 50, 40)},
            r"out: expected f16 or f32 \[rows, 3, 40, 50\]",
        ),
        (
            {"out": array(0x100000, "f4", 3, 40, 50)},
            r"out: expected f16 or f32 \[rows, 3, 40, 50\]",
        ),
        (
            {"out": array(0x100000, "f4")},
            r"out: expected f16 or f32 \[rows, 3, 40, 50\], got f32 \[\]",
        ),
        (
            {"out": array(0x100001, "f2", 6, 3, 40, 50)},
            "out: expected an address that is a multiple",
        ),
        ({"out": array(0xFF00, "f4", 6, 3, 40, 50)}, "expected memory of its own, overlaps"),
        ({"out": array(0x1FF00, "f4", 6, 3, 40, 50)}, "expected memory of its own, overlaps out"),
        (
            {"rows": escalated(largest=3)},
            r"out: expected f16 or f32 \[9, 3, 40, 50\], got f32 \[6, ",
        ),
        (
            {"rows": escalated(count=array(0x40000, "i4", 2))},
            r"count: expected i32 \[1\], got i32 \[2\]",
        ),
        ({"rows": escalated(largest=0)}, "largest: expected 1 to"),
        (
            {"rows": escalated(), "table": array(0x10000, "u1", 0, 96)},
            r"frames: expected 1 to 2147483647, got 0",
        ),
        ({"rows": escalated(idx=array(0x30000, "i4", 7))}, r"rounds \* largest: expected 7 to"),
        ({"memory": [array(0x100FFF, "u1", 1)]}, "expected memory of its own, overlaps out"),
        (
            {"memory": [array(0xFFFFF, "u1", 2)]},
            "out: expected memory of its own, overlaps memory 0",
        ),
    ],
)
def test_launches_that_do_not_fit_are_refused(changes, message):
    arguments = {"table": TABLE, "rows": VALID, "out": OUT, "network": NETWORK, **changes}
    with pytest.raises(ValueError, match=message):
        ops.preprocess(**arguments)


@pytest.mark.parametrize(
    ("dtype", "kernel"), [("f2", "preprocess_fp16"), ("f4", "preprocess_fp32")]
)
def test_a_launch_has_a_block_for_each_tile_of_each_row(dtype, kernel):
    launch = ops.preprocess(TABLE, VALID, array(0x100000, dtype, *OUT.shape), NETWORK)
    assert launch.kernel == ops.Kernel("preprocess", kernel, 256)
    assert launch.grid == (4, ROWS, 1)
    launch = ops.preprocess(array(0x10000, "u1", 2, 96), escalated(), OUT, NETWORK)
    assert launch.grid == (4, ROWS, 1)


def test_a_grid_is_at_most_65535_blocks_high():
    small = ops.NetworkInput((1, 1), "grey", "stretch", (0.0,), (1.0,))
    table, out = array(0x10000, "u1", 70_000, 96), array(2**32, "f4", 70_000, 1, 1, 1)
    assert ops.preprocess(table, VALID, out, small).grid == (1, 65535, 1)


def test_frames_may_lie_close_to_the_output():
    ops.preprocess(TABLE, VALID, OUT, NETWORK, memory=[array(0xFFFF0, "u1", 2, 8, 1, 1)])


class Nothing:
    def load(self, module):
        raise AssertionError("nothing to load")

    def launch(self, *arguments, **options):
        raise AssertionError("nothing to launch")


@pytest.mark.parametrize("rows", [VALID, escalated(rounds=0, idx=array(0x30000, "i4", 0))])
def test_no_rows_launch_nothing(rows):
    launch = ops.preprocess(
        array(0x10000, "u1", 0, 96), rows, array(0x100000, "f4", 0, 3, 40, 50), NETWORK
    )
    launch.enqueue(Nothing(), stream=0)
