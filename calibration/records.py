"""Records: the logits a model gave for a data set, stored once and read by every analysis.

``records/<split>/<model>.npz`` holds ``logits f32 [n, K]``, ``labels i32 [n]`` (absent where the
data have none) and ``meta``, JSON that says exactly which model and data these are. Data files hold
``images u8 [n, H, W, C]`` and, optionally, ``labels``. See docs/formats.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from calibration.npz import Array, pack_meta, read_npz, unpack_meta, write_npz
from runtime.schema import Form, Schema, Sha256, Stage

Labels = npt.NDArray[np.int32]

HELD_OUT = ("certificate", "test")
"""Splits that must not choose anything."""


class RecordMeta(Schema):
    """Which computation on which data gave the logits.

    Attributes
    ----------
    data
        Name of the split.
    engine_version
        Informative: two versions of one engine are the same engine.
    """

    format: Literal["tinysaver.records/1"] = "tinysaver.records/1"
    model: str
    model_sha256: Sha256
    data: str
    data_sha256: Sha256
    engine: str
    engine_version: str
    form: Form
    preprocessing_sha256: Sha256


@dataclass(frozen=True)
class Record:
    """Logits ``f32 [n, K]``, labels ``i32 [n]`` if the data has them, and where they come from.

    Attributes
    ----------
    score
        f32 [n], what a learned gate put out, where the model has one.
    """

    logits: npt.NDArray[np.float32]
    labels: Labels | None
    meta: RecordMeta
    score: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Data:
    """Images ``u8 [n, H, W, C]`` and labels ``i32 [n]`` or none, under the name of their split."""

    name: str
    images: npt.NDArray[np.uint8]
    labels: Labels | None

    @cached_property
    def sha256(self) -> str:
        """Hash of the images and labels; the same however a file stores or compresses them."""
        digest = hashlib.sha256()
        for kind, array in (("images u8", self.images), ("labels i32", self.labels)):
            digest.update(f"{kind} {None if array is None else list(array.shape)}\n".encode())
            if array is not None:
                digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


def record_path(folder: Path, model: str) -> Path:
    """Return where a model's record lies in the folder of a split, as ``records/selection``."""
    return folder / f"{model}.npz"


def save_record(path: Path, record: Record) -> None:
    """Write a record; a reader sees the old file or the whole new one.

    Raises
    ------
    CalibrationError
        When it cannot be written.
    """
    arrays: dict[str, Array] = {"logits": record.logits, "meta": pack_meta(record.meta)}
    if record.labels is not None:
        arrays["labels"] = record.labels
    if record.score is not None:
        arrays["score"] = record.score
    write_npz(path, arrays)


def load_record(path: Path) -> Record:
    """Read and check a record.

    Raises
    ------
    CalibrationError
        When the file is missing, damaged, of another format, or its arrays do not fit together.
    """
    arrays = read_npz(path, ("logits", "meta"))
    logits = arrays["logits"]
    if logits.ndim != 2 or logits.dtype != np.float32 or 0 in logits.shape:
        raise CalibrationError(f"{path}: logits: expected f32 [n, K], got {_describe(logits)}.")
    meta = unpack_meta(path, arrays["meta"], RecordMeta)
    labels = _labels(path, arrays, len(logits))
    return Record(logits, labels, meta, _score(path, arrays, len(logits)))


def load_records(folder: Path, stages: Sequence[Stage]) -> list[Record]:
    """Read the record of each stage and check that they are of these models and of one data set.

    Raises
    ------
    CalibrationError
        When a record is missing, damaged, of another model, preprocessing or data than expected.
    """
    records = [_load_of_stage(folder, stage) for stage in stages]
    first = records[0]
    for record in records[1:]:
        _check_classes(folder, first, record)
        if (record.meta.data_sha256, record.logits.shape) != (
            first.meta.data_sha256,
            first.logits.shape,
        ):
            raise CalibrationError(
                f"{folder}: records of {first.meta.model} and {record.meta.model} are of different "
                f"data ({_extent(first)} and {_extent(record)}). Record both again: "
                "python -m calibration.record --help"
            )
    return records


def refuse_held_out(record: Record, *, use: str) -> None:
    """Refuse a record of a split that must not choose anything.

    Raises
    ------
    CalibrationError
        When the record is of the certificate or test split.
    """
    if record.meta.data in HELD_OUT:
        raise CalibrationError(
            f"{use} reads the selection split; these are records of {record.meta.data!r}, which "
            "must not choose anything. Pass --records records/selection."
        )


def refuse_foreign_labels(folder: Path, record: Record) -> None:
    """Refuse labels that the recorded model has no logit for.

    Raises
    ------
    CalibrationError
        When a label is no class of the model.
    """
    classes = record.logits.shape[1]
    if record.labels is not None and record.labels.max() >= classes:
        raise CalibrationError(
            f"{folder}: expected labels from 0 to {classes - 1}, one per logit of "
            f"{record.meta.model}, got {record.labels.max()}. "
            "Record data with the classes that the models know."
        )


def load_data(path: Path) -> Data:
    """Read images and labels; the file's name is the split's.

    Raises
    ------
    CalibrationError
        When the file is missing, damaged, or its arrays have another type or shape.
    """
    arrays = read_npz(path, ("images",))
    images = arrays["images"]
    if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape:
        raise CalibrationError(
            f"{path}: images: expected u8 [n, H, W, C], got {_describe(images)}."
        )
    return Data(path.stem, images, _labels(path, arrays, len(images)))


def _load_of_stage(folder: Path, stage: Stage) -> Record:
    path = record_path(folder, stage.name)
    if not path.is_file():
        raise CalibrationError(
            f"{path}: not found. Record it first: python -m calibration.record --help"
        )
    record = load_record(path)
    described = stage.forms.get(record.meta.form)
    expected = (described.digest if described else None, stage.preprocessing.sha256)
    if expected != (record.meta.model_sha256, record.meta.preprocessing_sha256):
        raise CalibrationError(
            f"{path}: of another model, form or preprocessing than stage {stage.name} has "
            f"(record: {record.meta.form} {record.meta.model_sha256[:12]}..., stage: "
            f"{', '.join(f'{form} {file.digest[:12]}...' for form, file in stage.forms.items())}). "
            "Record it again: python -m calibration.record --help"
        )
    return record


def _check_classes(folder: Path, first: Record, other: Record) -> None:
    counts = first.logits.shape[1], other.logits.shape[1]
    if first.meta.data_sha256 == other.meta.data_sha256 and counts[0] != counts[1]:
        raise CalibrationError(
            f"{folder}: {first.meta.model} knows {counts[0]} classes, {other.meta.model} "
            f"{counts[1]}: no cascade can be made of both. Take one of them out of the pool."
        )


def _extent(record: Record) -> str:
    return f"{record.meta.data} {record.meta.data_sha256[:12]}... {list(record.logits.shape)}"


def _labels(path: Path, arrays: dict[str, Array], n: int) -> Labels | None:
    labels = arrays.get("labels")
    if labels is None:
        return None
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise CalibrationError(f"{path}: labels: expected i32 [{n}], got {_describe(labels)}.")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise CalibrationError(f"{path}: labels: expected classes from 0, got {labels.min()}.")
    return labels.astype(np.int32)


def _score(path: Path, arrays: dict[str, Array], n: int) -> npt.NDArray[np.float32] | None:
    score = arrays.get("score")
    if score is not None and (score.shape != (n,) or score.dtype != np.float32):
        raise CalibrationError(f"{path}: score: expected f32 [{n}], got {_describe(score)}.")
    return score


def _describe(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
