"""Images from npz, folders and pictures: what is read, and what is reported."""

import io
import struct
import sys
import zipfile
import zlib

import cv2
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.images import count_pictures, load_arrays, picture_files, read_npz, read_sources
from runtime.schema import FrameFormat

GREY = FrameFormat(shape=(6, 5, 1), colour="grey")
RGB = FrameFormat(shape=(6, 5, 3), colour="rgb")
BGR = FrameFormat(shape=(6, 5, 3), colour="bgr")
ANY = FrameFormat(shape=(0, 0, 3), colour="bgr")
NV12 = FrameFormat(shape=(0, 0, 1), colour="nv12", matrix="bt601", range="limited")


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_picture(path, image):
    path.parent.mkdir(exist_ok=True, parents=True)
    assert cv2.imwrite(str(path), image)
    return path


def read(*paths, expected=BGR):
    return list(read_sources(list(paths), expected))


def test_images_and_labels_of_npz_are_read(tmp_path):
    images = pixels(7, 6, 5, 1)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.arange(7), more="other")
    found, labels = load_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, images)
    assert (found.dtype, labels.dtype, labels.tolist()) == (np.uint8, np.int32, list(range(7)))


def test_labels_may_be_absent_and_images_none(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(0, 6, 5, 1))
    found, labels = load_arrays(tmp_path / "a.npz")
    assert found.shape == (0, 6, 5, 1) and labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"frames": pixels(2, 6, 5, 1)}, "expected an array 'images' u8"),
        ({"images": pixels(6, 5, 1)}, r"images: expected u8 \[n, H, W, C\], got uint8 \[6, 5, 1\]"),
        ({"images": np.zeros((2, 6, 5, 1))}, r"got float64 \[2, 6, 5, 1\]"),
        (
            {"images": pixels(2, 6, 5, 1), "labels": np.arange(3)},
            r"labels: expected integers \[2\], got int64 \[3\]",
        ),
        ({"images": pixels(2, 6, 5, 1), "labels": np.zeros(2)}, r"got float64 \[2\]"),
        ({"images": pixels(2, 6, 5, 1), "labels": np.zeros((2, 1), int)}, r"got int64 \[2, 1\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_arrays(tmp_path / "a.npz")
    assert str(caught.value).startswith(str(tmp_path / "a.npz"))


def npz_bytes(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zip_bytes(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def damaged_middle():
    content = bytearray(npz_bytes(images=np.arange(4000, dtype=np.uint8).reshape(10, 20, 20, 1)))
    for place in range(80, 130):
        content[place] ^= 0xA5
    return bytes(content)


def encrypted():
    content = bytearray(zip_bytes(images=npy_bytes(pixels(1, 2, 2, 1))))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


def header_of(shape):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': %s}" % shape.encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header


BAD_NPZ = {
    "empty": b"",
    "text": b"hello",
    "cut": npz_bytes(images=pixels(50, 6, 5, 1))[:-30],
    "half": npz_bytes(images=pixels(50, 6, 5, 1))[:700],
    "middle": damaged_middle(),
    "pickle": b"\x80\x04N.",
    "objects": npz_bytes(images=np.array([{}, 1], object)),
    "bare": npy_bytes(pixels(2, 2, 2, 1)),
    "bare and more": npy_bytes(pixels(2, 2, 2, 1)) + npz_bytes(images=pixels(2, 2, 2, 1)),
    "encrypted": encrypted(),
    "huge": zip_bytes(images=header_of("(1000000000, 1000000000, 1, 1)")),
    "brackets": zip_bytes(images=header_of("((1, 2, 3")),
    "nonsense": zip_bytes(images=b"\x93NUMPY\1\0\2\0{}"),
}


@pytest.mark.parametrize("content", BAD_NPZ.values(), ids=BAD_NPZ)
def test_damaged_npz_is_refused_in_one_line_and_closed(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an npz file that can be read") as caught:
        load_arrays(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "()" not in message and "pickle.load" not in message


def test_a_missing_npz_and_a_folder_of_that_name_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.npz: not found"):
        load_arrays(tmp_path / "a.npz")
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(InputError, match=r"b\.npz: not an npz file .*directory"):
        load_arrays(tmp_path / "b.npz")


def test_read_npz_reads_what_is_named_and_all_without_names(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2), bad=np.array([{}], object))
    assert sorted(read_npz(tmp_path / "a.npz", "x", "absent")) == ["x"]
    assert sorted(read_npz(tmp_path / "a.npz", "x", "y")) == ["x", "y"]
    with pytest.raises(InputError):
        read_npz(tmp_path / "a.npz")


def test_npz_frames_are_numbered_and_named(tmp_path):
    images = pixels(3, 6, 5, 3)
    np.savez(tmp_path / "a.npz", images=images)
    found = read(tmp_path / "a.npz")
    assert [(p.source, p.index, p.error) for p in found] == [
        (str(tmp_path / "a.npz"), i, None) for i in range(3)
    ]
    np.testing.assert_array_equal([p.frame for p in found], images)


@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (2, 6, 5, 1)])
def test_npz_frames_of_another_size_are_reported_and_the_rest_goes_on(tmp_path, shape):
    np.savez(tmp_path / "a.npz", images=pixels(*shape))
    np.savez(tmp_path / "b.npz", images=pixels(1, 6, 5, 3))
    found = read(tmp_path / "a.npz", tmp_path / "b.npz")
    assert [p.frame is None for p in found] == [True, True, False]
    expected = f"expected [6, 5, 3] (bgr), got {list(shape[1:])}"
    assert all(expected in p.error for p in found[:2])


def test_a_picture_has_the_channel_order_of_the_bundle(tmp_path):
    image = pixels(6, 5, 3)
    path = write_picture(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read(path, expected=BGR)[0].frame, image)
    np.testing.assert_array_equal(read(path, expected=RGB)[0].frame, image[..., ::-1])
    grey = read(path, expected=GREY)[0].frame
    assert grey.shape == (6, 5, 1)
    weights = image @ np.array([0.114, 0.587, 0.299])
    assert np.abs(grey[..., 0] - weights).max() <= 1


@pytest.mark.parametrize("image", [pixels(6, 5), pixels(6, 5, 4)], ids=["grey", "alpha"])
def test_grey_pictures_and_transparent_ones_become_three_channels(tmp_path, image):
    found = read(write_picture(tmp_path / "a.png", image), expected=BGR)[0].frame
    colours = image[..., :3] if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    np.testing.assert_array_equal(found, colours)


def test_a_sixteen_bit_picture_becomes_eight_bits(tmp_path):
    image = (pixels(6, 5).astype(np.uint16) << 8) | 0x7F
    found = read(write_picture(tmp_path / "a.png", image), expected=GREY)[0].frame
    assert found.dtype == np.uint8 and (found[..., 0] == image >> 8).all()


def test_a_picture_of_another_size_is_resized_to_that_of_the_bundle(tmp_path):
    path = write_picture(tmp_path / "a.png", pixels(12, 10, 3))
    found = read(path)[0].frame
    blocks = cv2.imread(str(path)).reshape(6, 2, 5, 2, 3).mean((1, 3))
    assert found.shape == (6, 5, 3) and np.abs(found - blocks).max() <= 0.5


def test_a_bundle_that_takes_any_size_gets_pictures_as_they_are(tmp_path):
    path = write_picture(tmp_path / "a.png", pixels(12, 10, 3))
    assert read(path, expected=ANY)[0].frame.shape == (12, 10, 3)


def test_frames_of_pictures_are_contiguous_u8(tmp_path):
    path = write_picture(tmp_path / "a.png", pixels(6, 5, 3))
    for expected in (GREY, RGB, BGR):
        frame = read(path, expected=expected)[0].frame
        assert frame.flags.c_contiguous and frame.dtype == np.uint8
        assert frame.shape == expected.shape


def test_folders_are_searched_through_in_order_of_name(tmp_path):
    for name in ("b.png", "a.PNG", "sub/c.jpg", "sub/deeper/d.bmp"):
        write_picture(tmp_path / name, pixels(6, 5, 3))
    (tmp_path / "notes.txt").write_text("no picture")
    np.savez(tmp_path / "array.npz", images=pixels(1, 6, 5, 3))
    names = ["a.PNG", "b.png", "sub/c.jpg", "sub/deeper/d.bmp"]
    assert picture_files(tmp_path) == [tmp_path / name for name in names]
    assert [p.source for p in read(tmp_path)] == [str(tmp_path / name) for name in names]
    assert count_pictures([tmp_path, tmp_path / "array.npz", tmp_path / "b.png"]) == 6


def test_an_empty_folder_has_no_pictures(tmp_path):
    assert read(tmp_path) == [] and count_pictures([tmp_path]) == 0


def png_that_promises(width, height):
    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 99))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


