"""Small classifiers as ONNX files, and ``engines.bundle`` made of them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from engines.bundle import main

COLOUR = ["--mean", "0.5,0.4,0.3", "--std", "0.25,0.25,0.5"]
GREY = ["--mean", "0.286", "--std", "0.353"]
IMAGE = (3, 6, 5)


def classifier(
    path, *, batch="n", image=IMAGE, classes=4, target=None, softmax=False, seed=0, weights=None
):
    """Write flatten, product, bias; as exporters write them if ``target`` is a constant shape."""
    pixels = 3 * 6 * 5
    rng = np.random.default_rng(seed)
    flatten = helper.make_node("Flatten", ["x"], ["flat"], name="flatten")
    if target:
        flatten = helper.make_node("Reshape", ["x", "target"], ["flat"], name="flatten")
    nodes = [
        flatten,
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"], name="head"),
        helper.make_node("Softmax" if softmax else "Identity", ["scores"], ["y"], name="last"),
    ]
    constants = [
        numpy_helper.from_array(rng.normal(size=(pixels, classes)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=classes).astype(np.float32), "b"),
        numpy_helper.from_array(np.array(target or [0], np.int64), "target"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, *image))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, classes))],
        constants,
    )
    save(graph, path, weights)
    return path


def save(graph, path, weights=None):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    external = {"save_as_external_data": True, "location": weights, "size_threshold": 100}
    onnx.save(model, path, **(external if weights else {}))


@pytest.fixture
def pair(tmp_path):
    """A saver and a large model that answer otherwise."""
    return (
        classifier(tmp_path / "small.onnx", seed=1),
        classifier(tmp_path / "big.onnx", seed=2),
    )


@pytest.fixture
def bundle(tmp_path):
    """Run the command; return its result, and the folder it was told to make."""

    def run(saver, large, *options, out="out"):
        folder = tmp_path / out
        paths = ["--saver", str(saver), "--large", str(large), "--out", str(folder)]
        return CliRunner().invoke(main, [*paths, *map(str, options or COLOUR)]), folder

    return run


@pytest.fixture
def made(bundle):
    """Return the folder of a bundle that must come into being."""

    def make(*arguments, **fields):
        result, folder = bundle(*arguments, **fields)
        assert result.exit_code == 0, result.output
        return folder

    return make


@pytest.fixture
def refused(bundle):
    """Return the message with which nothing was made."""

    def message(*arguments, **fields):
        result, folder = bundle(*arguments, **fields)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit), "a user's error has no traceback"
        assert not folder.exists()
        assert not list(folder.parent.glob(".out*")), "the unfinished folder is removed"
        return result.output

    return message


def frames(n=9, *, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 5, 3)).astype(np.uint8)


def network_input(images):
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.25, 0.25, 0.5])
    return ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


def answers(path, images):
    """Run a model as it was given, one image at a time."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    count = batch if isinstance(batch, int) else 1
    rows = [session.run(None, {"x": np.repeat(x[None], count, axis=0)})[0][0] for x in images]
    return np.argmax(rows, axis=1)
