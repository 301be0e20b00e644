"""FP16 by casting: what becomes half, what stays, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import EngineError
from engines.half import LARGEST, Extremes, emulated, extremes_of, to_half, unsafe_nodes
from tests.engines.form_graphs import (
    activations,
    images,
    model,
    named,
    node,
    operators,
    overflowing,
    residual_network,
    run,
    scalar,
)

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def measured(made: onnx.ModelProto, x: np.ndarray) -> dict[str, Extremes]:
    return {name: extremes_of(value) for name, value in activations(made, x).items()}


def weight_types(made: onnx.ModelProto) -> dict[str, int]:
    return {item.name: item.data_type for item in made.graph.initializer}


def test_all_weights_become_half_and_inputs_and_outputs_stay_float() -> None:
    network = residual_network()
    half = to_half(network)
    assert set(weight_types(half).values()) == {TensorProto.FLOAT16}
    for side in (half.graph.input, half.graph.output):
        assert side[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert operators(half) == ["Cast", *operators(network), "Cast"]
    x = images(7)
    # Half has 11 significant bits; a handful of roundings of values around 5.
    np.testing.assert_allclose(run(half, x), run(network, x), atol=0.02)


def test_the_model_that_is_cast_is_left_alone() -> None:
    network = residual_network()
    before = network.SerializeToString()
    to_half(network, keep={"node_s"})
    assert network.SerializeToString() == before


def test_overflow_on_data_keeps_the_writer_and_all_readers() -> None:
    network = overflowing()
    unsafe = unsafe_nodes(network, measured(network, X))
    assert set(unsafe) == {"node_a", "node_b", "node_c", "node_d"}
    assert unsafe["node_b"] == "b reaches 7e+05, FP16 ends at 65,504"


def test_no_value_passes_through_half_between_kept_nodes() -> None:
    network = overflowing()
    half = to_half(network, keep=unsafe_nodes(network, measured(network, X)))
    np.testing.assert_allclose(run(half, X), 2 * X, rtol=1e-3)
    casts = [item for item in half.graph.node if item.op_type == "Cast"]
    assert [item.input[0] for item in casts] == ["c", "d", "y.fp16"]


def test_only_what_data_show_is_kept() -> None:
    network = overflowing(large=100.0)
    assert unsafe_nodes(network, measured(network, X)) == {}
    np.testing.assert_allclose(run(to_half(network), X), 2 * X, rtol=2e-3)


def test_a_weight_beyond_half_is_found_without_data_and_refused() -> None:
    network = overflowing()
    assert "large reaches 1e+05" in unsafe_nodes(network, {})["node_a"]
    with pytest.raises(EngineError, match=r"node node_a \(Mul\): weight large reaches 1e\+05"):
        to_half(network)


def test_an_underflowing_tensor_keeps_its_nodes() -> None:
    network = model(
        [node("Mul", "x tiny", "a"), node("Mul", "a huge", "y")],
        {"tiny": scalar(1e-3), "huge": scalar(1e4)},
    )
    x = X / 16384  # from the smallest normal number on, so that only "a" underflows
    found = unsafe_nodes(network, measured(network, x))
    assert set(found) == {"node_a", "node_y"} and "underflows: 100%" in found["node_a"]
    expected = run(network, x)
    assert np.abs(run(emulated(to_half(network)), x) - expected).max() > expected.max() / 100
    kept = emulated(to_half(network, keep=found))
    np.testing.assert_array_equal(run(kept, x), expected)


def test_few_small_values_among_others_are_no_underflow() -> None:
    assert extremes_of(np.array([1e-6, 1.0, 2.0])).problem() is None
    assert extremes_of(np.array([0.0, 0.0])).problem() is None
    assert extremes_of(np.array([LARGEST, -np.inf])).problem() is None
    assert extremes_of(np.array([1.0, -1e5])).problem() == "reaches 1e+05, FP16 ends at 65,504"


def test_a_weight_of_a_kept_and_of_a_cast_node_exists_twice() -> None:
    network = model(
        [node("Mul", "x w", "a"), node("Add", "a w", "y")], {"w": np.full(4, 0.1, np.float32)}
    )
    half = to_half(network, keep={"node_a"})
    assert weight_types(half) == {"w": TensorProto.FLOAT, "w.fp16": TensorProto.FLOAT16}
    np.testing.assert_allclose(run(half, X), run(network, X), atol=1e-2)


def test_inputs_that_an_operator_defines_as_float_stay_float() -> None:
    network = model(
        [node("Resize", "x - scales", "y", mode="nearest")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        shape=("n", 1, 2, 3),
        outputs={"y": ("n", 1, 4, 6)},
    )
    half = to_half(network)
    assert weight_types(half) == {"scales": TensorProto.FLOAT}
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(run(half, x), run(network, x))


def test_operators_without_half_stay_in_fp32() -> None:
    weights = {"scale": np.array(0.5, np.float32), "zero": np.array(0, np.int8)}
    network = model(
        [
            node("Add", "x x", "a"),
            node("QuantizeLinear", "a scale zero", "q"),
            node("DequantizeLinear", "q scale zero", "d"),
            node("Mul", "d d", "y"),
        ],
        weights,
    )
    half = to_half(network)
    assert operators(half) == [
        "Cast", "Add", "Cast", "QuantizeLinear", "DequantizeLinear", "Cast", "Mul", "Cast",
    ]  # fmt: skip
    assert weight_types(half)["scale"] == TensorProto.FLOAT
    np.testing.assert_array_equal(run(half, X), run(network, X))


def test_an_unknown_operator_stays_in_fp32() -> None:
    gelu = helper.make_node("Gelu", ["x"], ["a"], name="gelu", domain="com.microsoft")
    network = model([node("Relu", "x", "y")], {})
    network.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    network.graph.node.insert(0, gelu)
    network.graph.node[1].input[0] = "a"
    network.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4]))
    half = to_half(network)
    assert operators(half) == ["Gelu", "Cast", "Relu", "Cast"]


def test_casts_of_the_model_give_half_instead_of_float() -> None:
    network = model(
        [
            node("Cast", "x", "whole", to=TensorProto.INT32),
            node("Cast", "whole", "back", to=TensorProto.FLOAT),
            node("Add", "back x", "y"),
        ],
        {},
    )
    half = to_half(network)
    assert [item.attribute[0].i for item in half.graph.node if item.op_type == "Cast"] == [
        TensorProto.INT32, TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT,
    ]  # fmt: skip
    np.testing.assert_array_equal(run(half, X), run(network, X))


def test_an_output_that_is_also_read_inside_is_float_outside_and_half_inside() -> None:
    network = model(
        [node("Add", "x x", "features"), node("Mul", "features features", "y")],
        {},
        outputs={"features": ("n", 4), "y": ("n", 4)},
    )
    half = to_half(network)
    assert named(half, "node_y").input[0] == "features.fp16"
    np.testing.assert_array_equal(run(half, X), 2 * X)


def test_a_constant_node_is_cast_like_a_weight() -> None:
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5])
    network = model([node("Constant", "", "half", value=value), node("Mul", "x half", "y")], {})
    half = to_half(network)
    assert weight_types(half) == {"half.fp16": TensorProto.FLOAT16}
    np.testing.assert_array_equal(run(half, X), X / 2)


def test_a_node_that_reads_no_float_gives_what_it_gave() -> None:
    network = model(
        [node("Shape", "x", "size"), node("ConstantOfShape", "size", "zeros"),
         node("Add", "x zeros", "y")],
        {},
    )  # fmt: skip
    half = to_half(network)
    assert operators(half) == ["Cast", "Shape", "ConstantOfShape", "Cast", "Add", "Cast"]
    np.testing.assert_array_equal(run(half, X), X)


def test_a_graph_inside_a_node_stays_in_fp32_and_reads_what_it_read() -> None:
    def branch(kind: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(kind, TensorProto.FLOAT, ["n", 4])
        return helper.make_graph([node(kind, "doubled x", kind)], kind, [], [out])

    network = model(
        [
            node("Add", "x x", "doubled"),
            node("ReduceSum", "doubled", "total", keepdims=0),
            node("Greater", "total limit", "large"),
            node("If", "large", "z", then_branch=branch("Add"), else_branch=branch("Sub")),
            node("Neg", "z", "y"),
        ],
        {"limit": np.array(5, np.float32)},
    )
    half = to_half(network)
    for x in (X, X - 7):
        np.testing.assert_array_equal(run(half, x), run(network, x))


def test_names_that_are_taken_are_not_used_again() -> None:
    network = model(
        [node("Add", "x x", "x.fp16"), node("Mul", "x.fp16 x", "y")],
        {},
    )
    np.testing.assert_array_equal(run(to_half(network), X), 2 * X * X)


def test_emulation_rounds_between_nodes() -> None:
    network = model([node("Add", "x one", "a"), node("Sub", "a one", "y")], {"one": scalar(1)})
    x = np.array([[1e-4, 0.5, 2049.0, 3.0]], np.float32)
    # Between 1 and 2 half has steps of 2**-10, from 2048 on of 2; halfway goes to the even one.
    np.testing.assert_array_equal(run(emulated(to_half(network)), x), [[0, 0.5, 2047, 3]])


def test_emulation_shows_an_overflow() -> None:
    network = overflowing(large=6e4)
    half = emulated(to_half(network))
    assert np.isinf(run(half, X)).any()
    kept = to_half(network, keep=unsafe_nodes(network, measured(network, X)))
    np.testing.assert_allclose(run(emulated(kept), X), 2 * X, rtol=1e-3)
