"""Provenance: a sample that decided something is always recognised."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.npz import write_npz
from calibration.provenance import (
    Overlap,
    ProvenanceMeta,
    Purpose,
    check_unused,
    load_provenance,
    overlaps,
    sample_digests,
    save_provenance,
)
from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.schema import (
    CascadeSpec,
    Form,
    FrameFormat,
    Gate,
    ModelFile,
    Preprocessing,
    Provenance,
    Stage,
    StageInput,
)

FP32: tuple[Form, ...] = ("fp32", "fp32")


def images(n: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 3, 1)).astype(np.uint8)


def save(folder: Path, purpose: Purpose, pictures: np.ndarray) -> Provenance:
    return save_provenance(folder / f"{purpose}.npz", pictures, ProvenanceMeta(purpose=purpose))


def bundle(folder: Path, entries: list[Provenance]) -> Bundle:
    def stage(name: str) -> Stage:
        return Stage(
            name=name,
            preprocessing=Preprocessing(size=(4, 3), colour="grey", mean=(0.0,), std=(1.0,)),
            inputs=(StageInput(tensor="input"),),
            macs=1,
            forms={"fp32": ModelFile(file=f"{name}.onnx", sha256="0" * 64)},
        )

    spec = CascadeSpec(
        format="tinysaver.cascade/1",
        name="test",
        input=FrameFormat(shape=(4, 3, 1), colour="grey"),
        labels=("a", "b"),
        stages=(stage("small"), stage("big")),
        gates=(Gate(),),
        settings={},
        provenance=tuple(entries),
    )
    return Bundle(folder, spec)


def whole_bundle(folder: Path) -> Bundle:
    training = save(folder, "training", images(11, seed=0))
    return bundle(folder, [training, save(folder, "selection", images(5, seed=1))])


def test_a_digest_is_the_start_of_sha256_over_shape_and_bytes() -> None:
    picture = images(1, seed=0)
    digest = hashlib.sha256(b"[4, 3, 1]" + picture[0].tobytes()).digest()
    assert sample_digests(picture).tolist() == [int.from_bytes(digest[:8], "little")]


def test_equal_samples_collide_and_reshaped_ones_do_not() -> None:
    pictures = images(6, seed=0)
    again = np.asfortranarray(pictures[::-1])
    np.testing.assert_array_equal(sample_digests(pictures), sample_digests(again)[::-1])
    turned = sample_digests(pictures.reshape(6, 3, 4, 1))
    assert not np.isin(sample_digests(pictures), turned).any()


def test_a_file_keeps_ascending_unique_digests_and_its_purpose(tmp_path: Path) -> None:
    pictures = images(9, seed=0)
    entry = save(tmp_path, "ranges", np.concatenate([pictures, pictures[:4]]))
    stored = load_provenance(tmp_path / entry.file)
    assert stored.meta.purpose == entry.purpose == "ranges"
    assert stored.digests.tolist() == sorted(set(sample_digests(pictures).tolist()))


def test_each_common_sample_is_counted(tmp_path: Path) -> None:
    used = images(11, seed=0)
    save(tmp_path, "training", used)
    save(tmp_path, "selection", images(5, seed=1))
    files = [tmp_path / "training.npz", tmp_path / "selection.npz"]
    asked = np.concatenate([images(4, seed=2), used[[3, 10, 3]]])
    assert overlaps(asked, files) == [Overlap(files[0], "training", 3)]
    assert overlaps(images(4, seed=2), files) == []


def test_new_samples_pass(tmp_path: Path) -> None:
    opened = whole_bundle(tmp_path)
    assert check_unused(images(8, seed=2), opened, FP32, allow_unknown=False) == "checked"


@pytest.mark.parametrize("allow_unknown", [False, True])
def test_an_overlap_is_refused_with_purpose_count_and_file(
    tmp_path: Path, allow_unknown: bool
) -> None:
    asked = np.concatenate([images(8, seed=2), images(5, seed=1)[:2]])
    with pytest.raises(CalibrationError, match=r"2 of 10 for selection \(.*selection\.npz\)"):
        check_unused(asked, whole_bundle(tmp_path), FP32, allow_unknown=allow_unknown)


def test_missing_provenance_is_refused_unless_told(tmp_path: Path) -> None:
    opened = bundle(tmp_path, [save(tmp_path, "training", images(11, seed=0))])
    with pytest.raises(CalibrationError, match=r"no provenance for selection.*--allow-unknown"):
        check_unused(images(8, seed=2), opened, FP32, allow_unknown=False)
    assert check_unused(images(8, seed=2), opened, FP32, allow_unknown=True) == "unchecked"


def test_an_integer_form_needs_provenance_of_its_ranges(tmp_path: Path) -> None:
    opened = whole_bundle(tmp_path)
    with pytest.raises(CalibrationError, match="no provenance for ranges"):
        check_unused(images(8, seed=2), opened, ("int8_host", "fp32"), allow_unknown=False)


def test_an_exchanged_provenance_file_is_refused(tmp_path: Path) -> None:
    opened = whole_bundle(tmp_path)
    save(tmp_path, "training", images(3, seed=9))
    with pytest.raises(BundleError, match="content differs"):
        check_unused(images(8, seed=2), opened, FP32, allow_unknown=True)


def test_a_file_of_another_purpose_than_stated_is_refused(tmp_path: Path) -> None:
    training = save(tmp_path, "training", images(11, seed=0))
    mislabelled = training.model_copy(update={"purpose": "selection"})
    opened = bundle(tmp_path, [training, mislabelled])
    with pytest.raises(CalibrationError, match="calls it selection"):
        check_unused(images(8, seed=2), opened, FP32, allow_unknown=False)


@pytest.mark.parametrize(
    "digests", [np.array([2, 1], np.uint64), np.array([1, 1], np.uint64), np.array([1, 2])]
)
def test_digests_that_do_not_ascend_are_refused(tmp_path: Path, digests: np.ndarray) -> None:
    save(tmp_path, "training", images(2, seed=0))
    with np.load(tmp_path / "training.npz") as stored:
        write_npz(tmp_path / "x.npz", {"digests": digests, "meta": stored["meta"]})
    with pytest.raises(CalibrationError, match="expected ascending u64"):
        load_provenance(tmp_path / "x.npz")
