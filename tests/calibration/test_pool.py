"""The pool: cards are read back, and a model that differs from its card is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from calibration.errors import CalibrationError
from calibration.pool import Card, load_pool, save_card
from runtime.schema import Preprocessing


def add_model(folder: Path, name: str, *, macs: int = 10) -> Card:
    content = f"model {name}".encode()
    (folder / f"{name}.onnx").write_bytes(content)
    card = Card(
        name=name,
        file=f"{name}.onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        macs=macs,
        parameters=3,
        preprocessing=Preprocessing(size=(4, 3), colour="grey", mean=(0.3,), std=(0.4,)),
        recipe={"epochs": 2, "teacher": None},
        seed=1,
        provenance="../provenance/training.npz",
        monitored_accuracy=0.9,
    )
    save_card(folder, card)
    return card


def test_cards_are_read_back_by_name(tmp_path: Path) -> None:
    cards = {name: add_model(tmp_path, name) for name in ("tiny", "mid.dle")}
    assert load_pool(tmp_path) == cards


def test_a_card_becomes_a_stage(tmp_path: Path) -> None:
    stage = add_model(tmp_path, "tiny", macs=7).stage()
    assert (stage.name, stage.macs, stage.logits) == ("tiny", 7, "logits")
    assert stage.inputs[0].tensor == "input"
    assert stage.forms["fp32"].file == "tiny.onnx"


def test_an_empty_or_missing_folder_says_what_a_pool_is(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CalibrationError, match="cards of a model pool"):
            load_pool(folder)


def test_a_model_that_differs_from_its_card_is_refused(tmp_path: Path) -> None:
    add_model(tmp_path, "tiny")
    (tmp_path / "tiny.onnx").write_bytes(b"another")
    with pytest.raises(CalibrationError, match=r"tiny\.onnx: content differs .*expected sha256"):
        load_pool(tmp_path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    add_model(tmp_path, "tiny")
    (tmp_path / "tiny.onnx").unlink()
    with pytest.raises(CalibrationError, match=r"tiny\.onnx: not found"):
        load_pool(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "tinysaver.model/2"),
        ("file", "../tiny.onnx"),
        ("file", "/tiny.onnx"),
        ("macs", 0),
        ("surprise", 1),
        ("sha256", "12"),
    ],
)
def test_a_field_that_does_not_fit_is_named(tmp_path: Path, field: str, value: object) -> None:
    card = add_model(tmp_path, "tiny")
    changed = card.model_dump(mode="json") | {field: value}
    (tmp_path / "tiny.json").write_text(json.dumps(changed))
    with pytest.raises(CalibrationError, match=rf"tiny\.json: {field}: "):
        load_pool(tmp_path)


def test_a_card_under_another_name_is_refused(tmp_path: Path) -> None:
    add_model(tmp_path, "tiny")
    (tmp_path / "tiny.json").rename(tmp_path / "small.json")
    with pytest.raises(CalibrationError, match="expected the card of small, got the one of tiny"):
        load_pool(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_card_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tiny.json").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"tiny\.json"):
        load_pool(tmp_path)


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    card = add_model(tmp_path, "tiny")
    with pytest.raises(CalibrationError, match="cannot be written"):
        save_card(tmp_path / "missing", card)