BAD_PICTURES = {
    "empty": b"",
    "text": b"this is not a picture",
    "header": b"\x89PNG\r\n\x1a\n",
    "garbage": np.random.default_rng(3).bytes(999),
    "promise": png_that_promises(60_000, 60_000),
}


@pytest.mark.parametrize("content", BAD_PICTURES.values(), ids=BAD_PICTURES)
@pytest.mark.parametrize("expected", [GREY, RGB], ids=["grey", "rgb"])
def test_a_picture_that_does_not_decode_is_reported_and_the_rest_goes_on(
    tmp_path, content, expected
):
    write_picture(tmp_path / "a.png", pixels(6, 5, 3))
    (tmp_path / "b.png").write_bytes(content)
    write_picture(tmp_path / "c.png", pixels(6, 5, 3))
    found = read(tmp_path, expected=expected)
    assert [p.error is None for p in found] == [True, False, True]
    assert [p.frame is None for p in found] == [False, True, False]
    assert found[1].error == f"does not decode as a picture ({len(content)} bytes)"
    assert found[1].source == str(tmp_path / "b.png")


def test_a_picture_that_cannot_be_read_is_reported_and_the_rest_goes_on(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "absent")
    (tmp_path / "b.png").mkdir()
    write_picture(tmp_path / "c.png", pixels(6, 5, 3))
    errors = [p.error for p in read(tmp_path)]
    assert "cannot be read: No such file" in errors[0]
    assert "cannot be read: Is a directory" in errors[1]
    assert errors[2] is None


