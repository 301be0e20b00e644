"""Running models over a data set and keeping their logits as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from calibration.errors import CalibrationError
from calibration.pool import Card
from calibration.records import (
    Data,
    Record,
    RecordMeta,
    load_record,
    record_path,
    save_record,
)
from runtime.bundle import Bundle
from runtime.host import ENGINE, HostExecutor, HostStage
from runtime.preprocess import Preprocessor
from runtime.schema import Form, FrameFormat, Stage
from runtime.session import ORT_ERRORS, HostModel

BATCH = 250
"""Frames per run: large enough for full speed, small enough for a large model's activations."""

SCORE = "score"
"""Output of a pool's model that has a learned gate."""

Float32 = npt.NDArray[np.float32]


class Outputs(NamedTuple):
    """What a model says of n samples: logits f32 [n, K], and a learned gate's score f32 [n]."""

    logits: Float32
    score: Float32 | None


Infer = Callable[[npt.NDArray[np.uint8]], Mapping[str, Outputs]]


@dataclass(frozen=True)
class Source:
    """Models that are run together.

    Attributes
    ----------
    models
        Each stage with the form that is run, in the order of the cascade.
    open
        Loads the models; the function it returns gives their outputs by stage name for
        ``u8 [n, H, W, C]``.
    scored
        Names of the stages whose records must hold a score.
    """

    models: tuple[tuple[Stage, Form], ...]
    open: Callable[[], Infer]
    scored: frozenset[str] = frozenset()

    def metas(self, data: Data) -> dict[str, RecordMeta]:
        """Return what a record of each stage on the data says of itself."""
        return {stage.name: _meta(stage, form, data) for stage, form in self.models}


@dataclass(frozen=True)
class Done:
    """What became of one record."""

    model: str
    path: Path
    status: str
    record: Record


def pool_source(folder: Path, card: Card, frame_format: FrameFormat, *, threads: int) -> Source:
    """Return the source of one model of a pool."""
    stage = card.stage()

    def open_model() -> Infer:
        path = folder / card.file
        model = HostModel(path, threads=threads)
        _check_names(path, model, card)
        preprocess = Preprocessor(card.preprocessing, frame_format)

        def infer(frames: npt.NDArray[np.uint8]) -> Mapping[str, Outputs]:
            with _explained(path):
                found = model.run({card.input: preprocess(frames)})
            return {card.name: Outputs(found[card.logits], _flat(found.get(SCORE)))}

        return infer

    return Source(((stage, "fp32"),), open_model)


def bundle_source(bundle: Bundle, forms: Sequence[Form], *, threads: int) -> Source:
    """Return the source of all stages of a bundle, which see every sample."""
    spec = bundle.spec

    def open_stages() -> Infer:
        executor = HostExecutor(bundle, forms, batch=BATCH, threads=threads)

        def infer(frames: npt.NDArray[np.uint8]) -> Mapping[str, Outputs]:
            n = len(frames)
            results = (np.empty(n, np.int32), np.empty(n, np.float32), np.empty(n, np.int8))
            # A threshold of 1 keeps nothing, so that each stage sees all rows in their order.
            executor.execute(frames, [1.0] * len(spec.gates), results)
            return {stage.spec.name: _outputs(stage, n) for stage in executor.stages}

        return infer

    gated = zip(spec.stages, spec.gates, strict=False)
    scored = frozenset(stage.name for stage, gate in gated if gate.score.output is not None)
    return Source(tuple(zip(spec.stages, forms, strict=True)), open_stages, scored)


def frame_format(data: Data, colour: str | None = None) -> FrameFormat:
    """Return the format of a data set's images; grey or RGB by their channels unless told."""
    channels = data.images.shape[3]
    assumed = {1: "grey", 3: "rgb"}.get(channels)
    if colour is None and assumed is None:
        raise CalibrationError(f"{data.name}: expected images of 1 or 3 channels, got {channels}.")
    return FrameFormat.model_validate({"shape": data.images.shape[1:], "colour": colour or assumed})


