"""Images from a folder: the three forms, and what is refused."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from runtime.errors import InputError

pytestmark = pytest.mark.slow


def colours(rng, n: int, side: int = 8, channels: int = 3):
    return rng.integers(0, 256, (n, side, side, channels)).astype(np.uint8)


def write_arrays(folder, **splits) -> None:
    for name, (images, labels) in splits.items():
        np.savez(folder / f"{name}.npz", images=images, labels=np.asarray(labels))


def read(folder, **options):
    from savers.image_files import read_image_set

    return read_image_set(folder, **options)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_files_are_read_and_normalised_by_channel(tmp_path, rng, channels):
    from savers.recipe import Recipe

    images = colours(rng, 21, side=5, channels=channels)
    images[..., 0] //= 3
    labels = np.arange(21) % 4
    write_arrays(tmp_path, train=(images, labels), test=(images[:7], labels[:7]))
    found = read(tmp_path)
    assert (found.shape, found.classes) == ((channels, 5, 5), 4)
    np.testing.assert_array_equal(found.train.images, images)
    np.testing.assert_array_equal(found.test.labels, labels[:7])
    plain = found.examples(found.train, Recipe(0, 0)).plain(np.arange(21)).numpy()
    assert plain.shape == (21, channels, 5, 5)
    np.testing.assert_allclose(plain.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(plain.std((0, 2, 3)), 1, atol=1e-6)
    expected = (images.transpose(0, 3, 1, 2) / 255 - np.reshape(found.mean, (-1, 1, 1))) / (
        np.reshape(found.std, (-1, 1, 1))
    )
    np.testing.assert_allclose(plain, expected, atol=1e-5)


def test_a_channel_that_never_changes_is_not_divided_by_zero(tmp_path, rng):
    images = colours(rng, 6)
    images[..., 1] = 51
    write_arrays(tmp_path, train=(images, [0, 1] * 3), test=(images, [0, 1] * 3))
    found = read(tmp_path)
    assert found.mean[1] == pytest.approx(0.2) and found.std[1] == 1.0


def cifar(rng, labels) -> tuple[bytes, np.ndarray]:
    images = colours(rng, len(labels), side=32)
    rows = [
        bytes([7, label]) + image.transpose(2, 0, 1).tobytes()
        for label, image in zip(labels, images, strict=True)
    ]
    return b"".join(rows), images


def test_cifars_binary_version_is_read_with_its_fine_labels(tmp_path, rng):
    labels = [2, 0, 1, 1]
    content, images = cifar(rng, labels)
    (tmp_path / "train.bin").write_bytes(content)
    (tmp_path / "test.bin").write_bytes(content[: len(content) // 2])
    found = read(tmp_path)
    np.testing.assert_array_equal(found.train.images, images)
    assert found.train.labels.tolist() == labels
    assert found.test.labels.tolist() == labels[:2]


def test_other_binary_files_are_refused(tmp_path, rng):
    content, _ = cifar(rng, [0, 1])
    (tmp_path / "train.bin").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"train\.bin: expected CIFAR-100's binary .* 6,147 bytes"):
        read(tmp_path)
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"test\.bin: not found"):
        read(tmp_path)
    (tmp_path / "test.bin").write_bytes(cifar(rng, [0, 100])[0])
    with pytest.raises(InputError, match="fine labels from 0 to 99, got 100"):
        read(tmp_path)


def write_picture(path, colour, size=(20, 30)) -> None:
    """Write red in the middle square's left half and another colour in its right half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    picture = np.zeros((height, width, 3), np.uint8)
    left = (width - height) // 2
    picture[:, left : left + height // 2] = (0, 0, 255)
    picture[:, left + height // 2 : left + height] = colour
    assert cv2.imwrite(str(path), picture)


@pytest.fixture
def tree(tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            for number in range(2):
                write_picture(tmp_path / split / name / f"{number}.png", (9, 99, 199))
    return tmp_path


def test_pictures_are_cut_to_their_middle_square_and_scaled_red_first(tree):
    found = read(tree, side=4)
    assert found.train.labels.tolist() == [0, 0, 1, 1]
    assert found.train.images.shape == (4, 4, 4, 3)
    expected = np.zeros((4, 4, 3), np.uint8)
    expected[:, :2], expected[:, 2:] = (255, 0, 0), (199, 99, 9)
    for image in (*found.train.images, *found.test.images):
        np.testing.assert_array_equal(image, expected)


def test_trees_that_do_not_fit_are_refused(tree):
    with pytest.raises(InputError, match="--side 32"):
        read(tree)
    write_picture(tree / "val" / "cat" / "0.png", (0, 0, 0))
    with pytest.raises(InputError, match="only one of the two has cat"):
        read(tree, side=4)
    (tree / "train" / "cat").mkdir()
    with pytest.raises(InputError, match="cat: expected pictures, found none"):
        read(tree, side=4)
    (tree / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"0\.png: does not decode as a picture \(10 bytes\)"):
        read(tree, side=4)


def test_without_opencv_npz_works_and_pictures_say_what_is_missing(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match="cv2"):
        read(tree, side=4)


def test_folders_without_images_are_refused(tmp_path, rng):
    with pytest.raises(InputError, match="gone: not a folder"):
        read(tmp_path / "gone")
    with pytest.raises(InputError, match=r"expected train\.npz .* found nothing"):
        read(tmp_path)
    (tmp_path / "train").write_text("")  # CIFAR's python version, which is pickled
    with pytest.raises(InputError, match="found train"):
        read(tmp_path)
    write_arrays(tmp_path, train=(colours(rng, 4), [0, 1, 0, 1]))
    with pytest.raises(InputError, match=r"test\.npz: not found"):
        read(tmp_path)
    with pytest.raises(InputError, match="--side scales pictures"):
        read(tmp_path, side=8)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((2, 8, 6, 3), [0, 1], r"test: expected images u8 \[n, side, side, c\]"),
        ((2, 8, 8, 4), [0, 1], r"got uint8 \[2, 8, 8, 4\]"),
        ((0, 8, 8, 3), [], "test: expected images, got none"),
        ((2, 6, 6, 3), [0, 1], r"training images' \[8, 8, 3\], got \[6, 6, 3\]"),
        ((2, 8, 8, 1), [0, 1], r"got \[8, 8, 1\]"),
        ((2, 8, 8, 3), [0, 4], "training images' 0 to 3, got 4 too"),
        ((2, 8, 8, 3), [0, -1], "got -1 too"),
    ],
)
def test_test_images_that_do_not_fit_are_refused(tmp_path, rng, shape, labels, message):
    images = np.zeros(shape, np.uint8)
    train = (colours(rng, 8), np.arange(8) % 4)
    write_arrays(tmp_path, train=train, test=(images, np.array(labels, np.int64)))
    with pytest.raises(InputError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("labels", [[0, 2], [1, 2], [0, 0], [-1, 0]])
def test_training_labels_with_gaps_are_refused(tmp_path, rng, labels):
    images = colours(rng, 2)
    write_arrays(tmp_path, train=(images, labels), test=(images, labels))
    with pytest.raises(InputError, match=r"expected training labels 0, 1, \.\.\. without gaps"):
        read(tmp_path)


def test_arrays_without_labels_are_refused(tmp_path, rng):
    np.savez(tmp_path / "train.npz", images=colours(rng, 4))
    with pytest.raises(InputError, match="expected an array 'labels'"):
        read(tmp_path)


def test_views_of_colour_images_move_all_channels_alike(rng):
    from savers.views import Views, cut_out, normalise

    images = colours(rng, 3, side=7)
    views = Views(images, 2, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    grey = [
        Views(images[..., channel : channel + 1], 2, mean=mean, std=std)
        for channel, (mean, std) in enumerate(((0.1, 0.4), (0.2, 0.5), (0.3, 0.6)))
    ]
    rows, numbers = rng.integers(0, 3, 50), np.arange(50)
    found = views.pixels(rows, numbers).numpy()
    for channel, one in enumerate(grey):
        np.testing.assert_array_equal(found[:, channel], one.pixels(rows, numbers).numpy()[:, 0])
    erased = cut_out(normalise(images), 3, np.random.default_rng(1)).numpy() == 0
    assert erased.any() and (erased[:, 0] == erased[:, 1]).all() and not erased.all()
