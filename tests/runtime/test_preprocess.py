"""Preprocessing against plain float64 loops, the reference, and OpenCV on float pixels."""

import sys

import cv2
import numpy as np
import pytest

from kernels import reference_preprocess
from kernels.frames import PixelFormat, Placement, Window
from runtime.preprocess import Preprocessor, network_input
from runtime.sampler import OpenCvSampler, Sampler, fast_sampler
from runtime.schema import FrameFormat, Preprocessing

GREY_LEVELS = 1e-3  # how far backends may be apart
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZES = [
    ((28, 28), (14, 14)),
    ((28, 28), (28, 29)),
    ((1, 1), (3, 5)),
    ((7, 13), (1, 1)),
    ((31, 17), (32, 32)),
    ((37, 53), (24, 24)),
    ((5, 64), (24, 10)),
]


def frames_of(n, height, width, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), np.uint8)


def preprocessor(size, *, source="rgb", wanted="rgb", frame=(0, 0), resize="stretch", unit=False):
    channels = 1 if wanted == "grey" else 3
    mean, std = (MEAN[:channels], STD[:channels])
    if unit:
        mean, std = (0.0,) * channels, (1 / 255,) * channels
    spec = Preprocessing(size=size, colour=wanted, resize=resize, mean=mean, std=std)
    shape = (*frame, 1 if source == "grey" else 3)
    return Preprocessor(spec, FrameFormat(shape=shape, colour=source))


def bilinear_by_loop(image, height, width):
    """Half-pixel centres, edges repeated, one output pixel at a time in float64."""
    rows, columns, channels = image.shape
    out = np.empty((height, width, channels))
    for y in range(height):
        v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
        for x in range(width):
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            a, b = v - top, u - left
            upper = (1 - b) * image[top, left] + b * image[top, right]
            lower = (1 - b) * image[below, left] + b * image[below, right]
            out[y, x] = (1 - a) * upper + a * lower
    return out


def normalised(image, channels=3):
    """f64 [c, h, w] of an image [h, w, c] in the network's channel order."""
    return ((image / 255 - np.array(MEAN[:channels])) / np.array(STD[:channels])).transpose(2, 0, 1)


@pytest.mark.parametrize(("source", "wanted"), [("rgb", "rgb"), ("bgr", "bgr"), ("grey", "grey")])
def test_normalising_equals_float64(source, wanted):
    channels = 1 if source == "grey" else 3
    frames = frames_of(3, 5, 7, channels)
    found = preprocessor((5, 7), source=source, wanted=wanted, frame=(5, 7))(frames)
    assert (found.shape, found.dtype) == ((3, channels, 5, 7), np.float32)
    for frame, image in zip(frames, found, strict=True):
        np.testing.assert_allclose(image, normalised(frame.astype(float), channels), atol=2e-6)


def test_all_256_grey_levels_pass_unchanged_through_unit_preprocessing():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    found = preprocessor((16, 16), source="grey", wanted="grey", frame=(16, 16), unit=True)(levels)
    np.testing.assert_allclose(found.ravel(), np.arange(256), rtol=2**-22)