def test_a_given_file_of_an_unknown_kind_is_tried_and_reported(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    path = write_picture(tmp_path / "a.png", pixels(6, 5, 3)).rename(tmp_path / "picture")
    assert [p.error is None for p in read(tmp_path / "notes.txt", path)] == [False, True]


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    for call in (lambda: read(tmp_path / "absent"), lambda: count_pictures([tmp_path / "absent"])):
        with pytest.raises(InputError, match=r"absent: not found\. Give pictures, folders or npz"):
            call()


def test_without_opencv_pictures_are_refused_with_advice_and_npz_works(tmp_path, monkeypatch):
    path = write_picture(tmp_path / "a.png", pixels(6, 5, 3))
    np.savez(tmp_path / "a.npz", images=pixels(1, 6, 5, 3))
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert len(read(tmp_path / "a.npz")) == 1
    with pytest.raises(InputError, match=r"tinysaver-runtime\[opencv\]"):
        read(path)


def test_nv12_frames_come_from_npz(tmp_path):
    frames = pixels(2, 6, 4, 1)
    np.savez(tmp_path / "a.npz", images=frames)
    np.savez(tmp_path / "odd.npz", images=pixels(1, 4, 4, 1))
    good, second, odd = read(tmp_path / "a.npz", tmp_path / "odd.npz", expected=NV12)
    np.testing.assert_array_equal([good.frame, second.frame], frames)
    assert odd.frame is None
    assert odd.error.startswith("has the wrong size: nv12: expected an even width")


def test_pictures_are_refused_where_frames_are_nv12(tmp_path):
    write_picture(tmp_path / "a.png", pixels(6, 4, 3))
    with pytest.raises(InputError, match=r"takes nv12 frames, which no .* Give npz with images"):
        read(tmp_path / "a.png", expected=NV12)
