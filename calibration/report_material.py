"""What a report is made of: a bundle, the models of a pool, and what all of them answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from calibration.errors import CalibrationError
from calibration.pool import Card
from calibration.recorded import Recorded, load_recorded
from calibration.recorder import Source, bundle_source, pool_source, record_all
from calibration.records import Data, Labels, load_records, record_path
from kernels import reference
from runtime.bundle import Bundle
from runtime.schema import Form, Stage, Threshold
from runtime.simulation import Simulation

Answer = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """Models to compare a bundle with, in a folder; none without a folder."""

    folder: Path
    cards: Mapping[str, Card]

    def beside(self, bundle: Bundle) -> list[Card]:
        """Return the cards of models that are no stage of the bundle, by their names."""
        stages = {stage.name for stage in bundle.spec.stages}
        return [card for name, card in self.cards.items() if name not in stages]


@dataclass(frozen=True)
class Model:
    """A model with its answers.

    Attributes
    ----------
    stage
        Of the bundle, or as its card has it.
    form, file
        That was recorded, and its ONNX file.
    logits
        f32 [n, K].
    in_cascade
        Whether it is a stage of the bundle.
    """

    stage: Stage
    form: Form
    file: Path
    logits: Logits
    in_cascade: bool

    @property
    def name(self) -> str:
        """Its name in the cascade or the pool."""
        return self.stage.name

    @property
    def sha256(self) -> str:
        """Of its model, with its weights."""
        return self.stage.forms[self.form].digest

    @cached_property
    def label(self) -> Answer:
        """Its answers, i32 [n]."""
        return reference.softmax(self.logits).label


@dataclass(frozen=True)
class Material:
    """A recorded bundle, its data, and every model that it can be compared with.

    Attributes
    ----------
    labels
        i32 [n].
    stages
        Of the cascade, in order.
    others
        Models of the pool that are no stage.
    simulation
        Of the cascade on these data.
    """

    recorded: Recorded
    data: Data
    labels: Labels
    stages: tuple[Model, ...]
    others: tuple[Model, ...]
    simulation: Simulation

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names."""
        return tuple(model.name for model in self.stages)

    @property
    def large(self) -> Model:
        """The last stage."""
        return self.stages[-1]

    @property
    def singles(self) -> list[Model]:
        """Models that answer on their own, from frames."""
        return [model for model in (*self.stages, *self.others) if model.stage.reads_frames]

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """The ones in force, per gate a number, or one per class."""
        return self.recorded.setting.thresholds

    def accuracy(self, label: Answer) -> float:
        """Return the share of right answers."""
        return float((label == self.labels).mean())


@contextmanager
def records_folder(given: Path | None, data: Data) -> Iterator[Path]:
    """Yield the folder of a split's records, by default one that is gone afterwards."""
    if given is not None:
        yield given
        return
    with TemporaryDirectory(prefix="tinysaver-") as folder:
        yield Path(folder) / data.name


def record_absent(
    bundle: Bundle,
    forms: Callable[[], tuple[Form, ...]],
    pool: Pool,
    data: Data,
    folder: Path,
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Record the models that a folder has no records of, and leave the others alone.

    Parameters
    ----------
    folder
        Of the split.
    forms
        Returns those of the bundle's stages; asked only where one is to be recorded.
    progress
        Shows how many model samples are finished.

    Raises
    ------
    CalibrationError
        When the data do not fit the models, or a record cannot be written.
    """

    def absent(name: str) -> bool:
        return not record_path(folder, name).exists()

    frames = bundle.spec.input
    _check_images(bundle, data)
    sources: list[Source] = []
    if any(absent(stage.name) for stage in bundle.spec.stages):
        sources.append(bundle_source(bundle, forms(), threads=threads))
    cards = [card for card in pool.beside(bundle) if absent(card.name)]
    sources += [pool_source(pool.folder, card, frames, threads=threads) for card in cards]
    total = len(data.images) * sum(len(source.models) for source in sources)
    task = progress.add_task(f"recording {data.name}", total=total)
    record_all(sources, data, folder, advance=lambda samples: progress.advance(task, samples))
    progress.remove_task(task)


def gather(bundle: Bundle, pool: Pool, data: Data, folder: Path) -> Material:
    """Read what the stages of a bundle and the models of a pool answered.

    Parameters
    ----------
    folder
        Records of the split.

    Raises
    ------
    CalibrationError
        When the data have no labels or other classes, or records are missing, damaged, or of
        other models, data or classes.
    """
    if data.labels is None:
        raise CalibrationError(
            f"{data.name}: a report needs labels; the data have none. Add labels i32 [n] to it."
        )
    recorded = load_recorded(bundle, folder)
    if recorded.data_sha256 != data.sha256:
        raise CalibrationError(
            f"{folder}: expected records of {data.name} (sha256 {data.sha256[:12]}...), got of "
            f"{recorded.data_sha256[:12]}... Pass the --data that was recorded, or other --records."
        )
    return Material(
        recorded,
        data,
        data.labels,
        tuple(_stages(recorded)),
        tuple(_others(bundle, pool, folder)),
        recorded.simulation(),
    )


def _stages(recorded: Recorded) -> list[Model]:
    bundle = recorded.bundle
    return [
        Model(stage, form, bundle.file(stage.forms[form].file), record.logits, True)
        for stage, form, record in zip(
            bundle.spec.stages, recorded.forms, recorded.records, strict=True
        )
    ]


def _others(bundle: Bundle, pool: Pool, folder: Path) -> list[Model]:
    cards = pool.beside(bundle)
    stages = [*bundle.spec.stages, *(card.stage() for card in cards)]
    records = load_records(folder, stages)[len(bundle.spec.stages) :]
    return [
        Model(card.stage(), record.meta.form, pool.folder / card.file, record.logits, False)
        for card, record in zip(cards, records, strict=True)
    ]


def _check_images(bundle: Bundle, data: Data) -> None:
    shape, found = bundle.spec.input.shape, data.images.shape[1:]
    if shape[2] != found[2] or (shape[0] and shape != found):
        raise CalibrationError(
            f"{data.name}: images: expected {list(shape)} as the bundle says, got {list(found)}."
        )
