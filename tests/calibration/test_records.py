"""Records and data files: what is written is read back; what is damaged is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.npz import write_npz
from calibration.records import (
    Data,
    Record,
    RecordMeta,
    load_data,
    load_record,
    record_path,
    save_record,
)


def meta() -> RecordMeta:
    return RecordMeta(
        model="tiny",
        model_sha256="a" * 64,
        data="selection",
        data_sha256="b" * 64,
        engine="onnxruntime",
        engine_version="1.0",
        form="fp32",
        preprocessing_sha256="c" * 64,
    )


def record(n: int = 7, *, labelled: bool = True) -> Record:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, n).astype(np.int32) if labelled else None
    return Record(rng.normal(size=(n, 3)).astype(np.float32), labels, meta())


def images(n: int = 5) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (n, 3, 2, 1)).astype(np.uint8)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_record_is_read_back_as_it_was_written(tmp_path: Path, labelled: bool) -> None:
    path = record_path(tmp_path / "records" / "selection", "tiny")
    written = record(labelled=labelled)
    save_record(path, written)
    read = load_record(path)
    assert path == tmp_path / "records" / "selection" / "tiny.npz"
    np.testing.assert_array_equal(read.logits, written.logits)
    assert read.meta == written.meta
    if written.labels is None:
        assert read.labels is None
    else:
        np.testing.assert_array_equal(read.labels, written.labels)


def test_a_learned_score_is_kept_with_the_logits(tmp_path: Path) -> None:
    score = np.array([0.0, 0.25, np.nan, 1.0, 0.5, 0.5, 0.75], np.float32)
    save_record(tmp_path / "tiny.npz", dataclasses.replace(record(), score=score))
    np.testing.assert_array_equal(load_record(tmp_path / "tiny.npz").score, score)
    save_record(tmp_path / "plain.npz", record())
    assert load_record(tmp_path / "plain.npz").score is None


@pytest.mark.parametrize("score", [np.zeros(6, np.float32), np.zeros(7), np.zeros((7, 1), "f4")])
def test_a_score_that_does_not_fit_the_logits_is_refused(tmp_path: Path, score: np.ndarray) -> None:
    save_record(tmp_path / "tiny.npz", dataclasses.replace(record(), score=score))
    with pytest.raises(CalibrationError, match=r"score: expected f32 \[7\], got float"):
        load_record(tmp_path / "tiny.npz")


def test_equal_records_give_equal_files(tmp_path: Path) -> None:
    save_record(tmp_path / "a.npz", record())
    save_record(tmp_path / "b.npz", record())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_record_is_an_error_that_names_the_file(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "tiny.npz"
    save_record(path, record())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CalibrationError, match=r"tiny\.npz: not an npz file"):
        load_record(path)


def test_every_flipped_byte_is_read_as_it_was_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.npz"
    save_record(path, record())
    whole, expected = path.read_bytes(), load_record(path)
    refused = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read = load_record(path)
        except CalibrationError:
            refused += 1
            continue
        np.testing.assert_array_equal(read.logits, expected.logits)
        assert read.meta == expected.meta
    assert refused


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tiny.npz"
    np.savez(path, logits=np.array([{"a": 1}], dtype=object), meta=np.array("{}"))
    with pytest.raises(CalibrationError, match="not an npz file that can be read"):
        load_record(path)


def test_garbage_a_bare_array_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "garbage.npz").write_bytes(b"\x00\x01garbage" * 9)
    with (tmp_path / "bare.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    (tmp_path / "folder.npz").mkdir()
    for name in ("garbage", "bare", "folder"):
        with pytest.raises(CalibrationError, match=rf"{name}\.npz"):
            load_record(tmp_path / f"{name}.npz")


def test_a_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="not found"):
        load_record(tmp_path / "tiny.npz")


def test_a_record_without_meta_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "tiny.npz", logits=np.zeros((2, 2), np.float32))
    with pytest.raises(CalibrationError, match="expected the arrays logits, meta; found logits"):
        load_record(tmp_path / "tiny.npz")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    content = meta().model_dump() | {"format": "tinysaver.records/2"}
    packed = np.array(json.dumps(content))
    write_npz(tmp_path / "tiny.npz", {"logits": np.zeros((2, 2), np.float32), "meta": packed})
    with pytest.raises(CalibrationError, match=r"format: .*tinysaver\.records/1"):
        load_record(tmp_path / "tiny.npz")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("logits", np.zeros((7, 3))),
        ("logits", np.zeros(7, np.float32)),
        ("logits", np.zeros((0, 3), np.float32)),
        ("labels", np.zeros(6, np.int32)),
        ("labels", np.zeros(7, np.float32)),
        ("labels", np.full(7, -1, np.int32)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, name: str, array: np.ndarray) -> None:
    path = tmp_path / "tiny.npz"
    save_record(path, record())
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    write_npz(path, arrays | {name: array})
    with pytest.raises(CalibrationError, match=f"{name}: expected"):
        load_record(path)


def test_an_unwritable_folder_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CalibrationError, match="cannot be written"):
        save_record(tmp_path / "file" / "tiny.npz", record())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.npz"
    save_record(path, record())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npz(path, {"logits": np.array([None])})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["tiny.npz"]


def test_data_hash_depends_on_content_not_on_storage(tmp_path: Path) -> None:
    labels = np.arange(5, dtype=np.int32)
    np.savez(tmp_path / "a.npz", images=images(), labels=labels.astype(np.uint8))
    np.savez_compressed(tmp_path / "b.npz", labels=labels, images=np.asfortranarray(images()))
    first, second = load_data(tmp_path / "a.npz"), load_data(tmp_path / "b.npz")
    assert first.sha256 == second.sha256
    assert (first.name, second.name) == ("a", "b")


def test_data_hash_sees_pixels_shape_labels_and_their_absence() -> None:
    labels = np.arange(5, dtype=np.int32)
    turned = images()
    turned[2, 1, 1, 0] ^= 1
    variants = [
        Data("x", images(), labels),
        Data("x", turned, labels),
        Data("x", images().reshape(5, 2, 3, 1), labels),
        Data("x", images(), labels[::-1].copy()),
        Data("x", images(), None),
    ]
    assert len({item.sha256 for item in variants}) == len(variants)


@pytest.mark.parametrize("array", [images()[..., 0], images().astype(np.float32), images()[:0]])
def test_images_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", images=array)
    with pytest.raises(CalibrationError, match=r"images: expected u8 \[n, H, W, C\]"):
        load_data(tmp_path / "x.npz")
