"""Writing a bundle from models of a pool: files, golden samples, provenance, ``cascade.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calibration.errors import CalibrationError
from calibration.npz import unwritable, write_npz
from calibration.pool import Card
from calibration.provenance import ProvenanceMeta, load_provenance, save_provenance
from calibration.recorder import frame_format, pool_source
from calibration.records import Data
from engines.score_head import ScoreHead, with_score
from kernels.files import replacing
from runtime.bundle import SPEC_NAME, file_sha256, load_bundle, save_spec
from runtime.schema import (
    CascadeSpec,
    Combination,
    FrameFormat,
    Gate,
    Golden,
    ModelFile,
    Provenance,
    Score,
    Setting,
    Stage,
)

GOLDEN_FRAMES = 8


@dataclass(frozen=True)
class Caption:
    """What a reader is told of a bundle; what is None is kept from the bundle that was there.

    Attributes
    ----------
    labels
        Names of the classes; numbers where nobody ever named them.
    colour
        Of the frames; grey or RGB by their channels where nobody ever said.
    """

    name: str | None = None
    description: str | None = None
    labels: tuple[str, ...] | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Rule:
    """How gates decide and the last stage answers; the plain rule where nothing is given.

    Attributes
    ----------
    scores
        One per gate; all max-softmax when None.
    heads
        Of the stages before a learned gate, by name.
    """

    scores: Sequence[Score] | None = None
    heads: Mapping[str, ScoreHead] = field(default_factory=dict)
    combination: Combination | None = None

    def gates(self, count: int) -> tuple[Gate, ...]:
        """Return the gates of a bundle that has so many."""
        if self.scores is None:
            return (Gate(),) * count
        return tuple(Gate(score=score) for score in self.scores)


@dataclass(frozen=True)
class Parts:
    """Models of a pool and the selection data that chose them.

    Attributes
    ----------
    pool
        Folder of the cards.
    cards
        In the order of the stages.
    classes
        How many logits the models give.
    """

    pool: Path
    cards: Sequence[Card]
    data: Data
    classes: int
    rule: Rule = field(default_factory=Rule)


def write_bundle(
    folder: Path, parts: Parts, setting: Setting, caption: Caption, *, threads: int = 1
) -> CascadeSpec:
    """Make ``folder`` a bundle of the given models, all in form fp32; return its specification.

    Files that lie inside the folder are named where they are, others are copied into it.

    Raises
    ------
    CalibrationError
        When a file cannot be written, or labels do not fit the models.
    BundleError
        When a model cannot be run, or the folder holds a bundle that cannot be read.
    UnsupportedModel
        When a learned gate cannot be added to its model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    caption, frames = _complete(folder, parts, caption)
    provenance = (*_training(folder, parts), _selection(folder, parts.data))
    spec = CascadeSpec(
        format="tinysaver.cascade/1",
        name=caption.name or folder.resolve().name,
        description=caption.description or "",
        input=frames,
        labels=caption.labels or tuple(str(number) for number in range(parts.classes)),
        stages=tuple(_stage(folder, parts, card) for card in parts.cards),
        gates=parts.rule.gates(len(parts.cards) - 1),
        combination=parts.rule.combination,
        settings={"/".join(["fp32"] * len(parts.cards)): setting},
        golden=_golden(folder, parts, frames, threads=threads),
        provenance=provenance,
    )
    try:
        save_spec(folder, spec)
    except OSError as error:
        raise unwritable(folder / SPEC_NAME, error) from None
    return spec


def _complete(folder: Path, parts: Parts, caption: Caption) -> tuple[Caption, FrameFormat]:
    """Fill a caption from the bundle in the folder, if there is one; and the frames' format."""
    if caption.labels and len(caption.labels) != parts.classes:
        raise CalibrationError(
            f"--labels: expected {parts.classes} names, one per class, got {len(caption.labels)}."
        )
    if not (folder / SPEC_NAME).exists():
        return caption, frame_format(parts.data, caption.colour)
    former = load_bundle(folder).spec
    kept = {"name": former.name, "description": former.description}
    given = {k: v for k, v in dataclasses.asdict(caption).items() if v is not None}
    labels = {"labels": former.labels} if len(former.labels) == parts.classes else {}
    filled = Caption(**{**kept, **labels, **given})
    same_shape = former.input.shape == parts.data.images.shape[1:]
    if same_shape and filled.colour in (None, former.input.colour):
        return filled, former.input
    return filled, frame_format(parts.data, filled.colour)


def _stage(folder: Path, parts: Parts, card: Card) -> Stage:
    head = parts.rule.heads.get(card.name)
    if head is None:
        file = _place(folder, parts.pool / card.file, f"models/{card.name}.onnx")
        form = ModelFile(file=file, sha256=card.sha256)
    else:
        file = f"models/{card.name}.gate.onnx"
        _write(folder / file, with_score(parts.pool / card.file, card.logits, head))
        form = ModelFile(file=file, sha256=file_sha256(folder / file))
    return card.stage().model_copy(update={"forms": {"fp32": form}})


def _training(folder: Path, parts: Parts) -> list[Provenance]:
    """Return an entry per provenance file; models trained on the same data share one."""
    entries = {}
    for card in parts.cards:
        path = parts.pool / card.provenance
        meta = load_provenance(path).meta
        if meta.purpose != "training":
            raise CalibrationError(f"{path}: expected provenance of training, got {meta.purpose}.")
        sha256 = file_sha256(path)
        file = _place(folder, path, f"provenance/training-{sha256[:8]}.npz")
        entries[sha256] = Provenance(purpose="training", file=file, sha256=sha256)
    return list(entries.values())


def _selection(folder: Path, data: Data) -> Provenance:
    path = folder / "provenance" / "selection.npz"
    meta = ProvenanceMeta(
        purpose="selection", description=f"{data.name}, {len(data.images)} samples"
    )
    entry = save_provenance(path, data.images, meta)
    return entry.model_copy(update={"file": path.relative_to(folder).as_posix()})


def _golden(folder: Path, parts: Parts, frames: FrameFormat, *, threads: int) -> Golden:
    samples = parts.data.images[:GOLDEN_FRAMES]
    arrays = {"frames": samples}
    for card in parts.cards:
        infer = pool_source(parts.pool, card, frames, threads=threads).open()
        arrays[f"logits/{card.name}/fp32"] = np.asarray(infer(samples)[card.name].logits)
    path = write_npz(folder / "golden.npz", arrays)
    return Golden(file=path.name, sha256=file_sha256(path))


def _place(folder: Path, path: Path, destination: str) -> str:
    """Return the file's path relative to the folder, after copying it there if it is outside."""
    root, source = folder.resolve(), path.resolve()
    if source.is_relative_to(root):
        return source.relative_to(root).as_posix()
    _write(folder / destination, source.read_bytes())
    return destination


def _write(target: Path, content: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as stream:
            stream.write(content)
    except OSError as error:
        raise unwritable(target, error) from None
