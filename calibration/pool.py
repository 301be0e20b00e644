"""The pool: trained models with a card each, from which the search builds cascades.

A card ``<name>.json`` lies beside its ONNX file and says what the model takes, what it costs and
what it was trained on; see docs/formats.md.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, JsonValue, field_validator

from calibration.errors import CalibrationError
from calibration.npz import parse_json, unwritable
from kernels.files import replacing
from runtime.bundle import file_sha256
from runtime.schema import ModelFile, Preprocessing, Schema, Sha256, Stage, StageInput, UnitInterval


class Card(Schema):
    """What the pool knows of one model.

    Attributes
    ----------
    file
        ONNX file, relative to the folder of the card and inside it.
    macs
        Multiply-accumulates for one sample.
    input, logits
        Names of the input tensor ``f32 [n, c, h, w]`` and of the output ``f32 [n, K]``.
    recipe
        How it was trained, for the reader.
    provenance
        Provenance file of its training data, relative to the folder of the card.
    monitored_accuracy
        On training images held back.
    accuracy_before
        The same before it was trained, of a model that was made from a trained one.
    training_seconds
        Of one CPU thread, without the training of teachers and of what it was made from.
    """

    format: Literal["tinysaver.model/1"] = "tinysaver.model/1"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    file: str
    sha256: Sha256
    macs: int = Field(gt=0)
    parameters: int = Field(gt=0)
    preprocessing: Preprocessing
    input: str = "input"
    logits: str = "logits"
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int
    provenance: str
    monitored_accuracy: UnitInterval | None = None
    accuracy_before: UnitInterval | None = None
    training_seconds: float | None = Field(default=None, ge=0)

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("expected a relative path inside the folder of the card")
        return file

    def stage(self) -> Stage:
        """Return the model as a stage of a cascade whose folder is the pool's."""
        return Stage(
            name=self.name,
            preprocessing=self.preprocessing,
            inputs=(StageInput(tensor=self.input),),
            logits=self.logits,
            macs=self.macs,
            forms={"fp32": ModelFile(file=self.file, sha256=self.sha256)},
        )


def save_card(folder: Path, card: Card) -> Path:
    """Write a card beside its model and return the card's path.

    Raises
    ------
    CalibrationError
        When it cannot be written.
    """
    path = folder / f"{card.name}.json"
    text = json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False)
    try:
        with replacing(path) as stream:
            stream.write(text.encode() + b"\n")
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def load_pool(folder: Path) -> dict[str, Card]:
    """Read all cards of a folder, by name, and check the content of each model file.

    Raises
    ------
    CalibrationError
        When there is no card, one does not fit the format, or a model file is missing or differs
        from its card.
    """
    cards = {path.stem: load_card(path) for path in sorted(folder.glob("*.json"))}
    if not cards:
        raise CalibrationError(
            f"{folder}: expected the cards of a model pool (<name>.json), found none. "
            "Give a folder as zoo/fashion/models, or train models with python -m savers.train."
        )
    return cards


def load_card(path: Path) -> Card:
    """Read one card and check the content of its model file.

    Raises
    ------
    CalibrationError
        When the card does not fit the format, or the model file is missing or differs from it.
    """
    try:
        card = parse_json(path, path.read_text("utf-8"), Card)
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: cannot be read ({error}).") from None
    if card.name != path.stem:
        raise CalibrationError(
            f"{path}: expected the card of {path.stem}, got the one of {card.name}."
        )
    model = path.parent / card.file
    if not model.is_file():
        raise CalibrationError(
            f"{model}: not found, but {path.name} names it. Copy or train it again."
        )
    found = file_sha256(model)
    if found != card.sha256:
        raise CalibrationError(
            f"{model}: content differs from its card (expected sha256 {card.sha256[:12]}..., "
            f"got {found[:12]}...). Copy or train it again."
        )
    return card
