"""Geometry and colours of frames: hand-made cases, and taps in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from kernels.frames import (
    NetworkInput,
    PixelFormat,
    Window,
    crop_window,
    letterbox_window,
    place,
    taps,
)


def network(size=(8, 8), colour="grey", resize="stretch", mean=(0.0,), std=(1.0,)):
    return NetworkInput(size, colour, resize, mean, std)


@pytest.mark.parametrize(("source", "target"), [(1, 1), (1, 5), (7, 7), (3, 8), (8, 3), (640, 224)])
def test_taps_are_the_exact_half_pixel_positions(source, target):
    found = taps(source, target)
    for x in range(target):
        position = Fraction(2 * x + 1, 2) * Fraction(source, target) - Fraction(1, 2)
        position = min(max(position, Fraction(0)), Fraction(source - 1))
        whole = int(position)
        assert found.first[x] == whole
        assert found.second[x] == min(whole + 1, source - 1)
        if whole < source - 1:
            assert found.weight[x] == float(position - whole)
        else:
            assert 0 <= found.weight[x] < 1  # both taps are the last pixel


def test_a_line_of_the_same_length_is_taken_as_it_is():
    found = taps(9, 9)
    np.testing.assert_array_equal(found.first, np.arange(9))
    assert not found.weight.any()


@pytest.mark.parametrize(
    ("frame", "size", "window"),
    [
        ((10, 20), (5, 5), (0, 5, 10, 10)),
        ((11, 20), (7, 7), (0, 4, 11, 11)),
        ((12, 30), (8, 4), (0, 12, 12, 6)),
        ((2, 2), (1, 900), (0, 0, 1, 2)),
    ],
)
def test_a_centre_crop_is_the_largest_middle_part_of_that_shape(frame, size, window):
    assert crop_window(frame, size) == window
    placement = place(frame, network(size, resize="centre_crop"))
    assert placement == (window, (0, 0, *size))


@pytest.mark.parametrize(
    ("frame", "size", "window"),
    [
        ((10, 20), (16, 16), (4, 0, 8, 16)),
        ((3, 40), (8, 8), (3, 0, 1, 8)),
        ((13, 13), (8, 20), (0, 6, 8, 8)),
        ((1, 90), (9, 9), (4, 0, 1, 9)),
    ],
)
def test_a_letterbox_shows_the_whole_frame(frame, size, window):
    assert letterbox_window(frame, size) == window
    placement = place(frame, network(size, resize="letterbox"))
    assert placement == ((0, 0, *frame), window)


def test_stretching_takes_all_for_all():
    assert place((3, 4), network((5, 6))) == ((0, 0, 3, 4), (0, 0, 5, 6))


@pytest.mark.parametrize("resize", ["stretch", "centre_crop", "letterbox"])
@pytest.mark.parametrize("side", [1, 2, 97, 32767])
def test_frames_of_the_networks_size_are_neither_cut_nor_bordered(side, resize):
    whole = (0, 0, side, 7)
    assert place((side, 7), network((side, 7), resize=resize)) == (whole, whole)


def test_a_window_is_a_part_of_an_array():
    window = Window(1, 2, 3, 4)
    assert np.zeros((9, 9))[window.rows, window.columns].shape == (3, 4)
    assert np.arange(9)[window.columns].tolist() == [2, 3, 4, 5]


def test_nv12_pictures_have_two_thirds_of_the_rows():
    nv12 = PixelFormat("nv12", "bt601", "full")
    assert nv12.picture_size(6, 8) == (4, 8)
    assert PixelFormat("grey").picture_size(5, 7) == (5, 7)
    for rows, columns in ((4, 8), (6, 7), (5, 8)):
        with pytest.raises(
            ValueError, match=f"^nv12: expected an even .* {rows} rows of {columns}"
        ):
            nv12.picture_size(rows, columns)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nv12",),
        ("nv12", "bt601"),
        ("nv12", None, "full"),
        ("rgb", "bt601", "full"),
        ("grey", "bt709"),
    ],
)
def test_matrix_and_range_belong_to_nv12(arguments):
    with pytest.raises(
        ValueError, match=r"^matrix, range: expected for nv12, and only for it, got "
    ):
        PixelFormat(*arguments)


def test_packed_pixels_have_no_yuv():
    with pytest.raises(ValueError, match=r"^colour: expected nv12, got rgb"):
        _ = PixelFormat("rgb").yuv


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (0, 5)}, r"size: expected sides of 1 to 32767, got \[0, 5\]"),
        ({"size": (5, 32768)}, r"size: expected sides of 1 to 32767, got \[5, 32768\]"),
        ({"colour": "rgb"}, r"mean, std: expected 3 number\(s\) each for rgb, got 1, 1"),
        ({"std": (1.0, 2.0)}, r"mean, std: expected 1 number\(s\) each for grey, got 1, 2"),
        ({"std": (0.0,)}, r"std: expected finite numbers > 0, got \[0.0\]"),
        ({"std": (float("nan"),)}, "std: expected finite numbers"),
        ({"std": (float("inf"),)}, "std: expected finite numbers"),
    ],
)
def test_what_no_network_takes_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        network(**changes)


def test_scale_and_offset_normalise():
    net = network((2, 3), "rgb", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    assert net.shape == (3, 2, 3)
    assert (net.scale.dtype, net.offset.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(255 * net.scale + net.offset, [1.0, 3.0, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(net.offset, [-1.0, -1.0, 0.0])
