"""Small bundles in a temporary folder, of the models that tests/models/make.py describes."""

import copy
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.errors import BundleError
from runtime.schema import CascadeSpec

MODELS = Path(__file__).parent.parent / "models"
OTHER_SHA = "0123456789abcdef" * 4
PIXELS = {"size": [2, 2], "colour": "grey", "mean": [0.0], "std": [1 / 255]}
"""Makes the network input equal to the pixels."""


@pytest.fixture
def models():
    """Folder of the committed ONNX files."""
    return MODELS


@pytest.fixture
def stage():
    """Describe a stage of cascade.json: ``stage("echo", name=..., inputs=..., ...)``."""

    def describe(model, *, sources=None, **fields):
        sources = sources or {"input": "frames"}
        content = (MODELS / f"{model}.onnx").read_bytes()
        file = {"file": f"{model}.onnx", "sha256": hashlib.sha256(content).hexdigest()}
        described = {
            "name": model,
            "preprocessing": copy.deepcopy(PIXELS),
            "inputs": [{"tensor": name, "source": source} for name, source in sources.items()],
            "macs": 16,
            "forms": {"fp32": file},
        }
        return {**described, **fields}

    return describe


@pytest.fixture
def cascade_json(stage):
    """Describe a cascade of stages, given by their model or by `stage`, as a plain dict."""

    def describe(*stages, thresholds=None, scores=None, **fields):
        described = [stage(item) if isinstance(item, str) else item for item in stages]
        gates = len(described) - 1
        content = {
            "format": "tinysaver.cascade/1",
            "name": "hand-made",
            "input": {"shape": [2, 2, 1], "colour": "grey"},
            "labels": ["a", "b", "c", "d"],
            "stages": described,
            "gates": [{"score": score} for score in scores] if scores else [{}] * gates,
            "settings": {
                "/".join(["fp32"] * (gates + 1)): {"thresholds": thresholds or [0.5] * gates}
            },
        }
        return {**content, **fields}

    return describe


@pytest.fixture
def write_bundle(tmp_path):
    """Write cascade.json (a dict, or text) and the models it names; return the folder."""

    def write(content, folder="bundle"):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for file in MODELS.glob("*.onnx"):
            shutil.copy(file, root)
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "cascade.json").write_text(text, encoding="utf-8")
        return root

    return write


@pytest.fixture
def make_bundle(cascade_json, write_bundle):
    """Write the bundle that `cascade_json` describes; return its folder."""

    def make(*stages, **fields):
        return write_bundle(cascade_json(*stages, **fields))

    return make


@pytest.fixture
def make_spec(cascade_json):
    """Return the `CascadeSpec` that `cascade_json` describes."""

    def make(*stages, **fields):
        return CascadeSpec.model_validate_json(json.dumps(cascade_json(*stages, **fields)))

    return make


@pytest.fixture
def random_frames():
    """Return u8 [n, 2, 2, 1] of small values, so that confidences spread and ties are common."""

    def draw(n, *, seed=0, most=7):
        return np.random.default_rng(seed).integers(0, most, (n, 2, 2, 1)).astype(np.uint8)

    return draw


@pytest.fixture
def full_spec(make_spec, stage):
    """Every optional field in use."""
    forms = {
        "fp32": {
            "file": "echo.onnx",
            "sha256": OTHER_SHA,
            "external_data": ["weights/a.bin"],
            "external_sha256": [OTHER_SHA],
        },
        "int8_host": {"file": "echo8.onnx", "sha256": OTHER_SHA},
    }
    certificate = {
        "quantity": "accuracy_drop",
        "epsilon": 0.005,
        "delta": 0.0125,
        "method": "wsr",
        "n": 8000,
        "harm": 31,
        "help": 7,
        "thresholds": [0.8125, 0.5],
        "scores": [{}, {"name": "p_norm", "p": 4.0}],
        "path": {"offsets": [0.0, -1.5]},
        "passed": 321,
        "order_seed": 2**64 - 1,
        "escalation_rates": [0.25, 0.125],
        "covers": {
            "data_sha256": OTHER_SHA,
            "stages": [
                {
                    "name": "saver",
                    "model_sha256": OTHER_SHA,
                    "engine": "onnxruntime",
                    "form": "fp32",
                    "preprocessing_sha256": OTHER_SHA,
                }
            ]
            * 3,
            "provenance": "checked",
        },
    }
    return make_spec(
        stage("echo", name="saver", forms=forms),
        stage("features", name="middle"),
        stage("reads_features", sources={"input": "frames", "features": "middle/features"}),
        scores=[{"temperature": 1.3}, {"name": "p_norm", "p": 4.0}],
        description="Größe: 2 x 2",
        settings={
            "fp32/fp32/fp32": {
                "thresholds": [0.8125, [0.5, 0.25, 1.0, 0.0]],
                "path": {"offsets": [0.0, -1.5]},
                "certificate": certificate,
                "gears": [[0.9, 0.95]],
            },
            "int8_host/fp32/fp32": {"thresholds": [1, 0.1]},
        },
        golden={"file": "golden.npz", "sha256": OTHER_SHA},
        provenance=[{"purpose": "training", "file": "training.npz", "sha256": OTHER_SHA}],
    )


@pytest.fixture
def content(cascade_json):
    """A cascade of two stages as a plain dict, to be spoilt by `changed`."""
    return cascade_json("echo", "negated", thresholds=[0.75])


@pytest.fixture
def changed():
    """Set ``content[path[0]][path[1]]...``; the value ``del`` removes it."""

    def change(content, path, value):
        *parents, last = path
        for key in parents:
            content = content[key]
        if value == "del":
            del content[last]
        else:
            content[last] = value

    return change


@pytest.fixture
def refusal():
    """Return the message with which a bundle is refused."""

    def message(folder):
        with pytest.raises(BundleError) as caught:
            load_bundle(folder)
        return str(caught.value)

    return message