def record_all(
    sources: Sequence[Source],
    data: Data,
    folder: Path,
    *,
    force: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> list[Done]:
    """Write the records of all sources that are not up to date.

    Parameters
    ----------
    folder
        Of the split, as ``records/selection``.
    force
        Record again what is up to date, and replace records of another form.
    advance
        Told each number of finished model samples.

    Raises
    ------
    CalibrationError
        When a record of another form is in the way, or one cannot be written.
    BundleError
        When a model cannot be loaded or does not fit.
    """
    stale = [source for source in sources if force or not _up_to_date(source, data, folder)]
    done = []
    for source in sources:
        if source in stale:
            done += _record(source, data, folder, advance)
        else:
            advance(len(source.models) * len(data.images))
            paths = {stage.name: record_path(folder, stage.name) for stage, _ in source.models}
            done += [Done(n, path, "up to date", load_record(path)) for n, path in paths.items()]
    return done


def _record(
    source: Source, data: Data, folder: Path, advance: Callable[[int], object]
) -> list[Done]:
    infer = source.open()
    parts: dict[str, list[Outputs]] = {stage.name: [] for stage, _ in source.models}
    for start in range(0, len(data.images), BATCH):
        frames = data.images[start : start + BATCH]
        for name, outputs in infer(frames).items():
            parts[name].append(outputs)
        advance(len(source.models) * len(frames))
    done = []
    for name, meta in source.metas(data).items():
        logits = np.concatenate([part.logits for part in parts[name]])
        scores = [part.score for part in parts[name] if part.score is not None]
        score = np.concatenate(scores) if scores else None
        record = Record(_checked(name, logits, len(data.images)), data.labels, meta, score)
        path = record_path(folder, name)
        save_record(path, record)
        done.append(Done(name, path, "recorded", record))
    return done


def _up_to_date(source: Source, data: Data, folder: Path) -> bool:
    wanted = source.metas(data)
    found = {name: _existing(record_path(folder, name)) for name in wanted}
    for name, record in found.items():
        if record and record.meta.form != wanted[name].form:
            raise CalibrationError(
                f"{record_path(folder, name)}: holds a record of form {record.meta.form}, asked "
                f"for {wanted[name].form}. Pass another --out folder, or --force to replace it."
            )
    return all(
        record is not None
        and _same(record.meta, wanted[name])
        and not (name in source.scored and record.score is None)
        for name, record in found.items()
    )


def _existing(path: Path) -> Record | None:
    try:
        return load_record(path)
    except CalibrationError:
        return None


def _same(found: RecordMeta, wanted: RecordMeta) -> bool:
    return found.model_copy(update={"engine_version": wanted.engine_version}) == wanted


def _meta(stage: Stage, form: Form, data: Data) -> RecordMeta:
    return RecordMeta(
        model=stage.name,
        model_sha256=stage.forms[form].digest,
        data=data.name,
        data_sha256=data.sha256,
        engine=ENGINE,
        engine_version=onnxruntime.__version__,
        form=form,
        preprocessing_sha256=stage.preprocessing.sha256,
    )


def _outputs(stage: HostStage, n: int) -> Outputs:
    score = None if stage.score_tensor is None else stage.outputs[stage.score_tensor][:n]
    return Outputs(stage.outputs[stage.spec.logits][:n].copy(), _flat(score))


def _flat(score: Float32 | None) -> Float32 | None:
    return None if score is None else score.reshape(-1).copy()


def _checked(name: str, logits: Float32, n: int) -> Float32:
    if logits.dtype != np.float32 or logits.ndim != 2 or len(logits) != n:
        raise CalibrationError(
            f"{name}: logits: expected f32 [{n}, K], got {logits.dtype} {list(logits.shape)}. "
            "Name the right output in the card."
        )
    return logits


def _check_names(path: Path, model: HostModel, card: Card) -> None:
    if list(model.inputs) != [card.input] or card.logits not in model.outputs:
        raise CalibrationError(
            f"{path}: expected the input {card.input!r} and an output {card.logits!r} as its card "
            f"says, the model has {list(model.inputs)} and {list(model.outputs)}."
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except ORT_ERRORS as error:
        raise CalibrationError(f"{path}: cannot run on these images: {error}") from None
