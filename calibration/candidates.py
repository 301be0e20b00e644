"""What a search chooses from: the models of a pool with their records of the selection split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.chains import Pool
from calibration.costs import Costs
from calibration.errors import CalibrationError
from calibration.pool import Card, load_pool
from calibration.records import Record, load_records, refuse_foreign_labels, refuse_held_out
from kernels import reference


@dataclass(frozen=True)
class Selection:
    """A pool and what its models answer on the selection split.

    Attributes
    ----------
    folder, cards
        The pool, all of it.
    pool
        Answers of the models that a cascade may be made of.
    left_out
        Why other models were left out, by name.
    data_sha256, classes
        Of the data that were recorded, and how many logits the models give.
    """

    folder: Path
    cards: Mapping[str, Card]
    pool: Pool
    left_out: Mapping[str, str]
    data_sha256: str
    classes: int


def load_selection(folder: Path, large: str, records_folder: Path) -> Selection:
    """Read a pool with its records, and leave out models whose confidence says nothing.

    Raises
    ------
    CalibrationError
        When cards or records are missing, damaged, of different models, data or classes, of a
        split that must not choose, without labels or with labels that are no class; or when the
        pool has no model beside the large one.
    """
    cards = load_pool(folder)
    if large not in cards:
        raise CalibrationError(f"{folder}: no model {large!r}; it has {', '.join(cards)}.")
    if len(cards) == 1:
        raise CalibrationError(
            f"{folder}: {large} is the only model, and a cascade needs a saver before it. "
            "Train one (python -m savers.train zoo --help) or put one there, with its card."
        )
    records = load_records(records_folder, [card.stage() for card in cards.values()])
    pool = _pool(records_folder, dict(zip(cards, records, strict=True)), large)
    left_out = {name: _constant(pool, name) for name in cards if name != large}
    logits = {name: z for name, z in pool.logits.items() if not left_out.get(name)}
    return Selection(
        folder,
        cards,
        Pool(logits, pool.labels, large),
        {name: reason for name, reason in left_out.items() if reason},
        records[0].meta.data_sha256,
        records[0].logits.shape[1],
    )


def too_costly(selection: Selection, costs: Costs) -> dict[str, str]:
    """Return why models that cost as much as the large one were left out, by name."""
    large = selection.pool.large
    limit = costs.alone(large)
    return {
        name: f"alone it costs {costs.alone(name) / limit:.0%} of {large}"
        for name in selection.pool.logits
        if name != large and costs.alone(name) >= limit
    }


def _pool(folder: Path, records: Mapping[str, Record], large: str) -> Pool:
    first = records[large]
    refuse_held_out(first, use="The search")
    if first.labels is None:
        raise CalibrationError(f"{folder}: the search needs labels, the records have none.")
    refuse_foreign_labels(folder, first)
    return Pool({name: item.logits for name, item in records.items()}, first.labels, large)


def _constant(pool: Pool, name: str) -> str:
    """Return what is wrong with a model whose confidence is the same for every sample, or ''."""
    confidence = reference.softmax(pool.logits[name]).confidence.astype(np.float32)
    if confidence.min() < confidence.max():
        return ""
    return f"its confidence is {confidence[0]:g} for every sample, so no gate can tell them apart"


def saturated(kept_at_once: float) -> str:
    """Return why a saver is no use whose first step down the path already breaks the claim."""
    return (
        f"saturated: {kept_at_once:.1%} of its samples are above the first threshold below 1, and "
        "keeping them breaks the claim already; give it a higher temperature"
    )


def names_of(chosen: Sequence[str]) -> str:
    """Return a cascade for people: its models in their order."""
    return " -> ".join(chosen)