@pytest.mark.parametrize(("source", "order"), [("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])])
def test_colour_channels_come_in_the_order_the_network_wants(source, order):
    frames = frames_of(2, 4, 4, 3)
    rgb = frames[..., order].astype(float)
    found = preprocessor((4, 4), source=source, wanted="rgb", frame=(4, 4), unit=True)(frames)
    np.testing.assert_allclose(found, rgb.transpose(0, 3, 1, 2), rtol=2**-22)
    found = preprocessor((4, 4), source=source, wanted="bgr", frame=(4, 4), unit=True)(frames)
    np.testing.assert_allclose(found, rgb[..., ::-1].transpose(0, 3, 1, 2), rtol=2**-22)


@pytest.mark.parametrize(("source", "code"), [("rgb", "COLOR_RGB2GRAY"), ("bgr", "COLOR_BGR2GRAY")])
def test_grey_is_the_luma_that_opencv_computes_on_float(source, code):
    frames = frames_of(2, 6, 5, 3)
    found = preprocessor((6, 5), source=source, wanted="grey", frame=(6, 5), unit=True)(frames)
    expected = [cv2.cvtColor(frame.astype(np.float32), getattr(cv2, code)) for frame in frames]
    np.testing.assert_allclose(found[:, 0], expected, atol=GREY_LEVELS)


@pytest.mark.parametrize("wanted", ["rgb", "bgr"])
def test_grey_frames_fill_all_channels(wanted):
    frames = frames_of(2, 3, 4, 1)
    found = preprocessor((3, 4), source="grey", wanted=wanted, frame=(3, 4), unit=True)(frames)
    expected = np.repeat(frames, 3, axis=3).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=2**-22)


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("source", ["grey", "rgb"])
def test_stretch_equals_the_loop_and_opencv(before, after, source):
    frames = frames_of(2, *before, 1 if source == "grey" else 3)
    found = preprocessor(after, source=source, wanted=source, frame=before, unit=True)(frames)
    for frame, image in zip(frames, found.transpose(0, 2, 3, 1), strict=True):
        loop = bilinear_by_loop(frame.astype(float), *after)
        np.testing.assert_allclose(image, loop, atol=GREY_LEVELS)
        resized = cv2.resize(frame.astype(np.float32), after[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(image, resized.reshape(image.shape), atol=GREY_LEVELS)


def test_a_resize_is_not_rounded_to_whole_grey_levels():
    frame = np.array([[0, 1]], np.uint8).reshape(1, 1, 2, 1)
    found = preprocessor((1, 4), source="grey", wanted="grey", frame=(1, 2), unit=True)(frame)
    np.testing.assert_allclose(found.ravel(), [0, 0.25, 0.75, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "top", "left", "rows", "columns"),
    [
        ((10, 20), (5, 5), 0, 5, 10, 10),
        ((20, 10), (5, 5), 5, 0, 10, 10),
        ((10, 20), (10, 20), 0, 0, 10, 20),
        ((11, 20), (7, 7), 0, 4, 11, 11),
        ((20, 11), (7, 7), 4, 0, 11, 11),
        ((12, 30), (8, 4), 0, 12, 12, 6),
        ((9, 9), (3, 9), 3, 0, 3, 9),
    ],
)
def test_centre_crop_takes_the_largest_middle_part_of_the_right_shape(
    before, after, top, left, rows, columns
):
    frames = frames_of(2, *before, 3)
    found = preprocessor(after, frame=before, resize="centre_crop", unit=True)(frames)
    for frame, image in zip(frames, found.transpose(0, 2, 3, 1), strict=True):
        middle = frame[top : top + rows, left : left + columns].astype(float)
        np.testing.assert_allclose(image, bilinear_by_loop(middle, *after), atol=GREY_LEVELS)


LETTERBOXES = [
    ((10, 20), (16, 16), 4, 0, 8, 16),
    ((20, 10), (16, 16), 0, 4, 16, 8),
    ((3, 40), (8, 8), 3, 0, 1, 8),
    ((40, 3), (8, 8), 0, 3, 8, 1),
    ((13, 13), (8, 20), 0, 6, 8, 8),
    ((5, 10), (5, 11), 0, 0, 5, 10),
    ((1, 90), (9, 9), 4, 0, 1, 9),
]


@pytest.mark.parametrize(("before", "after", "top", "left", "rows", "columns"), LETTERBOXES)
@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("rgb", "rgb"),
        ("bgr", "rgb"),
        ("rgb", "bgr"),
        ("grey", "rgb"),
        ("grey", "grey"),
        ("rgb", "grey"),
    ],
)
def test_letterbox_keeps_the_whole_frame_inside_a_border_of_zeros(
    before, after, top, left, rows, columns, source, wanted
):
    frames = frames_of(1, *before, 1 if source == "grey" else 3)
    found = preprocessor(after, source=source, wanted=wanted, frame=before, resize="letterbox")
    image = found(frames)[0]
    fitted = bilinear_by_loop(as_colour(frames[0].astype(float), source, wanted), rows, columns)
    inside = image[:, top : top + rows, left : left + columns]
    # A grey level is 1 / (255 * 0.224) of the network's input.
    expected = normalised(fitted, len(image))
    np.testing.assert_allclose(inside, expected, atol=GREY_LEVELS / 57 + 2e-6)
    border = np.ones(after, bool)
    border[top : top + rows, left : left + columns] = False
    np.testing.assert_allclose(image[:, border], 0, atol=1e-6)


def as_colour(image, source, wanted):
    rgb = image[..., ::-1] if source == "bgr" else np.broadcast_to(image, (*image.shape[:2], 3))
    if source == "grey" and wanted == "grey":
        return image
    if wanted == "grey":
        return rgb @ np.array([[0.299], [0.587], [0.114]])
    return rgb[..., ::-1] if wanted == "bgr" else rgb


@pytest.mark.parametrize(("source", "wanted"), [("bgr", "rgb"), ("rgb", "grey"), ("grey", "bgr")])
@pytest.mark.parametrize("resize", ["stretch", "centre_crop"])
def test_colour_and_resize_together(source, wanted, resize):
    frames = frames_of(2, 12, 12, 1 if source == "grey" else 3)
    found = preprocessor((5, 5), source=source, wanted=wanted, frame=(12, 12), resize=resize)(
        frames
    )
    for frame, image in zip(frames, found, strict=True):
        expected = bilinear_by_loop(as_colour(frame.astype(float), source, wanted), 5, 5)
        np.testing.assert_allclose(
            image, normalised(expected, len(image)), atol=GREY_LEVELS / 57 + 2e-6
        )


@pytest.mark.parametrize("resize", ["stretch", "centre_crop", "letterbox"])
def test_frames_of_any_size_are_taken_where_the_bundle_names_none(resize):
    prepare = preprocessor((6, 8), resize=resize, unit=True)
    for height, width in ((6, 8), (12, 16), (3, 4)):
        frames = frames_of(2, height, width, 3)
        found = prepare(frames)
        assert found.shape == (2, 3, 6, 8)
        expected = bilinear_by_loop(frames[1].astype(float), 6, 8).transpose(2, 0, 1)
        np.testing.assert_allclose(found[1], expected, atol=GREY_LEVELS)


@pytest.mark.parametrize("frame", [(4, 4), (9, 9)])
@pytest.mark.parametrize(("source", "wanted"), [("rgb", "grey"), ("grey", "rgb"), ("bgr", "rgb")])
def test_no_frames_give_no_inputs(frame, source, wanted):
    prepare = preprocessor((4, 4), source=source, wanted=wanted, frame=frame, resize="letterbox")
    frames = frames_of(0, *frame, 1 if source == "grey" else 3)
    assert prepare(frames).shape == (0, 1 if wanted == "grey" else 3, 4, 4)


def test_the_result_is_written_into_out_and_frames_stay_as_they_were():
    frames = frames_of(3, 4, 4, 3)
    before = frames.copy()
    prepare = preprocessor((4, 4), frame=(4, 4), wanted="bgr")
    out = np.full((5, 3, 4, 4), 7, np.float32)
    prepare(frames, out=out[:3])
    np.testing.assert_array_equal(out[:3], prepare(frames))
    assert (out[3:] == 7).all()
    np.testing.assert_array_equal(frames, before)


def test_frames_in_another_memory_order_give_the_same():
    frames = frames_of(3, 8, 10, 3)
    strided = np.asfortranarray(frames)[:, ::-1]
    for size in ((8, 10), (5, 5)):
        prepare = preprocessor(size, frame=(8, 10))
        contiguous = np.ascontiguousarray(strided)
        np.testing.assert_array_equal(prepare(strided), prepare(contiguous))


def test_shape_is_that_of_one_network_input():
    assert preprocessor((4, 6), frame=(4, 6)).shape == (3, 4, 6)
    assert preprocessor((4, 6), frame=(4, 6), wanted="grey").shape == (1, 4, 6)


ALL_FORMATS = {
    "grey": {"colour": "grey"},
    "rgb": {"colour": "rgb"},
    "bgr": {"colour": "bgr"},
    "nv12": {"colour": "nv12", "matrix": "bt601", "range": "limited"},
    "nv12-709-full": {"colour": "nv12", "matrix": "bt709", "range": "full"},
}


def hold_against_the_reference(name, before, after, *, wanted, resize, any_size=False):
    """Preprocess two frames of noise, grey levels as they are, and compare with float64."""
    colours = ALL_FORMATS[name]
    rows = before[0] * 3 // 2 if colours["colour"] == "nv12" else before[0]
    channels = 3 if name in ("rgb", "bgr") else 1
    shape = (0, 0, channels) if any_size else (rows, before[1], channels)
    of_frames = FrameFormat(shape=shape, **colours)
    wanted_channels = 1 if wanted == "grey" else 3
    spec = Preprocessing(
        size=after,
        colour=wanted,
        resize=resize,
        mean=(0.25,) * wanted_channels,
        std=(1 / 255,) * wanted_channels,
    )
    frames = frames_of(2, rows, before[1], channels)
    found = Preprocessor(spec, of_frames)(frames)
    for frame, image in zip(frames, found, strict=True):
        expected = reference_preprocess.preprocess(frame, of_frames.pixels, network_input(spec))
        np.testing.assert_allclose(image, expected, atol=GREY_LEVELS)


@pytest.mark.parametrize("name", ALL_FORMATS)
@pytest.mark.parametrize("wanted", ["grey", "rgb", "bgr"])
@pytest.mark.parametrize("resize", ["stretch", "centre_crop", "letterbox"])
@pytest.mark.parametrize("any_size", [False, True])
def test_every_conversion_equals_the_reference(name, wanted, resize, any_size):
    for before, after in (((6, 10), (6, 10)), ((2, 2), (5, 1)), ((38, 22), (9, 30))):
        hold_against_the_reference(
            name, before, after, wanted=wanted, resize=resize, any_size=any_size
        )


@pytest.mark.parametrize("opencv", ["as it is", "without IPP", "missing"])
@pytest.mark.parametrize(("before", "after"), [((4, 4096), (3, 223)), ((1090, 6), (311, 7))])
def test_long_sides_keep_their_precision_whatever_opencv_does(monkeypatch, opencv, before, after):
    if opencv == "missing":
        monkeypatch.setitem(sys.modules, "cv2", None)
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(used and opencv != "without IPP")
    try:
        hold_against_the_reference("bgr", before, after, wanted="rgb", resize="stretch")
    finally:
        cv2.ipp.setUseIPP(used)


@pytest.mark.parametrize(("error", "used"), [(0.0, True), (1e-4, True), (5e-4, False)])
def test_opencv_samples_only_where_it_is_precise(monkeypatch, error, used):
    def resize(image, size, interpolation):
        assert interpolation == cv2.INTER_LINEAR
        return bilinear_by_loop(image, *size[::-1]).astype(np.float32) + error

    monkeypatch.setattr(cv2, "resize", resize)
    pixels = PixelFormat("rgb")
    placement = Placement(Window(1, 2, 5, 6), Window(0, 0, 4, 9))
    sample = fast_sampler(pixels, (8, 9), placement)
    assert isinstance(sample, OpenCvSampler) == used
    frame = frames_of(1, 8, 9, 3)[0]
    expected = Sampler(pixels, placement)(frame)
    np.testing.assert_allclose(sample(frame), expected, atol=2e-4)


def test_nv12_frames_need_no_opencv_and_may_have_any_memory_order():
    frames = frames_of(2, 12, 10, 1)
    of_frames = FrameFormat(shape=(0, 0, 1), **ALL_FORMATS["nv12"])
    spec = Preprocessing(size=(8, 10), colour="rgb", mean=MEAN, std=STD)
    prepare = Preprocessor(spec, of_frames)
    expected = prepare(frames)
    np.testing.assert_array_equal(prepare(np.asfortranarray(frames)), expected)
    np.testing.assert_array_equal(prepare(frames[::-1]), expected[::-1])


def test_frames_of_alternating_sizes_are_each_taken_as_they_are():
    prepare = preprocessor((5, 6), unit=True)
    for height, width in ((8, 9), (5, 6), (8, 9), (9, 8)):
        frames = frames_of(1, height, width, 3)
        expected = bilinear_by_loop(frames[0].astype(float), 5, 6).transpose(2, 0, 1)
        np.testing.assert_allclose(prepare(frames)[0], expected, atol=GREY_LEVELS)
