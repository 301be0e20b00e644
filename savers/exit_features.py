"""What frozen backbones say of images, once: pooled feature maps and logits, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from calibration.pool import Card
from calibration.recorder import frame_format
from calibration.records import Data
from engines.errors import EngineError, UnsupportedModel
from engines.macs import count_macs
from engines.onnx_file import read_onnx
from engines.onnx_model import Shape
from engines.segments import Blocks, Cut, add_output, add_pooled, cut_blocks
from engines.shapes import dimensions
from kernels.files import replacing
from runtime.errors import InputError
from runtime.preprocess import Preprocessor
from runtime.session import HostModel

BATCH = 250
SHIFT = 1
ERASED = 8
"""Side of the square that a view erases, in pixels of a 28-pixel image."""

Float32 = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Backbone:
    """A published model with the ends of its blocks; nothing in it is ever changed."""

    card: Card
    path: Path
    blocks: Blocks

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Ends of its blocks, in their order."""
        return self.blocks.cuts

    def block_macs(self) -> list[int]:
        """Count multiply-accumulates of a sample up to each block's end, and of the whole."""
        parts = [self.blocks.segment(0, stop) for stop in range(1, len(self.cuts) + 1)]
        return [sample_macs(part) for part in (*parts, self.blocks.model)]

    def observed(self, cuts: Sequence[Cut]) -> bytes:
        """Return the model as ONNX with further outputs: the given maps, pooled."""
        model = onnx.ModelProto()
        model.CopyFrom(self.blocks.model)
        for cut in cuts:
            name = f"pooled_{cut.tensor}"
            add_pooled(model, cut, name)
            add_output(model, name, (cut.channels,))
        content: bytes = model.SerializeToString()
        return content


class Features(NamedTuple):
    """What the backbones say of each view of each image.

    Attributes
    ----------
    pooled
        f32 [views, n, channels] of each position: the saver's last map, then each block's.
    saver
        Logits f32 [views, n, K] of the saver.
    """

    pooled: tuple[Float32, ...]
    saver: Float32


def sample_macs(model: onnx.ModelProto) -> int:
    """Count the multiply-accumulates of a network for one sample.

    Raises
    ------
    UnsupportedModel
        When a shape is unknown.
    """
    inputs: dict[str, Shape] = {
        info.name: (1, *(dimensions(info) or ())[1:]) for info in model.graph.input
    }
    counted = count_macs(model, inputs)
    if counted.total is None:
        raise UnsupportedModel(f"multiply-accumulates cannot be counted: {counted.unknown}.")
    return counted.total


def open_backbone(folder: Path, card: Card) -> Backbone:
    """Read a model of a pool and find its blocks.

    Raises
    ------
    UnsupportedModel
        When the file is damaged, or cannot be cut.
    """
    path = folder / card.file
    size = card.preprocessing.size
    shape = (1, len(card.preprocessing.mean), *size)
    try:
        return Backbone(card, path, cut_blocks(read_onnx(path).proto, {card.input: shape}))
    except UnsupportedModel as error:
        text = str(error)
        raise UnsupportedModel(text if str(path) in text else f"{path}: {text}") from None


class Witness:
    """One backbone, run over images for what exits read of it.

    Parameters
    ----------
    cuts
        Whose maps are read, pooled.
    answers
        Whether the logits are read too.
    """

    def __init__(
        self, backbone: Backbone, cuts: Sequence[Cut], *, answers: bool, threads: int
    ) -> None:
        self.card, self.channels = backbone.card, tuple(cut.channels for cut in cuts)
        self._outputs = [f"pooled_{cut.tensor}" for cut in cuts]
        self._outputs += [backbone.card.logits] if answers else []
        content = backbone.observed(cuts)
        self._model = HostModel(backbone.path, threads=threads, content=content)

    @property
    def classes(self) -> int:
        """How many logits it gives."""
        preprocessing = self.card.preprocessing
        pixels = np.zeros((1, len(preprocessing.mean), *preprocessing.size), np.float32)
        return int(self._model.run({self.card.input: pixels})[self.card.logits].shape[1])

    def table(self, data: Data, views: int, advance: Advance) -> Float32:
        """Return maps and logits side by side, f32 [views * n, columns], view by view."""
        preprocess = Preprocessor(self.card.preprocessing, frame_format(data))
        parts = []
        for images in view_batches(data.images, views):
            found = self._model.run({self.card.input: preprocess(images)})
            parts.append(np.concatenate([found[name] for name in self._outputs], 1))
            advance(len(images))
        return np.concatenate(parts)

    def kept_table(self, folder: Path, data: Data, views: int, advance: Advance) -> Float32:
        """Return `table`, read from a file in ``folder`` where it was computed before."""
        facts = (self.card.sha256, self._outputs, ERASED, SHIFT, data.sha256, views)
        key = hashlib.sha256(repr(facts).encode()).hexdigest()
        path = folder / f"features-{key[:16]}.npy"
        if not path.exists():
            found = self.table(data, views, advance)
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stream:
                np.save(stream, found)
        table, rows = _load(path), views * len(data.images)
        if table.ndim != 2 or len(table) != rows or table.shape[1] < sum(self.channels):
            raise InputError(f"{path}: expected {rows} rows, got another table. Delete the file.")
        return table


