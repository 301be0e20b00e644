"""Cascades with exits beside those without: forecast cost, what the test split says, and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration import assembly
from calibration.chains import Chain
from calibration.errors import CalibrationError
from calibration.records import Data
from kernels import reference
from runtime.cascade import Cascade
from runtime.measurement import Subject, median_ratio, paired_interval
from runtime.schema import Setting
from savers.exit_bundle import Facts, Parts, write_exit_bundle
from savers.exit_choice import REST, Estimate, exit_positions
from savers.exit_study import Found, Study

LARGE_ALONE = "large alone"


class Seen(NamedTuple):
    """What a cascade did on images that chose nothing.

    Attributes
    ----------
    drop, interval
        In accuracy against the large model alone, and its 95 % interval.
    macs
        Per image.
    """

    accuracy: float
    drop: float
    interval: tuple[float, float]
    macs: float


@dataclass
class Row:
    """One cascade of the table.

    Attributes
    ----------
    milliseconds
        Per image: the median over turns.
    speedup
        Median over turns of the large model's time over the cascade's.
    """

    estimate: Estimate
    stage_macs: list[int]
    seen: Seen | None = None
    milliseconds: float | None = None
    speedup: float | None = None

    @property
    def names(self) -> Chain:
        """Stages of the cascade."""
        return self.estimate.names


@dataclass(frozen=True)
class Timing:
    """How cascades are timed: all of them in turn, ``rounds`` times over the same images."""

    batch: int = 32
    rounds: int = 30
    images: int = 1024


@dataclass(frozen=True)
class Shelf:
    """Writes the cascades of a study as bundles."""

    study: Study
    labels: tuple[str, ...]

    def write(self, folder: Path, estimate: Estimate) -> None:
        """Write a cascade as a bundle, at its forecast thresholds, without certificate."""
        setting = Setting(thresholds=estimate.thresholds, path=estimate.path)
        if estimate.trial is None:
            self._write_plain(folder, estimate, setting)
            return
        study, models = self.study, self.study.models
        parts = Parts(
            models.savers, models.large, estimate.trial.exits, exit_positions(estimate.names)
        )
        facts = Facts(
            name=folder.name,
            description=f"{' -> '.join(estimate.names)}, exits in {models.large.card.name}, "
            f"{estimate.trial.title}; thresholds forecast, not certified",
            labels=self.labels,
            setting=setting,
            training=study.training,
            trained=tuple(models.folder / card.provenance for card in models.cards.values()),
            selection=study.selection,
        )
        write_exit_bundle(folder, parts, facts)

    def _write_plain(self, folder: Path, estimate: Estimate, setting: Setting) -> None:
        models = self.study.models
        cards = models.cards
        parts = assembly.Parts(
            pool=models.folder,
            cards=[cards.get(name, models.large.card) for name in estimate.names],
            data=self.study.selection,
            classes=len(self.labels),
        )
        assembly.write_bundle(folder, parts, setting, assembly.Caption(labels=self.labels))


def rows_of(study: Study, found: Found) -> list[Row]:
    """Return the table's cascades: without exits, with a model between, and with exits.

    The first has no exits. Those that no forecast lets pass are left out.

    Raises
    ------
    CalibrationError
        When the first saver alone passes no forecast.
    """
    question, draws = found.question, study.plan.draws
    savers = question.savers
    plain = [(*savers[:count], REST) for count in range(1, len(savers) + 1)]
    between = [(*savers, card.name, REST) for card in study.models.middles]
    estimates = [question.plain(names, draws=draws) for names in (*plain, *between)]
    if estimates[0] is None:
        raise CalibrationError(
            f"{savers[0]} before {study.models.large.card.name} passes no forecast at epsilon "
            f"{question.claim.epsilon:g} with {question.size} samples, so there is nothing to "
            "compare with. Allow a larger --epsilon, or more samples: --size."
        )
    return [
        Row(item, question.costs(item.trial).stages(item.names))
        for item in (*estimates, *found.chosen.values())
        if item
    ]


def measure(
    rows: Sequence[Row],
    folders: Sequence[Path],
    data: Data,
    timing: Timing,
    *,
    threads: int,
    advance: Callable[[], object] = lambda: None,
) -> float:
    """Time cascades in turn, fill in their rows, and return the large model's milliseconds.

    Parameters
    ----------
    folders
        Bundles of the rows; the first one's last stage is the large model, whole.
    advance
        Told the end of each round.
    """
    frames = data.images[: timing.images]
    with ExitStack() as stack:
        cascades = [
            stack.enter_context(Cascade.load(folder, "cpu", batch=timing.batch, threads=threads))
            for folder in folders
        ]
        large = cascades[0].executor.stages[-1]  # type: ignore[attr-defined]
        calls: list[Callable[[], object]] = [
            partial(_in_batches, large.classify, frames, timing.batch),
            *(partial(cascade.run, frames) for cascade in cascades),
        ]
        subjects = [Subject(str(place)) for place in range(len(calls))]
        for call in calls:
            call()
        for _ in range(timing.rounds):
            for subject, call in zip(subjects, calls, strict=True):
                subject.measure(call, len(frames))
            advance()
    per_image = [1e3 * float(np.median(item.seconds)) / len(frames) for item in subjects]
    for row, subject, milliseconds in zip(rows, subjects[1:], per_image[1:], strict=True):
        row.milliseconds = milliseconds
        row.speedup = median_ratio(subjects[0].seconds, subject.seconds)
    return per_image[0]


def see(rows: Sequence[Row], folders: Sequence[Path], data: Data, *, threads: int) -> float:
    """Run cascades over images that chose nothing, fill in their rows; return the large accuracy.

    Parameters
    ----------
    data
        With labels.
    folders
        Bundles of the rows.
    """
    alone: npt.NDArray[np.bool_] | None = None
    for row, folder in zip(rows, folders, strict=True):
        with Cascade.load(folder, "cpu", threads=threads) as cascade:
            if alone is None:
                alone = np.concatenate(list(_large_right(cascade, data)))
            results = cascade.run(data.images)
        right = results.label == data.labels
        harm, help_ = int((alone & ~right).sum()), int((~alone & right).sum())
        reached = [(results.stage >= place).mean() for place in range(len(row.stage_macs))]
        row.seen = Seen(
            float(right.mean()),
            (harm - help_) / len(right),
            paired_interval(harm, help_, len(right)),
            float(np.dot(reached, row.stage_macs)),
        )
    assert alone is not None
    return float(alone.mean())


def as_json(row: Row, large_macs: int) -> dict[str, Any]:
    """Return a row for JSON."""
    estimate = row.estimate
    levels: Mapping[str, float] = dict(
        zip(map(str, estimate.forecast.levels), estimate.costs, strict=True)
    )
    return {
        "stages": row.names,
        "exits": estimate.trial.title if estimate.trial else None,
        "thresholds": estimate.thresholds,
        "accept_rates": estimate.accept_rates,
        "stage_macs": row.stage_macs,
        "macs": estimate.cost,
        "macs_quantiles": levels,
        "macs_saved": 1 - estimate.cost / large_macs,
        "selection_drop": estimate.drop,
        "test": row.seen._asdict() if row.seen else None,
        "milliseconds": row.milliseconds,
        "speedup": row.speedup,
    }


def _in_batches(
    classify: Callable[[npt.NDArray[np.uint8]], object], frames: npt.NDArray[np.uint8], size: int
) -> None:
    for start in range(0, len(frames), size):
        classify(frames[start : start + size])


def _large_right(cascade: Cascade, data: Data) -> Iterator[npt.NDArray[np.bool_]]:
    assert data.labels is not None
    for start in range(0, len(data.images), cascade.batch):
        part = slice(start, start + cascade.batch)
        logits = cascade.executor.stage_logits(data.images[part])[-1]
        yield reference.softmax(logits).label == data.labels[part]
