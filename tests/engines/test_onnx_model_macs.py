"""Multiply-accumulates against numbers that a reader can work out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.macs import count_macs
from engines.onnx_file import read_onnx
from engines.onnx_model import load_model

FASHION = Path(__file__).parent.parent.parent / "zoo" / "fashion" / "models"


def build(*nodes, constants, inputs, opsets=(("", 17),)):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(s, d), n) for n, (s, d) in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*item) for item in opsets])


def numbers(name, values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def macs(node, *, constants=None, **inputs):
    constants = {name: (shape, np.float32) for name, shape in (constants or {}).items()}
    return count_macs(build(node, constants=constants, inputs=inputs), inputs)


@pytest.mark.parametrize("name", ["tiny", "middle", "large"])
def test_counts_of_the_demo_models_are_those_of_their_cards(name):
    card = json.loads((FASHION / f"{name}.json").read_text())
    assert load_model(FASHION / card["file"]).macs == card["macs"]


def test_a_convolution_counts_kernel_times_channels_per_output():
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])
    found = macs(node, x=(1, 3, 7, 5), constants={"w": (8, 3, 3, 3)})
    assert found.total == (8 * 4 * 3) * (3 * 3 * 3)


def test_groups_divide_the_channels_of_a_convolution():
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=6, pads=[1, 1, 1, 1])
    assert macs(node, x=(1, 6, 5, 5), constants={"w": (6, 1, 3, 3)}).total == 6 * 25 * 9


def test_a_transposed_convolution_counts_its_inputs():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    assert macs(node, x=(1, 4, 3, 5), constants={"w": (4, 2, 2, 2)}).total == (4 * 15) * (2 * 4)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_counts_the_inner_size(transposed):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=transposed)
    shape = (7, 2) if transposed else (2, 7)
    assert macs(node, x=shape, constants={"w": (7, 5)}).total == 2 * 7 * 5


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [((2, 3, 4), (4, 5), 2 * 3 * 4 * 5), ((4,), (4, 5), 20), ((2, 1, 3, 4), (6, 4, 5), 720)],
)
def test_a_matrix_product_counts_all_its_batches(left, right, expected):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert macs(node, x=left, constants={"w": right}).total == expected


def test_quantised_forms_count_the_same():
    q = helper.make_node(
        "QLinearConv", ["x", "s", "z", "w", "s", "zw", "s", "z"], ["y"], pads=[1, 1, 1, 1]
    )
    constants = {
        "s": ((), np.float32),
        "z": ((), np.uint8),
        "zw": ((), np.int8),
        "w": ((8, 3, 3, 3), np.int8),
    }
    model = build(q, constants=constants, inputs={"x": (1, 3, 7, 5)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert count_macs(model, {"x": (1, 3, 7, 5)}).total == (8 * 7 * 5) * 27


def test_weights_behind_dequantisation_count_the_same():
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    constants = {"q": ((8, 3, 1, 1), np.int8), "s": ((), np.float32)}
    model = build(*nodes, constants=constants, inputs={"x": (1, 3, 4, 4)})
    assert count_macs(model, {"x": (1, 3, 4, 4)}).total == 8 * 16 * 3


def test_what_multiplies_but_is_not_counted_is_listed():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Einsum", ["z", "z"], ["e"], equation="ij,ij->ij"),
        helper.make_node("Gelu", ["e"], ["y"], domain="com.microsoft"),
    ]
    model = build(
        *nodes,
        constants={"w": ((4, 4), np.float32)},
        inputs={"x": (1, 4)},
        opsets=(("", 17), ("com.microsoft", 1)),
    )
    found = count_macs(model, {"x": (1, 4)})
    assert (found.total, dict(found.uncounted)) == (16, {"Einsum": 1, "Gelu": 1})


def test_functions_of_the_model_are_looked_into():
    body = helper.make_node("MatMul", ["a", "b"], ["c"])
    function = helper.make_function(
        "mine", "Layer", ["a", "b"], ["c"], [body], [helper.make_opsetid("", 17)]
    )
    node = helper.make_node("Layer", ["x", "w"], ["y"], domain="mine")
    model = build(
        node,
        constants={"w": ((4, 5), np.float32)},
        inputs={"x": (1, 4)},
        opsets=(("", 17), ("mine", 1)),
    )
    model.functions.append(function)
    assert count_macs(model, {"x": (1, 4)}).total == 20


def conv_of_any_size(tmp_path, batch="n"):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="stem", pads=[1, 1, 1, 1])
    model = build(
        node, constants={"w": ((8, 3, 3, 3), np.float32)}, inputs={"x": (batch, 3, "h", "w")}
    )
    shape = helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, 8, "h", "w"))
    model.graph.output[0].CopyFrom(shape)
    path = tmp_path / "any.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_dynamic_size_gives_no_count_until_it_is_given(tmp_path):
    path = conv_of_any_size(tmp_path)
    model = load_model(path)
    assert model.macs is None
    assert "node stem (Conv)" in (model.macs_note or "")
    assert load_model(path, size=(10, 6)).macs == 60 * 8 * 27


def test_a_fixed_batch_is_divided_out(tmp_path):
    assert load_model(conv_of_any_size(tmp_path, batch=4), size=(10, 6)).macs == 60 * 8 * 27


def test_shapes_that_the_graph_computes_are_followed():
    """Flatten as exporters write it: the batch is read from the tensor's own shape."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "zeros"], ["first"]),
        helper.make_node("Concat", ["first", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    model = build(*nodes, constants={"w": ((12, 5), np.float32)}, inputs={"x": ("n", 3, 2, 2)})
    for name, value in {"zero": 0, "zeros": [0], "rest": [-1]}.items():
        model.graph.initializer.append(numbers(name, value))
    assert count_macs(model, {"x": (1, 3, 2, 2)}).total == 60


def test_shapes_that_only_folding_tells_are_followed():
    """As an attention layer that was traced: slices, products and choices of sizes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zeros", "ones"], ["batch"]),
        helper.make_node("Slice", ["shape", "ones", "fours"], ["rest"]),
        helper.make_node("ReduceProd", ["rest"], ["pixels"], keepdims=1),
        helper.make_node("Div", ["pixels", "fours"], ["quarter"]),
        helper.make_node("Equal", ["quarter", "zeros"], ["none"]),
        helper.make_node("Where", ["none", "ones", "quarter"], ["wide"]),
        helper.make_node("Concat", ["batch", "fours", "wide"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["heads"]),
        helper.make_node("MatMul", ["heads", "w"], ["y"]),
    ]
    model = build(*nodes, constants={"w": ((3, 5), np.float32)}, inputs={"x": ("n", 3, 2, 2)})
    for name, value in {"zeros": 0, "ones": 1, "fours": 4}.items():
        model.graph.initializer.append(numbers(name, [value]))
    assert count_macs(model, {"x": (1, 3, 2, 2)}).total == 4 * 3 * 5
    assert count_macs(model, {"x": (7, 3, 2, 2)}).total == 7 * 4 * 3 * 5


def test_padding_that_the_graph_computes_from_constants_is_followed():
    """As torch writes F.pad: pairs from the last axis on, filled up, turned round, transposed."""
    nodes = [
        helper.make_node("ConstantOfShape", ["missing"], ["zeros"], value=numbers("value", [0])),
        helper.make_node("Concat", ["given", "zeros"], ["all"], axis=0),
        helper.make_node("Reshape", ["all", "pairs"], ["table"]),
        helper.make_node("Slice", ["table", "last", "first", "axis", "back"], ["turned"]),
        helper.make_node("Transpose", ["turned"], ["columns"], perm=[1, 0]),
        helper.make_node("Reshape", ["columns", "flat"], ["pads"]),
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "w"], ["y"]),
    ]
    model = build(*nodes, constants={"w": ((8, 3, 3, 3), np.float32)}, inputs={"x": (1, 3, 4, 4)})
    values = {"missing": [4], "given": [0, 1, 0, 1], "pairs": [-1, 2], "flat": [-1]}
    values |= {"last": [-1], "first": [-(2**62)], "axis": [0], "back": [-1]}
    for name, value in values.items():
        model.graph.initializer.append(numbers(name, value))
    assert count_macs(model, {"x": (1, 3, 4, 4)}).total == 9 * 8 * 27


def test_arithmetic_of_shapes_that_contradicts_itself_is_left_to_inference():
    nodes = [
        helper.make_node("Gather", ["sizes", "far"], ["size"], name="far"),
        helper.make_node("Reshape", ["x", "size"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    model = build(*nodes, constants={"w": ((4, 5), np.float32)}, inputs={"x": (1, 4)})
    for name, value in {"sizes": [1, 4], "far": [9]}.items():
        model.graph.initializer.append(numbers(name, value))
    found = count_macs(model, {"x": (1, 4)})
    assert found.total is None


def test_the_count_needs_no_weights(tmp_path):
    """Weights take part as shapes, so that a large model is described without copying it."""
    proto = read_onnx(FASHION / "large.onnx").proto
    for tensor in proto.graph.initializer:
        if np.prod(tensor.dims) > 1024:
            tensor.ClearField("raw_data")
    assert count_macs(proto, {"input": (1, 1, 28, 28)}).total == 53_458_688
