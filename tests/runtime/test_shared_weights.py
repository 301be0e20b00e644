"""Weights that stages read from one file: mapped once, and the answers are the same."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime.bundle import file_sha256, load_bundle
from runtime.cascade import Cascade
from runtime.host import HostExecutor
from runtime.session import HostModel
from runtime.shared_weights import SharedWeights, external_places

LARGE = np.random.default_rng(5).normal(size=(4, 4)).astype(np.float32)


def external(name, offset, *, location="w.bin", dims=(4, 4), kind=TensorProto.FLOAT):
    tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
    length = int(np.prod(dims)) * np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def network(tensors, *, repeats=1):
    """Logits: the pixels times the first tensor, ``repeats`` times."""
    nodes = [helper.make_node("Flatten", ["input"], ["x0"])]
    for step in range(repeats):
        last = step == repeats - 1
        out = "logits" if last else f"x{step + 1}"
        nodes.append(helper.make_node("MatMul", [f"x{step}", tensors[0].name], [out]))
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def write_pair(cascade_json, write_bundle, stage):
    """Write a bundle of two stages whose weights lie outside them; return its folder."""

    def write(first, second, weights):
        models = {"small": first, "big": second}
        files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
        described = []
        for name, names in (("small", list(weights)[:1]), ("big", list(weights)[-1:])):
            form = {
                "file": f"{name}.onnx",
                "sha256": hashlib.sha256(files[f"{name}.onnx"]).hexdigest(),
                "external_data": names,
                "external_sha256": [hashlib.sha256(weights[item]).hexdigest() for item in names],
            }
            described.append(stage("echo", name=name, forms={"fp32": form}))
        folder = write_bundle(cascade_json(*described, thresholds=[1.0]))
        for name, content in {**files, **weights}.items():
            (folder / name).write_bytes(content)
        return folder

    return write


@pytest.fixture
def pair(write_pair):
    weights = {"w.bin": bytes(64) + LARGE.tobytes()}
    tensor = external("block.weight", 64)
    return write_pair(network([tensor]), network([tensor], repeats=3), weights)


def executor_of(folder):
    return HostExecutor(load_bundle(folder), ["fp32", "fp32"], batch=8, threads=1)


def test_sessions_of_one_file_are_given_the_same_tensor(pair):
    small, big = (stage.model._weights for stage in executor_of(pair).stages)
    assert list(small) == list(big) == ["block.weight"]
    assert small["block.weight"].data_ptr() == big["block.weight"].data_ptr()
    np.testing.assert_array_equal(small["block.weight"].numpy(), LARGE)


def test_answers_are_those_of_sessions_with_weights_of_their_own(pair, random_frames):
    frames = random_frames(7)
    found = executor_of(pair).stage_logits(frames)
    pixels = frames.transpose(0, 3, 1, 2).astype(np.float32)
    for name, logits in zip(("small", "big"), found, strict=True):
        alone = HostModel(pair / f"{name}.onnx", threads=1)
        expected = alone.run({"input": pixels})["logits"]
        # Packed weights are multiplied in another order: a rounding of each of 4 terms, 3 times.
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-3 * np.spacing(1e3))


def test_a_session_reads_the_shared_tensor_and_not_the_file(pair):
    bundle = load_bundle(pair)
    shared = SharedWeights.of(bundle, ["fp32", "fp32"])
    weights = shared.tensors(pair / "small.onnx")
    (pair / "w.bin").rename(pair / "moved.bin")
    (pair / "w.bin").write_bytes(bytes(128))
    model = HostModel(pair / "small.onnx", threads=1, weights=weights)
    found = model.run({"input": np.ones((1, 1, 2, 2), np.float32)})["logits"]
    np.testing.assert_allclose(found[0], LARGE.sum(0), rtol=1e-5)


def test_a_cascade_runs_on_shared_weights(pair, random_frames):
    frames = random_frames(11)
    with Cascade.load(pair, device="cpu") as cascade:
        results = cascade.run(frames)
    pixels = frames.reshape(11, 4).astype(np.float32)
    expected = pixels @ LARGE @ LARGE @ LARGE
    assert (results.label == expected.argmax(1)).all()
    assert (results.stage == 1).all()


def test_files_of_one_stage_are_left_to_its_session(write_pair):
    weights = {"a.bin": LARGE.tobytes(), "b.bin": LARGE.tobytes()}
    models = [network([external("w", 0, location=name)]) for name in weights]
    executor = executor_of(write_pair(*models, weights))
    assert [dict(stage.model._weights) for stage in executor.stages] == [{}, {}]


@pytest.mark.parametrize(
    "tensor",
    [
        external("beyond", 96),
        external("unaligned", 3),
        external("bfloat16", 0, kind=TensorProto.BFLOAT16),
        external("empty", 0, dims=(0, 4)),
        external("elsewhere", 0, location="other.bin"),
    ],
    ids=lambda tensor: tensor.name,
)
def test_a_tensor_that_cannot_be_shared_is_left_to_the_session(pair, tensor):
    shared = SharedWeights.of(load_bundle(pair), ["fp32", "fp32"])
    path = pair / "odd.onnx"
    path.write_bytes(network([external("block.weight", 64), tensor]).SerializeToString())
    assert list(shared.tensors(path)) == ["block.weight"]


@pytest.mark.parametrize("kind", ["FLOAT", "UINT8", "INT8", "INT32", "INT64", "FLOAT16"])
def test_places_are_those_that_onnx_reads(kind):
    number = TensorProto.DataType.Value(kind)
    tensors = [
        external("block.weight", 64, dims=(4, 4)),
        external("größe", 2**40, location="sub/w.bin", dims=(3, 200, 70_000), kind=number),
        external("scalar", 8, dims=(), kind=number),
    ]
    inside = onnx.numpy_helper.from_array(LARGE, "inside")
    places = list(external_places(network([*tensors, inside]).SerializeToString()))
    assert [item.name for item in places] == ["block.weight", "größe", "scalar"]
    assert [item.shape for item in places] == [(4, 4), (3, 200, 70_000), ()]
    assert [item.offset for item in places] == [64, 2**40, 8]
    assert [item.location for item in places] == ["w.bin", "sub/w.bin", "w.bin"]
    assert places[1].dtype is helper.tensor_dtype_to_np_dtype(number).type


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_model_is_left_to_the_session(pair, seed):
    shared = SharedWeights.of(load_bundle(pair), ["fp32", "fp32"])
    whole = (pair / "small.onnx").read_bytes()
    rng = np.random.default_rng(seed)
    path = pair / "damaged.onnx"
    for content in (whole[: rng.integers(len(whole))], rng.bytes(300), b"\xff" * 30, b""):
        path.write_bytes(content)
        assert set(shared.tensors(path)) <= {"block.weight"}


def test_both_stages_of_a_certificate_cover_the_shared_file(pair):
    before = [stage.forms["fp32"].digest for stage in load_bundle(pair).spec.stages]
    text = (pair / "cascade.json").read_text()
    old = file_sha256(pair / "w.bin")
    (pair / "w.bin").write_bytes(bytes(128))
    (pair / "cascade.json").write_text(text.replace(old, file_sha256(pair / "w.bin")))
    after = [stage.forms["fp32"].digest for stage in load_bundle(pair).spec.stages]
    assert not {*before} & {*after}
