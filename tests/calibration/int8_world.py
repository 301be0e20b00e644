"""A small cascade of two convolutional networks, with the data and the timings of its tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result

import calibration.forms
from calibration.assembly import Caption, Parts, write_bundle
from calibration.comparison import Race
from calibration.int8 import main
from calibration.pool import Card, load_pool, save_card
from calibration.provenance import ProvenanceMeta, save_provenance
from calibration.records import load_data
from runtime.bundle import Bundle, file_sha256, load_bundle
from runtime.preprocess import Preprocessor
from runtime.schema import FrameFormat, Preprocessing, Setting, ThresholdPath
from tests.engines.form_graphs import residual_network, run

SHAPE = (6, 6, 1)
PREPROCESSING = Preprocessing(size=(6, 6), colour="grey", mean=(0.5,), std=(0.25,))
CLASSES = 3
FORMS = ("fp16", "int8_host", "int8_trt")


def noisy(made: onnx.ModelProto, amount: float) -> onnx.ModelProto:
    """Return a network whose weights are a little off."""
    rng = np.random.default_rng(9)
    for tensor in made.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        values = values + amount * values.std() * rng.standard_normal(values.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return made


def frames(n: int, *, seed: int) -> np.ndarray:
    """Return pictures of a slope each, with some noise: unlike noise alone, all look different."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1:1:6j, -1:1:6j]
    slope = rng.uniform(-1, 1, (2, n, 1, 1))
    pictures = rng.uniform(60, 200, (n, 1, 1)) + 110 * (slope[0] * rows + slope[1] * columns)
    noise = rng.normal(0, 12, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)[..., None]


def network() -> onnx.ModelProto:
    """Return the large network; each of its classes is the answer to about as many pictures."""
    made = residual_network()
    (bias,) = [tensor for tensor in made.graph.initializer if tensor.name == "b3"]
    logits = run(made, inputs(frames(500, seed=99)))
    values = onnx.numpy_helper.to_array(bias) - np.median(logits, axis=0)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "b3"))
    return made


def inputs(images: np.ndarray) -> np.ndarray:
    return Preprocessor(PREPROCESSING, FrameFormat(shape=SHAPE, colour="grey"))(images)


def save_split(path: Path, n: int, *, seed: int) -> None:
    """Write images with the large network's answers as labels, but for one in twenty."""
    images = frames(n, seed=seed)
    labels = run(network(), inputs(images)).argmax(1)
    wrong = np.random.default_rng(seed).random(n) < 0.05
    labels[wrong] = np.random.default_rng(seed + 1).integers(0, CLASSES, int(wrong.sum()))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, labels=labels.astype(np.int32))


def save_card_of(pool: Path, name: str, made: onnx.ModelProto) -> None:
    for place, info in enumerate([*made.graph.input, *made.graph.output]):
        assert info.name == "xy"[place]
    path = pool / f"{name}.onnx"
    path.write_bytes(made.SerializeToString())
    card = Card(
        name=name, file=path.name, sha256=file_sha256(path), macs=4000 if name == "large" else 100,
        parameters=1, preprocessing=PREPROCESSING, input="x", logits="y", seed=0,
        provenance="../provenance/training.npz",
    )  # fmt: skip
    save_card(pool, card)


def make_bundle(
    folder: Path, *, large: onnx.ModelProto | None = None, tiny: onnx.ModelProto | None = None
) -> Path:
    """Make a bundle tiny -> large with its selection data, 400 images."""
    pool = folder / "models"
    pool.mkdir(parents=True)
    save_card_of(pool, "tiny", tiny or noisy(network(), 0.2))
    save_card_of(pool, "large", large or network())
    save_provenance(
        folder / "provenance" / "training.npz",
        frames(9, seed=3),
        ProvenanceMeta(purpose="training"),
    )
    save_split(folder / "data" / "selection.npz", 400, seed=1)
    cards = load_pool(pool)
    data = load_data(folder / "data" / "selection.npz")
    parts = Parts(pool, [cards["tiny"], cards["large"]], data, CLASSES)
    setting = Setting(thresholds=(0.8,), path=ThresholdPath())
    write_bundle(folder, parts, setting, Caption(name="small"))
    return folder


class Command:
    """``calibration.int8`` on one bundle, with the speed-up of int8_host given beforehand."""

    def __init__(self, invoke: Callable[..., Result], bundle: Path, folder: Path) -> None:
        self._invoke, self.bundle, self.cache = invoke, bundle, folder / "cache"
        self.speedups = {"tiny": 0.5, "large": 2.0}

    def __call__(self, *options: object, code: int = 0) -> Result:
        chosen = ("--cache", self.cache, "--threads", 1, "--images", 100, "--epsilon", 0.05,
                  "--certificate-size", 400, "--max-drop", 3)  # fmt: skip
        return self._invoke(main, self.bundle, *chosen, *options, code=code)

    def report(self, *options: object) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self("--json", *options).stdout)
        return report

    def race(self, forms: calibration.forms.StageForms, content: bytes) -> Race:
        speedup = self.speedups[forms.spec.name]
        return Race(32, 1e-3, 1e-3 / speedup, speedup)

    def load(self) -> Bundle:
        return load_bundle(self.bundle)


def command(
    invoke: Callable[..., Result], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    made = Command(invoke, bundle, bundle.parent)
    monkeypatch.setattr(calibration.forms.StageForms, "_race", lambda *call: made.race(*call))
    return made


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


Invoke = Callable[..., Result]


@pytest.fixture
def int8(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return command(invoke, make_bundle(tmp_path / "bundle"), monkeypatch)


@pytest.fixture
def of_large(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[onnx.ModelProto], Command]:
    def make(large: onnx.ModelProto) -> Command:
        return command(invoke, make_bundle(tmp_path / "other", large=large), monkeypatch)

    return make
