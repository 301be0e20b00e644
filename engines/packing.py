"""Writing a bundle from ONNX files: whole or not at all, every model in it run once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from engines.batch import declared_batch
from engines.errors import EngineError, UnsupportedModel
from engines.onnx_file import external_files
from engines.stage_model import StageModel, StageRequest, read_stage
from engines.stage_run import StageRunner, check_logits, compare, random_images
from kernels.files import replacing
from runtime.bundle import file_sha256, save_spec
from runtime.errors import InputError
from runtime.images import read_sources
from runtime.preprocess import Preprocessor
from runtime.schema import (
    CascadeSpec,
    FrameFormat,
    Gate,
    Golden,
    ModelFile,
    Setting,
    Stage,
    StageInput,
    ThresholdPath,
)

GOLDEN_FRAMES = 8
"""Enough to tell another model or preprocessing, few enough to run at every start."""


@dataclass(frozen=True)
class BundleRequest:
    """What a bundle is to be made of.

    Attributes
    ----------
    stages
        Two or more, the large model last.
    labels
        Names of the classes; None names them by number.
    data
        Pictures, a folder of them, or npz, for golden samples; None leaves them out.
    """

    name: str
    description: str
    stages: tuple[StageRequest, ...]
    frames: FrameFormat
    labels: tuple[str, ...] | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Packed:
    """A stage that lies in the bundle's folder, and was run there."""

    model: StageModel
    file: ModelFile
    classes: int

    def stage(self) -> Stage:
        """Return the stage as ``cascade.json`` describes it."""
        return Stage(
            name=self.model.request.name,
            preprocessing=self.model.preprocessing,
            inputs=(StageInput(tensor=self.model.tensor),),
            logits=self.model.logits,
            macs=self.model.macs,
            forms={"fp32": self.file},
        )


@dataclass(frozen=True)
class Written:
    """A finished bundle; its models were changed as ``changes`` says, stage by stage."""

    folder: Path
    spec: CascadeSpec
    changes: tuple[tuple[str, ...], ...]