class Observer:
    """Runs a saver and a large model over images and keeps what exits read.

    Parameters
    ----------
    saver, large
        The exits read the last map of the one and all maps of the other.

    Attributes
    ----------
    classes
        How many both models know.

    Raises
    ------
    EngineError
        When they do not know the same classes.
    """

    def __init__(self, saver: Backbone, large: Backbone, *, threads: int) -> None:
        self._saver = Witness(saver, saver.cuts[-1:], answers=True, threads=threads)
        self._large = Witness(large, large.cuts, answers=False, threads=threads)
        names, classes = zip(*((w.card.name, w.classes) for w in self._witnesses), strict=True)
        self.classes: int = classes[0]
        if classes[0] != classes[1]:
            raise EngineError(
                f"{names[0]} knows {classes[0]} classes, {names[1]} {classes[1]}: exits correct "
                "the saver's answer, so both must know the same. Take another saver."
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each position."""
        return (*self._saver.channels, *self._large.channels)

    def key(self, data: Data, views: int) -> str:
        """Return what features depend on, as a text."""
        models = (witness.card.sha256 for witness in self._witnesses)
        return repr((*models, ERASED, SHIFT, data.sha256, views))

    def features(
        self, data: Data, *, views: int = 1, advance: Advance = lambda _: None
    ) -> Features:
        """Return what is said of ``views`` views of each image; the first is the image itself.

        Parameters
        ----------
        advance
            Told each number of views that a model has seen.
        """
        return self._joined([w.table(data, views, advance) for w in self._witnesses], views)

    def kept_features(
        self, folder: Path, data: Data, *, views: int, advance: Advance = lambda _: None
    ) -> Features:
        """Return `features`, read from files in ``folder`` where they were computed before."""
        tables = [w.kept_table(folder, data, views, advance) for w in self._witnesses]
        return self._joined(tables, views)

    @property
    def _witnesses(self) -> tuple[Witness, Witness]:
        return self._saver, self._large

    def _joined(self, tables: Sequence[Float32], views: int) -> Features:
        saver, large = (table.reshape(views, -1, table.shape[1]) for table in tables)
        feature, logits = np.split(saver, [sum(self._saver.channels)], axis=2)
        maps = np.split(large, np.cumsum(self._large.channels)[:-1], axis=2)
        return Features((feature, *maps), logits)


def view_batches(images: Images, views: int, *, seed: int = 0) -> Iterator[Images]:
    """Yield every view of all images in batches, view by view; the first is the image itself.

    The others are mirrored or not, shifted by up to a pixel and a square of them is erased, as the
    large model of the zoo saw its training images.
    """
    rng = np.random.default_rng(seed)
    for view in range(views):
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            yield batch if view == 0 else _changed(batch, rng)


def _changed(images: Images, rng: np.random.Generator) -> Images:
    n, height, width, _ = images.shape
    down, right = rng.integers(-SHIFT, SHIFT + 1, (2, n))
    mirrored = rng.integers(0, 2, n).astype(bool)
    rows = np.arange(height) + down[:, None]
    columns = np.arange(width) + right[:, None]
    columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    inside = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]
    sample, columns = np.arange(n)[:, None, None], columns.clip(0, width - 1)[:, None, :]
    moved = images[sample, rows.clip(0, height - 1)[:, :, None], columns]
    corner = rng.integers(-ERASED // 2, (height - ERASED // 2, width - ERASED // 2), (n, 2))
    erased = _square(corner[:, 0], height)[:, :, None] & _square(corner[:, 1], width)[:, None, :]
    return np.where((inside & ~erased)[..., None], moved, 0).astype(np.uint8)


def _within(places: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.bool_]:
    return (places >= 0) & (places < size)


def _square(corner: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.bool_]:
    place = np.arange(size)
    return (place >= corner[:, None]) & (place < corner[:, None] + ERASED)


def _load(path: Path) -> Float32:
    try:
        table: Float32 = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Delete it.") from None
    return table
