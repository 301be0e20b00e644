import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from engines.errors import EngineError, UnsupportedModel
from engines.onnx_model import load_model, main, report
from runtime import cli

MODELS = Path(__file__).parent.parent / "models"
FASHION = Path(__file__).parent.parent.parent / "zoo" / "fashion" / "models"


def build(*nodes, shape=("n", 4), output=("n", "k"), constants=(), opsets=(("", 17),)):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*item) for item in opsets])


def external(tmp_path, *, location="weights.bin", **entries):
    """Write a product with a 4 x 3 weight that lies in another file; return the model's path."""
    folder = tmp_path / "model"
    folder.mkdir()
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    model = build(
        helper.make_node("MatMul", ["x", "w"], ["y"], name="mm"), constants=[("w", weight)]
    )
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {
        "location": location.format(folder=folder),
        "offset": "4",
        "length": "48",
        **entries,
    }.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "weights.bin").write_bytes(bytes(4) + weight.tobytes())
    (tmp_path / "outside.bin").write_bytes(bytes(4) + weight.tobytes())
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def refusal(tmp_path):
    """Return the message with which content, or a model, is refused."""

    def message(content):
        path = tmp_path / "model.onnx"
        if not isinstance(content, bytes):
            content = content.SerializeToString()
        path.write_bytes(content)
        with pytest.raises(UnsupportedModel) as caught:
            load_model(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return message


def test_a_model_is_described():
    model = load_model(FASHION / "tiny.onnx")
    assert [str(item) for item in model.inputs] == ["input: float32 [n, 1, 28, 28]"]
    assert [str(item) for item in model.outputs] == ["logits: float32 [n, 10]"]
    assert (model.opset, model.macs, model.is_dynamic) == (17, 215_168, True)
    assert dict(model.operators) == {"Conv": 3, "Relu": 3, "ReduceMean": 1, "Gemm": 1}
    assert "215,168 for one sample" in report(model)


def test_parameters_are_those_of_the_weights():
    model = load_model(FASHION / "large.onnx")
    tensors = onnx.load(FASHION / "large.onnx").graph.initializer
    assert model.parameters == sum(numpy_helper.to_array(item).size for item in tensors)


def test_an_empty_file_is_refused(refusal):
    assert "the file is empty" in refusal(b"")


@pytest.mark.parametrize(
    "content",
    [b"garbage, but a whole line of it\n", bytes(1000), np.random.default_rng(0).bytes(5000)],
    ids=["text", "zeros", "random"],
)
def test_garbage_is_refused(refusal, content):
    assert "not an ONNX model" in refusal(content)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = (MODELS / "features.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UnsupportedModel):
            load_model(path)


def test_changed_bytes_never_give_another_kind_of_error(tmp_path):
    """A file that is still whole ONNX may pass; every other is refused with our own error."""
    rng = np.random.default_rng(5)
    whole = np.frombuffer((MODELS / "rows.onnx").read_bytes(), np.uint8)
    path, refused = tmp_path / "model.onnx", 0
    for _ in range(500):
        changed = whole.copy()
        places = rng.integers(0, len(whole), rng.integers(1, 6))
        changed[places] = rng.integers(0, 256, len(places))
        path.write_bytes(changed.tobytes())
        try:
            load_model(path)
        except UnsupportedModel:
            refused += 1
    assert refused > 250


@pytest.mark.parametrize(
    ("start", "named"),
    [
        (b"PK\x03\x04", "torch.save"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"vtrt", "TensorRT-RTX plan"),
    ],
)
def test_files_of_another_kind_are_named(refusal, start, named):
    assert named in refusal(start + bytes(50))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="not found"):
        load_model(tmp_path / "absent.onnx")
    with pytest.raises(UnsupportedModel, match="cannot be read: Is a directory"):
        load_model(tmp_path)


def test_a_graph_without_outputs_is_refused(refusal):
    model = build(helper.make_node("Relu", ["x"], ["y"]))
    del model.graph.output[:]
    assert "the graph has no outputs" in refusal(model)


def test_an_unknown_operator_is_named_with_its_node(refusal):
    text = refusal(build(helper.make_node("FooBar", ["x"], ["y"], name="layer4/foo")))
    assert "node layer4/foo (FooBar): unknown operator" in text


def test_an_unknown_operator_inside_a_branch_is_found(refusal):
    branch = helper.make_graph(
        [helper.make_node("FooBar", ["x"], ["z"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    choose = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    assert "node inner (FooBar)" in refusal(build(choose, constants=[("yes", np.array(True))]))


def test_a_node_without_a_name_is_named_by_its_output(refusal):
    assert "(without a name, output y)" in refusal(build(helper.make_node("FooBar", ["x"], ["y"])))


def test_a_custom_operator_is_refused_by_domain(refusal):
    node = helper.make_node("Relu", ["x"], ["y"], name="mine", domain="my.own")
    text = refusal(build(node, opsets=(("", 17), ("my.own", 1))))
    assert "node mine (Relu)" in text and "'my.own'" in text


def test_an_operator_that_a_later_opset_brought_is_refused(refusal):
    node = helper.make_node("Gelu", ["x"], ["y"], name="act")
    assert "node act (Gelu): the operator is not in opset 17" in refusal(build(node))


def test_an_opset_from_the_future_is_refused(refusal):
    node = helper.make_node("Relu", ["x"], ["y"])
    assert "opset 999" in refusal(build(node, opsets=(("", 999),)))


def test_operators_of_onnx_runtime_pass_with_a_note(tmp_path):
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    path = tmp_path / "model.onnx"
    path.write_bytes(build(node, opsets=(("", 17), ("com.microsoft", 1))).SerializeToString())
    model = load_model(path)
    assert any("only ONNX Runtime has com.microsoft.Gelu" in note for note in model.notes)


def test_shapes_that_clash_are_named_with_their_node(refusal):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    text = refusal(build(node, constants=[("w", np.zeros((3, 4), np.float32))]))
    assert "shapes do not fit together: node mm (MatMul)" in text


def test_what_the_format_forbids_is_refused(refusal):
    node = helper.make_node("Relu", ["x"], ["y"])
    assert "not valid ONNX" in refusal(build(node, node))


def test_an_opset_too_new_for_old_tensorrt_is_noted(tmp_path):
    path = tmp_path / "model.onnx"
    model = build(helper.make_node("Relu", ["x"], ["y"]), opsets=(("", 18),))
    path.write_bytes(model.SerializeToString())
    assert load_model(path).notes == ("opset 18: TensorRT 8.6 reads up to 17",)


def test_external_weights_are_listed_and_counted(tmp_path):
    model = load_model(external(tmp_path))
    assert model.external_data == ("weights.bin",)
    assert (model.parameters, model.macs) == (12, 12)


@pytest.mark.parametrize(
    "location",
    [
        "../outside.bin",
        "{folder}/weights.bin",
        "../model/weights.bin",
        "..\\outside.bin",
        "",
        "a\0b",
    ],
)
def test_external_weights_outside_the_folder_are_refused(tmp_path, location):
    with pytest.raises(UnsupportedModel, match=r"outside the model's folder"):
        load_model(external(tmp_path, location=location))


def test_external_weights_behind_a_link_that_leaves_are_refused(tmp_path):
    path = external(tmp_path)
    path.with_name("weights.bin").unlink()
    path.with_name("weights.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(UnsupportedModel, match="outside the model's folder"):
        load_model(path)


def test_missing_and_truncated_external_weights_are_refused(tmp_path):
    path = external(tmp_path)
    weights = path.with_name("weights.bin")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UnsupportedModel, match=r"cut short: weights 'w' .* end at byte 52"):
        load_model(path)
    weights.unlink()
    with pytest.raises(UnsupportedModel, match=r"weights.bin: not found, but model.onnx keeps"):
        load_model(path)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [({"length": "44"}, "expected 48 bytes"), ({"offset": "-4"}, "offset: expected a number")],
)
def test_external_weights_of_another_extent_are_refused(tmp_path, entries, expected):
    with pytest.raises(UnsupportedModel, match=expected):
        load_model(external(tmp_path, **entries))


def test_the_errors_are_errors_of_engines(tmp_path):
    with pytest.raises(EngineError):
        load_model(tmp_path / "absent.onnx")


def test_the_command_prints_a_report_of_each_file():
    result = CliRunner().invoke(main, [str(FASHION / "tiny.onnx"), str(MODELS / "fixed.onnx")])
    assert result.exit_code == 0, result.output
    assert "MACs        215,168 for one sample" in result.output
    assert "batch       fixed at 1; python -m engines.bundle makes it dynamic" in result.output


def test_one_bad_file_of_several_is_refused_and_the_rest_shown(tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.touch()
    result = CliRunner().invoke(main, ["--json", str(bad), str(MODELS / "echo.onnx")])
    assert result.exit_code == 1
    good, refused = json.loads(result.stdout)
    assert good["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["n", 1, 2, 2]}]
    assert "the file is empty" in refused["error"]
    assert "the file is empty" in result.stderr


@pytest.mark.parametrize("size", ["0", "axb", "1x2x3", "-3"])
def test_a_size_that_is_none_is_a_usage_error(size):
    result = CliRunner().invoke(main, [str(MODELS / "echo.onnx"), "--size", size])
    assert result.exit_code == 2
    assert "expected HEIGHTxWIDTH" in result.output


@pytest.mark.parametrize("command", [main, cli.main])
def test_without_onnx_its_extra_is_named(monkeypatch, command):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "engines.description", raising=False)
    arguments = [str(MODELS / "echo.onnx")]
    result = CliRunner().invoke(command, arguments if command is main else ["inspect", *arguments])
    assert result.exit_code == 1
    assert "pip install 'tinysaver-runtime[onnx]'" in result.output


def test_help_needs_no_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "Example:" in CliRunner().invoke(main, ["--help"]).output


def test_a_model_beside_its_weights_can_be_copied(tmp_path):
    path = external(tmp_path)
    copy = shutil.copytree(path.parent, tmp_path / "copy") / path.name
    assert load_model(copy).macs == load_model(path).macs