def write_bundle(
    out: Path, request: BundleRequest, *, say: Callable[[str], object] = lambda _: None
) -> Written:
    """Make the folder ``out`` a bundle, in form fp32, without a certificate.

    The thresholds are 1: every sample goes on to the large model, until a certificate allows less.

    Parameters
    ----------
    say
        Told each model that is about to be read.

    Raises
    ------
    EngineError
        When ``out`` holds something, a model cannot be a stage, or the parts do not fit together.
    InputError
        When the golden samples cannot be read.
    """
    with whole_folder(out) as folder:
        packed: list[Packed] = []
        for stage in request.stages:
            say(f"{stage.name}: {stage.path}")
            packed.append(pack_stage(folder, stage, beside=packed))
        labels = _labels(packed, request.labels)
        spec = CascadeSpec(
            format="tinysaver.cascade/1",
            name=request.name,
            description=request.description,
            input=request.frames,
            labels=labels,
            stages=tuple(item.stage() for item in packed),
            gates=(Gate(),) * (len(packed) - 1),
            settings={"/".join(["fp32"] * len(packed)): _escalate_all(len(packed) - 1)},
            golden=_golden(folder, request.data, request.frames, packed) if request.data else None,
        )
        save_spec(folder, spec)
    return Written(out, spec, tuple(tuple(item.model.changes) for item in packed))


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that takes its place only if the block succeeds.

    Raises
    ------
    EngineError
        When ``out`` exists and is not an empty folder.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield partial
        partial.chmod(0o755)
        os.rename(partial, out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.filename:
            # The user knows the folder by its own name.
            error.filename = os.fspath(error.filename).replace(str(partial), str(out))
        raise


def check_free(out: Path) -> None:
    """Raise when there is something where a bundle is to be made.

    Raises
    ------
    EngineError
        When ``out`` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EngineError(f"{out}: exists already. Remove it, or give another --out.")


def pack_stage(folder: Path, request: StageRequest, *, beside: Sequence[Packed] = ()) -> Packed:
    """Put a model into the folder, changed where it must be, and compare it with the user's file.

    Parameters
    ----------
    beside
        The stages that lie there already; weights that one of them reads too are not copied again.

    Raises
    ------
    UnsupportedModel
        When it cannot be a stage.
    """
    model = read_stage(request)
    sharer = _sharer(model, beside)
    place = (folder / sharer.file.file).parent if sharer else folder / "models"
    # Weights in other files keep their names beside the model, so each such model has a folder,
    # or that of the stage whose weights it shares.
    place = place / request.name if model.file.external and not sharer else place
    for name in model.file.external:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(request.path.parent / name, place / name)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{request.name}.onnx"
    classes = _write_checked(path, model)
    kept = external_files(model.proto) if model.changes else model.file.external
    read = {folder / name for item in beside for name in item.file.external_data}
    for taken_in in {place / name for name in {*model.file.external} - {*kept}} - read:
        taken_in.unlink()
    file = ModelFile(
        file=path.relative_to(folder).as_posix(),
        external_data=tuple((place / name).relative_to(folder).as_posix() for name in kept),
        external_sha256=tuple(file_sha256(place / name) for name in kept) or None,
        sha256=file_sha256(path),
    )
    return Packed(model, file, classes)


def _sharer(model: StageModel, beside: Sequence[Packed]) -> Packed | None:
    """Return an earlier stage that reads a file of weights which this one reads too."""
    home, files = model.request.path.parent.resolve(), {*model.file.external}
    for item in beside:
        other = item.model
        if other.request.path.parent.resolve() == home and files & {*other.file.external}:
            return item
    return None


def _write_checked(path: Path, model: StageModel) -> int:
    """Write a model, run it in batches, and return how many classes it has."""
    shown = model.request.path
    images = random_images((len(model.preprocessing.mean), *model.preprocessing.size))
    expected = _reference(path, model).run_each(images, batch=declared_batch(model.file.proto))
    check_logits(shown, model.proto, model.logits, expected)
    model.declare_logits(expected.shape[1])
    if model.changes:
        _write(path, model.proto.SerializeToString())
    else:
        _write(path, shown.read_bytes())
    runner = StageRunner(path, shown=shown, tensor=model.tensor, logits=model.logits)
    compare(shown, expected, runner.run_each(images), batch=1)
    compare(shown, expected, runner.run(images), batch=len(images))
    return int(expected.shape[1])


def _reference(path: Path, model: StageModel) -> StageRunner:
    """Return the user's file, ready to run; ``path`` may be used for one that shows the logits."""
    file = model.file
    run = file.path
    if model.logits not in [info.name for info in file.proto.graph.output]:
        shows = onnx.ModelProto()
        shows.CopyFrom(file.proto)
        shows.graph.output.append(
            helper.make_tensor_value_info(model.logits, TensorProto.FLOAT, None)
        )
        _write(path, shows.SerializeToString())
        run = path
    return StageRunner(run, shown=file.path, tensor=model.tensor, logits=model.logits)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as stream:
        stream.write(content)


def _labels(packed: Sequence[Packed], labels: tuple[str, ...] | None) -> tuple[str, ...]:
    counts = {item.model.request.name: item.classes for item in packed}
    if len(set(counts.values())) > 1:
        described = ", ".join(f"{name} {classes}" for name, classes in counts.items())
        raise UnsupportedModel(
            f"expected models of the same classes, got {described}. "
            "All stages of a cascade answer the same question."
        )
    classes = packed[0].classes
    if labels is None:
        return tuple(str(number) for number in range(classes))
    if len(labels) != classes:
        raise UnsupportedModel(
            f"--labels: expected {classes} names, one per class, got {len(labels)}."
        )
    return labels


def _escalate_all(gates: int) -> Setting:
    """Return thresholds that keep nothing, and the path that a certificate will walk down."""
    return Setting(thresholds=(1.0,) * gates, path=ThresholdPath(offsets=(0.0,) * gates))


def _golden(folder: Path, data: Path, frames: FrameFormat, packed: Sequence[Packed]) -> Golden:
    samples = _samples(data, frames)
    arrays: dict[str, Any] = {"frames": samples}
    for item in packed:
        model = item.model
        path = folder / item.file.file
        runner = StageRunner(
            path, shown=model.request.path, tensor=model.tensor, logits=model.logits
        )
        images = Preprocessor(model.preprocessing, frames)(samples)
        arrays[f"logits/{model.request.name}/fp32"] = runner.run(images)
    golden = folder / "golden.npz"
    with replacing(golden) as stream:
        np.savez_compressed(stream, **arrays)
    return Golden(file=golden.name, sha256=file_sha256(golden))


def _samples(data: Path, frames: FrameFormat) -> npt.NDArray[np.uint8]:
    """Return the first pictures, of those that can be read and have the size of the first."""
    pictures = list(islice((item for item in read_sources([data], frames)), 10 * GOLDEN_FRAMES))
    good = [item.frame for item in pictures if item.frame is not None]
    if not good:
        reason = f" ({pictures[0].source}: {pictures[0].error})" if pictures else ""
        raise InputError(f"{data}: no picture that can be read{reason}.")
    return np.stack([frame for frame in good if frame.shape == good[0].shape][:GOLDEN_FRAMES])
