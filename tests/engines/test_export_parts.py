"""The stages' models become parts of one graph, or are refused with a reason."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.errors import UnsupportedModel
from engines.export import export_onnx
from engines.export_parts import read_parts
from runtime.bundle import load_bundle
from runtime.cascade import Cascade

IMAGE = ("n", 1, 2, 2)


def info(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(nodes, *, constants=None, opset=13, functions=(), domains=(), ir_version=8):
    """A model ``input [n, 1, 2, 2] -> logits [n, 4]``."""
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(
        nodes, "model", [info("input", *IMAGE)], [info("logits", "n", 4)], weights
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*item) for item in domains)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=functions, ir_version=ir_version
    )


def flatten(output="logits"):
    return helper.make_node("Flatten", ["input"], [output])


@pytest.fixture
def put(make_bundle):
    """Make a bundle of the stages ``echo`` and these models; return its folder."""

    def make(*protos, threshold=0.9):
        folder = make_bundle(
            "echo", *["negated"] * len(protos), thresholds=[threshold] * len(protos)
        )
        described = json.loads((folder / "cascade.json").read_text())
        for number, (stage, proto) in enumerate(zip(described["stages"][1:], protos, strict=True)):
            file = folder / f"model{number}.onnx"
            if not isinstance(proto, str):
                file.write_bytes(proto.SerializeToString())
            else:
                file = folder / proto
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            stage |= {
                "name": f"model{number}",
                "forms": {"fp32": {"file": file.name, "sha256": sha256}},
            }
        (folder / "cascade.json").write_text(json.dumps(described))
        return folder

    return make


def assert_as_the_cascade(folder, frames):
    exported = export_onnx(load_bundle(folder), folder / "cascade.onnx")
    label, _, stage = ort.InferenceSession(str(exported.file)).run(None, {"frames": frames})
    with Cascade.load(folder, threads=1) as cascade:
        expected = cascade.run(frames)
    assert len(set(stage.tolist())) > 1
    assert label.tolist() == expected.label.tolist()
    assert stage.tolist() == expected.stage.tolist()
    return onnx.load(exported.file)


def refusal(folder):
    bundle = load_bundle(folder)
    paths = [bundle.model(index, "fp32") for index in range(len(bundle.spec.stages))]
    with pytest.raises(UnsupportedModel) as caught:
        read_parts(bundle.spec, paths)
    return str(caught.value)


def test_stages_of_different_opsets_are_brought_to_the_newest(put, random_frames):
    """Squeeze has its axes in an attribute before opset 13, ReduceMax until opset 17."""
    squeeze = helper.make_node("Squeeze", ["input"], ["image"], axes=[1])
    flat = helper.make_node("Flatten", ["image"], ["logits"])
    old, new = model([squeeze, flat], opset=11), model([flatten()], opset=18)
    merged = assert_as_the_cascade(put(old, new), random_frames(101))
    assert [item.version for item in merged.opset_import] == [18]


def test_a_model_that_cannot_be_converted_is_refused_with_the_reason(put):
    """Gemm could broadcast any axis before opset 7."""
    product = helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"], broadcast=1)
    constants = {"weights": np.float32(np.eye(4)), "bias": np.zeros(1, np.float32)}
    old = model([flatten("flat"), product], opset=6, constants=constants)
    message = refusal(put(old, model([flatten()], opset=13)))
    assert "model0.onnx: opset 6 cannot be brought to 13" in message
    assert "Dimension" in message


def test_nodes_that_nobody_reads_are_left_out(make_bundle):
    """`features` also puts out the mean and the places of its pixels."""
    folder = make_bundle("features", "negated")
    bundle = load_bundle(folder)
    first, second = read_parts(bundle.spec, [bundle.model(i, "fp32") for i in (0, 1)]).graphs
    assert [node.op_type for node in first.node] == ["Flatten"]
    assert not first.initializer
    assert [node.op_type for node in second.node] == ["Flatten", "Neg"]


def test_a_branch_inside_a_stage_keeps_what_it_reads(put, random_frames):
    """Both branches read tensors from around them."""
    then = helper.make_graph(
        [helper.make_node("Neg", ["flat"], ["a"])], "then", [], [info("a", "n", 4)]
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["flat", "two"], ["b"])], "else", [], [info("b", "n", 4)]
    )
    nodes = [
        flatten("flat"),
        helper.make_node("ReduceMax", ["flat"], ["largest"], keepdims=0),
        helper.make_node("Less", ["largest", "limit"], ["dark"]),
        helper.make_node("If", ["dark"], ["logits"], then_branch=then, else_branch=other),
    ]
    constants = {"two": np.float32(2), "limit": np.float32(1000)}
    assert_as_the_cascade(put(model(nodes, constants=constants)), random_frames(101))


def test_functions_of_a_model_become_plain_nodes(put, random_frames):
    body = [helper.make_node("Neg", ["x"], ["y"])]
    opset = [helper.make_opsetid("", 13)]
    function = helper.make_function("mine", "Turn", ["x"], ["y"], body, opset)
    nodes = [flatten("flat"), helper.make_node("Turn", ["flat"], ["logits"], domain="mine")]
    proto = model(nodes, functions=[function], domains=[("mine", 1)], ir_version=9)
    merged = assert_as_the_cascade(put(proto, proto), random_frames(101))
    assert not merged.functions
    assert merged.ir_version == 9


def test_weights_in_a_file_beside_the_model_come_into_the_graph(put, random_frames):
    nodes = [
        flatten("flat"),
        helper.make_node("MatMul", ["flat", "in"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "out"], ["logits"]),
    ]
    turned = np.float32(np.eye(4)[::-1])
    spread = np.repeat(turned, 1024, axis=1)
    proto = model(nodes, constants={"in": spread, "out": np.repeat(turned, 1024, axis=0) / 1024})
    folder = put("negated.onnx")
    onnx.save(
        proto,
        folder / "beside.onnx",
        save_as_external_data=True,
        location="beside.bin",
        size_threshold=0,
    )
    described = json.loads((folder / "cascade.json").read_text())
    sha256, weights = (
        hashlib.sha256((folder / f"beside.{end}").read_bytes()).hexdigest()
        for end in ("onnx", "bin")
    )
    external = {"external_data": ["beside.bin"], "external_sha256": [weights]}
    file = {"file": "beside.onnx", "sha256": sha256, **external}
    described["stages"][1]["forms"]["fp32"] = file
    (folder / "cascade.json").write_text(json.dumps(described))
    merged = assert_as_the_cascade(folder, random_frames(101))
    assert "beside.bin" not in str(merged)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "reads_features.onnx",
            r"inputs: expected \['input'\] as cascade.json says, .* \['features', 'input'\]",
        ),
        (
            "five.onnx",
            r"shape of logits: expected \['n', 4\] as cascade.json says, the model has \['n', 5\]",
        ),
        ("fixed.onnx", "batch of input: expected any as cascade.json says, the model has 1"),
    ],
)
def test_a_model_of_another_cascade_is_refused(put, file, expected):
    with pytest.raises(UnsupportedModel, match=expected):
        bundle = load_bundle(put(file))
        read_parts(bundle.spec, [bundle.model(i, "fp32") for i in (0, 1)])


def test_an_output_that_a_later_stage_wants_must_be_there(make_bundle, stage):
    reader = stage("reads_features", sources={"input": "frames", "features": "echo/features"})
    assert "outputs: expected ['logits', 'features']" in refusal(make_bundle("echo", reader))


def test_two_versions_of_a_domain_are_refused(put):
    nodes = [
        helper.make_node("Gelu", ["input"], ["x"], domain="com.microsoft"),
        helper.make_node("Flatten", ["x"], ["logits"]),
    ]
    one, two = (model(nodes, domains=[("com.microsoft", version)]) for version in (1, 2))
    message = refusal(put(one, two))
    assert (
        "model1.onnx: has operators of com.microsoft in version 2, an earlier stage in version 1"
        in message
    )


def test_a_damaged_model_is_refused(put):
    folder = put(model([flatten()]))
    (folder / "model0.onnx").write_bytes(b"")
    described = json.loads((folder / "cascade.json").read_text())
    described["stages"][1]["forms"]["fp32"]["sha256"] = hashlib.sha256(b"").hexdigest()
    (folder / "cascade.json").write_text(json.dumps(described))
    assert "model0.onnx" in refusal(folder)
