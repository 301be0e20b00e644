"""Data and models that ``calibration.int8`` takes otherwise, or refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from calibration.int8 import main
from calibration.record import main as record
from calibration.threshold import main as threshold
from runtime.bundle import file_sha256, save_spec
from tests.calibration.int8_world import (
    Command,
    Invoke,
    content,
    frames,
    save_split,
)
from tests.engines.form_graphs import model, named, node


def test_without_labels_agreement_is_measured(int8: Command, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, frame in enumerate(frames(120, seed=4)):
        cv2.imwrite(str(folder / f"{number:03}.png"), frame)
    report = int8.report("--data", folder)
    assert report["measured_on"] == {"name": "pictures", "n": 120, "labels": False}
    for stage in report["stages"]:
        for form in stage["forms"].values():
            assert form["accuracy"] is None
            assert form["drop"] == pytest.approx(1 - form["agreement"])
    assert "agreement (no labels)" in int8("--data", folder, "--dry-run").stdout


def test_pictures_that_do_not_decode_are_left_out_and_named(int8: Command, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, frame in enumerate(frames(40, seed=5)):
        cv2.imwrite(str(folder / f"{number:03}.png"), frame)
    (folder / "050.png").write_bytes(b"no picture")
    report = int8.report("--data", folder)
    assert report["calibrated_on"]["n"] == 40
    assert "050.png: does not decode" in report["calibrated_on"]["skipped"][0]
    assert "Skipped" in int8("--data", folder).stdout


def picture_folder(folder: Path, *, good: int, bad: int) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames(good, seed=6)):
        cv2.imwrite(str(folder / f"{number:03}.png"), frame)
    for number in range(bad):
        (folder / f"bad{number}.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (0, 0, "no pictures found"),
        (0, 3, "none of 3 pictures decodes"),
        (7, 0, "expected at least 32 images, got 7."),
        (7, 2, "expected at least 32 images, got 7, 2 more do not decode"),
    ],
)
def test_a_folder_without_enough_pictures_is_refused(
    int8: Command, tmp_path: Path, good: int, bad: int, words: str
) -> None:
    before = content(int8.bundle)
    folder = picture_folder(tmp_path / "pictures", good=good, bad=bad)
    assert words in int8("--data", folder, code=1).stderr
    assert content(int8.bundle) == before and not int8.cache.exists()


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_images_of_one_class_are_refused(int8: Command, tmp_path: Path) -> None:
    images = frames(50, seed=7)
    data = npz(tmp_path / "one.npz", images=images, labels=np.full(50, 2, np.int32))
    assert "all images are of one class (2)" in int8("--data", data, code=1).stderr
    same = npz(tmp_path / "same.npz", images=np.repeat(images[:1], 50, axis=0))
    result = int8("--data", same, code=1)
    assert "the large model gives all 50 images one class" in result.stderr


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((40, 5, 5, 1), np.uint8)}, r"expected \[n, 6, 6, 1\] \(grey\)"),
        ({"images": np.zeros((40, 6, 6, 3), np.uint8)}, r"got \[n, 6, 6, 3\]"),
        ({"images": np.zeros((40, 6, 6, 1), np.float32)}, "expected u8"),
        ({"labels": np.zeros(4, np.int32)}, "expected the arrays images"),
        (
            {"images": frames(40, seed=1), "labels": np.arange(40).astype(np.int32) % 7},
            "labels: expected 0 to 2, got 6",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(
    int8: Command, tmp_path: Path, arrays: dict, words: str
) -> None:
    result = int8("--data", npz(tmp_path / "data.npz", **arrays), code=1)
    assert re.search(words, result.stderr)


@pytest.mark.parametrize("name", ["certificate", "test"])
def test_held_out_splits_are_refused(int8: Command, tmp_path: Path, name: str) -> None:
    data = tmp_path / f"{name}.npz"
    save_split(data, 50, seed=8)
    for option in ("--data", "--selection"):
        assert f"the {name} split must not choose" in int8(option, data, code=1).stderr


def test_data_that_certified_are_refused_under_any_name(
    int8: Command, invoke: Invoke, tmp_path: Path
) -> None:
    data = tmp_path / "fresh.npz"
    save_split(data, 1500, seed=78)
    invoke(record, "--bundle", int8.bundle, "--data", data, "--out", tmp_path / "records",
           "--threads", 1)  # fmt: skip
    invoke(threshold, int8.bundle, "--records", tmp_path / "records" / "fresh",
           "--data", data, "--epsilon", 0.05)  # fmt: skip
    assert "these are the data that certified" in int8("--data", data, code=1).stderr


def test_an_activation_that_is_not_finite_is_named(of_large: Callable[..., Command]) -> None:
    root = model(
        [node("Sqrt", "x", "a"), node("ReduceMean", "a", "m", axes=[2, 3], keepdims=0),
         node("MatMul", "m w", "y")],
        {"w": np.ones((1, 3), np.float32)},
        shape=("n", 1, 6, 6), outputs={"y": ("n", 3)},
    )  # fmt: skip
    int8 = of_large(root)
    result = int8(code=1)
    assert re.search(r"large\.onnx: node node_a \(Sqrt\) gives nan for calibration", result.stderr)
    assert len(list(int8.cache.iterdir())) == 1  # of tiny, which is sound


def test_an_unknown_operator_is_named_with_its_node(int8: Command) -> None:
    path = int8.bundle / "models" / "large.onnx"
    strange = onnx.load(path)
    named(strange, "node_r1").op_type = "FooBar"
    path.write_bytes(strange.SerializeToString())
    spec = int8.load().spec
    large = spec.stages[1]
    file = large.forms["fp32"].model_copy(update={"sha256": file_sha256(path)})
    stages = (spec.stages[0], large.model_copy(update={"forms": {"fp32": file}}))
    save_spec(int8.bundle, spec.model_copy(update={"stages": stages}))
    assert "node node_r1 (FooBar): unknown operator" in int8(code=1).stderr


def test_a_model_that_does_not_fit_the_bundle_is_refused(int8: Command) -> None:
    spec = int8.load().spec
    stages = (spec.stages[0], spec.stages[1].model_copy(update={"logits": "z"}))
    save_spec(int8.bundle, spec.model_copy(update={"stages": stages}))
    assert "outputs: expected 'z' as cascade.json says" in int8(code=1).stderr


def test_a_bundle_without_selection_data_needs_data(int8: Command) -> None:
    (int8.bundle / "data" / "selection.npz").unlink()
    assert "pass --data" in int8(code=2).stderr


def test_a_missing_bundle_is_an_error(invoke: Invoke, tmp_path: Path) -> None:
    assert "not found" in invoke(main, tmp_path / "nowhere", code=1).stderr
