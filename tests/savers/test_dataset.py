"""The splits of Fashion-MNIST, as committed and as made."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from calibration.provenance import load_provenance, sample_digests
from runtime.bundle import demo_folder, file_sha256
from runtime.errors import InputError
from runtime.images import load_arrays
from savers import dataset
from savers.dataset import Split, read_fashion_mnist, split_training_images, training_part

SIZES = {"selection": 4_000, "certificate": 8_000, "test": 10_000}


@pytest.mark.parametrize("name", SIZES)
def test_committed_splits_are_stratified(name):
    images, labels = load_arrays(demo_folder() / "data" / f"{name}.npz")
    assert images.shape == (SIZES[name], 28, 28, 1)
    assert (np.bincount(labels) == SIZES[name] // 10).all()


def test_committed_training_selection_and_certificate_samples_are_disjoint():
    training = load_provenance(demo_folder() / "provenance" / "training.npz").digests
    selection, certificate = (
        sample_digests(load_arrays(demo_folder() / "data" / f"{name}.npz")[0])
        for name in ("selection", "certificate")
    )
    together = np.concatenate([training, selection, certificate])
    assert len(np.unique(together)) == len(together) == 60_000


def test_committed_files_have_the_hashes_that_the_readme_names():
    readme = (demo_folder() / "README.md").read_text()
    for name in SIZES:
        assert file_sha256(demo_folder() / "data" / f"{name}.npz") in readme


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"x" * 999, mtime=0)[:-9], b""])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz: .*Copy"):
        read_fashion_mnist(tmp_path)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SELECTION_SIZE", 20)
    monkeypatch.setattr(dataset, "CERTIFICATE_SIZE", 40)


def numbered(n: int) -> Split:
    """Images that all differ: their number is in the first two pixels."""
    images = np.zeros((n, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(n), 256)
    return Split(images, np.arange(n, dtype=np.int32) % 10)


def number(split: Split) -> np.ndarray:
    return 256 * split.images[:, 0, 0, 0].astype(int) + split.images[:, 0, 1, 0]


def test_splits_are_a_partition_with_equal_counts_per_class(monkeypatch):
    shrink(monkeypatch)
    splits = split_training_images(numbered(300))
    assert sorted(np.concatenate([number(split) for split in splits.values()])) == list(range(300))
    assert (np.bincount(splits["selection"].labels) == 2).all()
    assert (np.bincount(splits["certificate"].labels) == 4).all()
    for split in splits.values():
        assert (split.labels == number(split) % 10).all()


def test_splits_do_not_change_from_call_to_call(monkeypatch):
    shrink(monkeypatch)
    first, second = (split_training_images(numbered(300)) for _ in range(2))
    assert all((number(first[name]) == number(second[name])).all() for name in first)


def test_an_image_that_occurs_twice_stays_in_training(monkeypatch):
    shrink(monkeypatch)
    full = numbered(300)
    full.images[100:200] = full.images[:100]
    splits = split_training_images(full)
    held_out = np.concatenate([number(splits["selection"]), number(splits["certificate"])])
    assert (held_out >= 200).all()


def test_a_part_of_the_training_split_is_fixed_and_keeps_the_order():
    train = numbered(300)
    first, second = (training_part(train, 37) for _ in range(2))
    assert (first.images == second.images).all()
    assert (np.diff(number(first)) > 0).all()
    assert len(first.labels) == 37
    assert not np.array_equal(number(first), np.arange(37))
    with pytest.raises(InputError, match="has 300, got 301"):
        training_part(train, 301)


def test_idx_files_are_read_in_order(tmp_path):
    for part in ("train", "t10k"):
        pixels = np.arange(2 * 784, dtype=np.uint64).astype(np.uint8)
        images = gzip.compress(bytes(16) + pixels.tobytes())
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(images)
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + b"\3\7"))
    full, _ = read_fashion_mnist(tmp_path)
    assert full.images.shape == (2, 28, 28, 1)
    assert full.images[1, 0, 1, 0] == 785 % 256
    assert full.labels.tolist() == [3, 7]


def test_missing_data_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        read_fashion_mnist(tmp_path)
