"""A small world: three linear models of known quality, their data, and the folders of a project."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from calibration.assembly import Caption, Parts, write_bundle
from calibration.pool import Card, load_pool, save_card
from calibration.provenance import ProvenanceMeta, save_provenance
from calibration.recorder import frame_format, pool_source, record_all
from calibration.records import load_data
from runtime.bundle import file_sha256
from runtime.schema import Preprocessing, Setting, ThresholdPath
from tests.calibration.int8_world import int8, of_large

__all__ = ["int8", "of_large"]

CLASSES = 3
SHAPE = (4, 3, 1)
PREPROCESSING = Preprocessing(size=SHAPE[:2], colour="grey", mean=(0.5,), std=(0.25,))
NOISE = {"tiny": 0.5, "middle": 0.2, "large": 0.0}
MACS = {"tiny": 10, "middle": 100, "large": 1000}


@dataclass(frozen=True)
class World:
    """Folders below ``root``, as a project has them."""

    root: Path

    @property
    def pool(self) -> Path:
        return self.root / "zoo" / "models"

    @property
    def bundle(self) -> Path:
        return self.root / "zoo"

    @property
    def records(self) -> Path:
        return self.root / "records"

    def data(self, split: str) -> Path:
        return self.root / "zoo" / "data" / f"{split}.npz"

    def images(self, split: str) -> np.ndarray:
        with np.load(self.data(split)) as stored:
            return np.asarray(stored["images"])

    def make_bundle(self, *names: str) -> Path:
        """Make the pool's folder a bundle, with the default path."""
        cards = load_pool(self.pool)
        data = load_data(self.data("selection"))
        parts = Parts(self.pool, [cards[name] for name in names], data, CLASSES)
        gates = len(names) - 1
        path = ThresholdPath(offsets=(0.0,) * gates)
        write_bundle(self.bundle, parts, Setting(thresholds=(0.9,) * gates, path=path), Caption())
        return self.bundle

    def record(self, split: str) -> Path:
        """Record the whole pool; return the folder of the split's records."""
        data = load_data(self.data(split))
        cards = load_pool(self.pool).values()
        frames = frame_format(data)
        sources = [pool_source(self.pool, card, frames, threads=1) for card in cards]
        record_all(sources, data, self.records / split)
        return self.records / split


def weights() -> np.ndarray:
    return random_matrix(seed=0)


def random_matrix(*, seed: int) -> np.ndarray:
    # The factor makes confidences spread over the whole path.
    return np.random.default_rng(seed).normal(size=(int(np.prod(SHAPE)), CLASSES)) / 2


def save_model(path: Path, matrix: np.ndarray) -> None:
    """Write ``logits = flatten(input) @ matrix`` as ONNX."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ],
        path.stem,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, *SHAPE[:2]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(matrix.astype(np.float32), "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def save_split(path: Path, n: int, *, seed: int) -> None:
    """Write images and the labels that the noiseless model gives to nineteen of twenty."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *SHAPE)).astype(np.uint8)
    inputs = (images.reshape(n, -1) / 255 - 0.5) / 0.25
    labels = (inputs @ weights()).argmax(1)
    wrong = rng.random(n) < 0.05
    labels[wrong] = rng.integers(0, CLASSES, int(wrong.sum()))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, labels=labels.astype(np.int32))


def save_pool_model(pool: Path, name: str) -> None:
    save_model(pool / f"{name}.onnx", weights() + NOISE[name] * random_matrix(seed=7))
    card = Card(
        name=name,
        file=f"{name}.onnx",
        sha256=file_sha256(pool / f"{name}.onnx"),
        macs=MACS[name],
        parameters=36,
        preprocessing=PREPROCESSING,
        seed=0,
        provenance="../provenance/training.npz",
    )
    save_card(pool, card)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.pool.mkdir(parents=True)
    for name in NOISE:
        save_pool_model(made.pool, name)
    save_split(made.data("selection"), 1500, seed=1)
    save_split(made.data("certificate"), 2500, seed=2)
    training = np.random.default_rng(3).integers(0, 256, (50, *SHAPE)).astype(np.uint8)
    provenance = made.bundle / "provenance" / "training.npz"
    save_provenance(provenance, training, ProvenanceMeta(purpose="training"))
    return made


def runner() -> CliRunner:
    """Return a runner that keeps standard error apart, as click does by itself from 8.2 on."""
    if "mix_stderr" in inspect.signature(CliRunner).parameters:
        return CliRunner(mix_stderr=False)
    return CliRunner()


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Run a command with arguments of any type; a traceback fails the test."""

    def run(command: click.Command, *arguments: object, code: int = 0) -> Result:
        result = runner().invoke(command, [str(item) for item in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run
