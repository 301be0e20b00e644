"""Measured costs as a file, so that one measurement serves many searches, on any machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from calibration.costs import BatchCosts
from calibration.errors import CalibrationError
from calibration.npz import parse_json, unwritable
from kernels.files import replacing
from runtime.schema import Schema, Sha256


class ModelCosts(Schema):
    """What one batch of a model costs, in seconds or joules, by its size."""

    sha256: Sha256
    by_size: dict[PositiveInt, PositiveFloat] = Field(min_length=1)


class CostTable(Schema):
    """What batches of each model of a pool cost on one device.

    Attributes
    ----------
    unit
        ``time`` in seconds, or ``joules``.
    device
        For the reader: processor, engine and threads, or the sensor.
    batch
        Samples that enter a cascade together; every model was measured at it.
    padded
        Whether the engine takes the measured sizes only.
    """

    format: Literal["tinysaver.costs/1"] = "tinysaver.costs/1"
    unit: Literal["time", "joules"]
    device: str
    batch: int = Field(gt=0)
    padded: bool = False
    models: dict[str, ModelCosts] = Field(min_length=1)

    @field_validator("models")
    @classmethod
    def _same_sizes(cls, models: dict[str, ModelCosts]) -> dict[str, ModelCosts]:
        if len({tuple(sorted(model.by_size)) for model in models.values()}) > 1:
            raise ValueError("expected the same batch sizes for every model")
        return models

    def costs(self) -> BatchCosts:
        """Return the costs of cascades of these models."""
        by_size = {name: model.by_size for name, model in self.models.items()}
        return BatchCosts(by_size, self.batch, self.unit, padded=self.padded)


def save_table(path: Path, table: CostTable) -> None:
    """Write a table.

    Raises
    ------
    CalibrationError
        When it cannot be written.
    """
    text = json.dumps(table.model_dump(mode="json"), indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(text.encode() + b"\n")
    except OSError as error:
        raise unwritable(path, error) from None


class Hashed(Protocol):
    """A card, a file of a bundle, or anything else that knows the hash of its model."""

    @property
    def sha256(self) -> str:
        """Of the ONNX file."""


def load_table(path: Path, cards: Mapping[str, Hashed], *, unit: str, batch: int) -> CostTable:
    """Read a table and check that it has the costs of these models.

    Raises
    ------
    CalibrationError
        When it cannot be read, or is of another unit, batch size or model.
    """
    try:
        table = parse_json(path, path.read_text("utf-8"), CostTable)
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path}: cannot be read ({error}). python -m calibration.search --costs FILE writes "
            "such a file; docs/formats.md has its form."
        ) from None
    wanted, found = (unit, batch), (table.unit, table.batch)
    if wanted != found:
        raise CalibrationError(
            f"{path}: expected costs in {unit} at batch {batch}, got {table.unit} at batch "
            f"{table.batch}. Pass --cost {table.unit} --batch {table.batch}, or another file."
        )
    stale = [
        name
        for name, card in cards.items()
        if name not in table.models or table.models[name].sha256 != card.sha256
    ]
    if stale or batch not in next(iter(table.models.values())).by_size:
        raise CalibrationError(
            f"{path}: no measurement of {', '.join(stale) or f'batch {batch}'} as in the pool. "
            "Delete the file to measure again."
        )
    return table
