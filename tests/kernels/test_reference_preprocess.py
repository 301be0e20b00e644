"""The reference of preprocessing against hand-made cases and OpenCV on float pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kernels.frames import NetworkInput, PixelFormat
from kernels.reference_preprocess import bilinear, preprocess, to_rgb_or_grey

GREY, RGB, BGR = (PixelFormat(colour) for colour in ("grey", "rgb", "bgr"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def levels(height, width, colour="grey", resize="stretch"):
    """A network that takes grey levels as they are."""
    channels = 1 if colour == "grey" else 3
    return NetworkInput((height, width), colour, resize, (0.0,) * channels, (1 / 255,) * channels)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def grey(*rows):
    return np.array(rows, np.uint8)[..., None]


def test_a_frame_of_the_networks_size_is_only_normalised():
    frame = noise(5, 7, 3)
    found = preprocess(frame, RGB, NetworkInput((5, 7), "rgb", "stretch", MEAN, STD))
    expected = (frame / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=1e-12)
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([0, 1], [0, 0.25, 0.75, 1]),
        ([0, 100], [0, 10, 50, 90, 100]),
        ([10, 20, 40, 80], [15, 60]),
        ([7, 20, 40], [20]),
        ([0, 4, 8], [1, 7]),
        ([5], [5, 5, 5]),
    ],
)
def test_pixels_lie_at_half_pixel_centres(line, expected):
    row, column = grey(line), grey(*([value] for value in line))
    found = preprocess(row, GREY, levels(1, len(expected)))
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-12)
    found = preprocess(column, GREY, levels(len(expected), 1))
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-12)


def test_two_by_two_pixels_become_their_mean():
    assert preprocess(grey([0, 1], [3, 8]), GREY, levels(1, 1)).item() == 3


def test_a_resize_is_not_rounded():
    found = preprocess(grey([0, 1], [0, 1]), GREY, levels(2, 3))
    np.testing.assert_allclose(found[0], [[0, 0.5, 1]] * 2, atol=1e-12)


@pytest.mark.parametrize("resize", ["centre_crop", "letterbox"])
def test_crops_and_borders_lie_in_the_middle(resize):
    frame = grey([10, 20, 30, 40], [50, 60, 70, 80])
    found = preprocess(frame, GREY, NetworkInput((4, 4), "grey", resize, (0.5,), (1 / 255,)))[0]
    if resize == "letterbox":
        np.testing.assert_array_equal(found[[0, 3]], np.zeros((2, 4)))
        np.testing.assert_allclose(found[1:3], frame[..., 0] - 127.5)
    else:
        middle = frame[:, 1:3].astype(float)
        np.testing.assert_allclose(found, bilinear(middle, (4, 4))[..., 0] - 127.5)


@pytest.mark.parametrize(
    ("before", "after"),
    [((28, 28), (14, 15)), ((7, 13), (1, 1)), ((31, 17), (32, 33)), ((5, 64), (24, 10))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_equals_opencv_on_float(before, after, channels):
    image = noise(*before, channels).astype(np.float64)
    expected = cv2.resize(image.astype(np.float32), after[::-1], interpolation=cv2.INTER_LINEAR)
    found = bilinear(image, after)
    # OpenCV keeps positions in float32: half of 2^-18 pixels below 64, on both axes.
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=255 * 2**-18)


@pytest.mark.parametrize(("pixels", "code"), [(RGB, "COLOR_RGB2GRAY"), (BGR, "COLOR_BGR2GRAY")])
def test_grey_is_what_opencv_makes_of_float(pixels, code):
    frame = noise(6, 5, 3)
    expected = cv2.cvtColor(frame.astype(np.float32), getattr(cv2, code))
    found = preprocess(frame, pixels, levels(6, 5))
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize("source", [RGB, BGR])
@pytest.mark.parametrize("wanted", ["rgb", "bgr"])
def test_channels_come_in_the_order_the_network_wants(source, wanted):
    frame = noise(3, 4, 3)
    order = slice(None) if source.colour == wanted else slice(None, None, -1)
    found = preprocess(frame, source, levels(3, 4, wanted))
    np.testing.assert_array_equal(found, frame[..., order].transpose(2, 0, 1))


def test_grey_frames_fill_all_channels():
    frame = noise(3, 4, 1)
    found = preprocess(frame, GREY, levels(3, 4, "bgr"))
    np.testing.assert_array_equal(found, np.repeat(frame, 3, axis=2).transpose(2, 0, 1))


# Luma and chroma of full red, green, blue, white and black, as 8-bit codes of each standard.
PRIMARIES = {
    ("bt601", "limited"): [
        (81, 90, 240),
        (145, 54, 34),
        (41, 240, 110),
        (235, 128, 128),
        (16, 128, 128),
    ],
    ("bt709", "limited"): [
        (63, 102, 240),
        (173, 42, 26),
        (32, 240, 118),
        (235, 128, 128),
        (16, 128, 128),
    ],
    ("bt601", "full"): [
        (76, 85, 255),
        (150, 44, 21),
        (29, 255, 107),
        (255, 128, 128),
        (0, 128, 128),
    ],
    ("bt709", "full"): [
        (54, 99, 255),
        (182, 30, 12),
        (18, 255, 116),
        (255, 128, 128),
        (0, 128, 128),
    ],
}
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]


def nv12_of(luma, pairs):
    """A frame from luma [H, W] and chroma pairs [H / 2, W / 2, 2]."""
    luma = np.asarray(luma, np.uint8)
    return np.concatenate([luma, np.asarray(pairs, np.uint8).reshape(-1, luma.shape[1])])[..., None]


@pytest.mark.parametrize(("matrix", "span"), PRIMARIES)
def test_nv12_codes_of_the_primaries_become_them(matrix, span):
    for (y, u, v), colour in zip(PRIMARIES[matrix, span], COLOURS, strict=True):
        frame = nv12_of(np.full((2, 2), y), [[(u, v)]])
        found = preprocess(frame, PixelFormat("nv12", matrix, span), levels(2, 2, "rgb"))
        # Codes are rounded: half a code of luma and of chroma, which weighs at most 2.12.
        np.testing.assert_allclose(
            found, np.broadcast_to(colour, (2, 2, 3)).T, atol=0.6 + 0.5 * 2.12
        )


def test_four_pixels_of_nv12_share_a_chroma_pair():
    luma = np.full((4, 4), 100)
    pairs = np.array([[(128, 128), (128, 228)], [(28, 128), (28, 228)]])
    rgb = to_rgb_or_grey(nv12_of(luma, pairs), PixelFormat("nv12", "bt601", "full"))
    assert (rgb[:2, :2] == 100).all()
    np.testing.assert_allclose(rgb[..., 0], np.repeat([[100, 240.2]] * 4, 2, axis=1), atol=1e-9)
    assert len(np.unique(rgb.round(6).reshape(-1, 3), axis=0)) == 4
    for row, column in ((0, 0), (0, 2), (2, 0), (2, 2)):
        block = rgb[row : row + 2, column : column + 2]
        np.testing.assert_array_equal(block, np.broadcast_to(block[0, 0], block.shape))


def test_nv12_is_clamped_before_it_is_resized():
    """Red of 255 + 178 clamps to 255; between it and 0 lies 127.5, not 216."""
    frame = nv12_of([[255, 255, 0, 0]] * 2, [[(128, 255), (128, 0)]])
    found = preprocess(frame, PixelFormat("nv12", "bt601", "full"), levels(2, 2, "rgb"))
    np.testing.assert_allclose(found[0, 0], [255, 0])
    found = preprocess(frame, PixelFormat("nv12", "bt601", "full"), levels(1, 1, "rgb"))
    np.testing.assert_allclose(found[0, 0, 0], 127.5)


def test_nv12_equals_opencv_within_its_rounding():
    frame = noise(12, 10, 1)
    frame[:8] = np.maximum(frame[:8], 16)  # below black, OpenCV clamps luma first
    expected = cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12)
    found = to_rgb_or_grey(frame, PixelFormat("nv12", "bt601", "limited"))
    # OpenCV rounds, and its coefficients: 1.164, 1.596, 0.813, 0.391, 2.018.
    np.testing.assert_allclose(found, expected, atol=0.5 + 0.1 + 0.15)


def test_grey_of_nv12_is_that_of_its_colours():
    frame, pixels = noise(6, 4, 1), PixelFormat("nv12", "bt709", "limited")
    rgb = preprocess(frame, pixels, levels(4, 4, "rgb"))
    found = preprocess(frame, pixels, levels(4, 4))
    np.testing.assert_allclose(found[0], np.tensordot([0.299, 0.587, 0.114], rgb, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("frame", "pixels", "message"),
    [
        (noise(4, 4), GREY, r"frame: expected u8 \[H, W, 1\], got uint8 \[4, 4\]"),
        (noise(4, 4, 1), RGB, r"frame: expected u8 \[H, W, 3\], got uint8 \[4, 4, 1\]"),
        (noise(4, 4, 1), PixelFormat("nv12", "bt601", "full"), "nv12: expected an even width"),
        (noise(6, 3, 1), PixelFormat("nv12", "bt601", "full"), "nv12: expected an even width"),
    ],
)
def test_frames_of_another_shape_are_refused(frame, pixels, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        preprocess(frame, pixels, levels(2, 2))
