"""INT8 forms: what each engine's parser wants of them, and how near they come to FP32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from engines.errors import EngineError
from engines.half import emulated
from engines.quantise import (
    HOST_OPERATORS,
    TRT_OPERATORS,
    quantise_host,
    quantise_trt,
    quantised_nodes,
)
from tests.engines.form_graphs import (
    extents,
    images,
    model,
    named,
    node,
    operators,
    residual_network,
    run,
)

X = images(64)


@pytest.fixture
def network() -> onnx.ModelProto:
    return residual_network()


@pytest.fixture
def ranges(network: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    return extents(network, X)


def zero_points(made: onnx.ModelProto) -> dict[str, np.ndarray]:
    weights = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    return {item.name: weights[item.input[2]] for item in made.graph.node if _is_pair(item)}


def _is_pair(item: onnx.NodeProto) -> bool:
    return item.op_type in ("QuantizeLinear", "DequantizeLinear")


def biases(made: onnx.ModelProto) -> list[onnx.NodeProto | None]:
    producers = {name: item for item in made.graph.node for name in item.output}
    return [producers.get(i.input[2]) for i in made.graph.node if i.op_type == "Conv"]


def error(made: onnx.ModelProto, network: onnx.ModelProto) -> float:
    expected = run(network, X)
    return float(np.abs(run(made, X) - expected).max() / np.abs(expected).max())


def test_host_form_has_unsigned_activations_and_an_integer_bias(network, ranges) -> None:
    made = quantise_host(network, ranges)
    points = zero_points(made)
    assert {
        points[name].dtype for name in points if "QuantizeLinear" in name and "De" not in name
    } == {np.dtype(np.uint8)}
    assert points["x_QuantizeLinear"] > 0
    assert all(bias is not None and bias.op_type == "DequantizeLinear" for bias in biases(made))
    assert error(made, network) < 0.03


def test_trt_form_is_signed_and_symmetric_with_a_float_bias(network, ranges) -> None:
    made = quantise_trt(network, ranges)
    for point in zero_points(made).values():
        assert point.dtype == np.int8 and not point.any()
    assert biases(made) == [None, None]
    types = {item.name: item.data_type for item in made.graph.initializer}
    assert TensorProto.INT32 not in types.values()
    assert made.opset_import[0].version == 17
    assert error(emulated(made), network) < 0.03


@pytest.mark.parametrize("form", [quantise_host, quantise_trt])
def test_weights_are_quantised_by_channel(network, ranges, form) -> None:
    made = form(network, ranges)
    weights = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    readers = {item.input[0]: item for item in made.graph.node}
    scales = [weights[readers[f"{name}_quantized"].input[1]] for name in ("w1", "w2")]
    assert [scale.shape for scale in scales] == [(5,), (5,)]


def test_seven_bits_stay_within_64(network, ranges) -> None:
    def largest(bits: int) -> int:
        made = quantise_host(network, ranges, weight_bits=bits)
        weights = [numpy_helper.to_array(item) for item in made.graph.initializer]
        return max(int(np.abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8)

    assert (largest(7), largest(8)) == (64, 127)


@pytest.mark.parametrize("form", [quantise_host, quantise_trt])
def test_logits_are_not_rounded_to_integers(network, ranges, form) -> None:
    made = form(network, ranges)
    (last,) = [item for item in made.graph.node if "y" in item.output]
    assert last.op_type in ("Gemm", "Cast")
    assert len(np.unique(run(made, X)[:, 0])) > 48


def test_in_trt_form_nothing_stands_between_a_convolution_and_its_activation(
    network, ranges
) -> None:
    made = quantise_trt(network, ranges)
    kinds = operators(made)
    for place, kind in enumerate(kinds):
        if kind == "Conv":
            assert kinds[place + 1 : place + 3] == ["Relu", "QuantizeLinear"]


def test_in_trt_form_only_what_is_not_integer_is_half(network, ranges) -> None:
    made = onnx.shape_inference.infer_shapes(quantise_trt(network, ranges))
    kinds = {i.name: i.type.tensor_type.elem_type for i in made.graph.value_info}
    half = {i.op_type for i in made.graph.node
            if i.op_type != "Cast" and kinds.get(i.output[0]) == TensorProto.FLOAT16}  # fmt: skip
    assert half == {"ReduceMax", "Gemm"}
    casts = [i for i in made.graph.node if i.op_type == "Cast"]
    assert len(casts) == 2
    w3 = {item.name: item.data_type for item in made.graph.initializer}
    assert w3["w3.fp16"] == TensorProto.FLOAT16


def test_an_inner_matrix_product_is_quantised_in_half_the_last_one_is_not() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((4, 4)).astype(np.float32) for name in ("v", "w")}
    network = model([node("MatMul", "x v", "a"), node("Relu", "a", "b"), node("MatMul", "b w", "c"),
                     node("Softmax", "c", "y")], weights)  # fmt: skip
    x = rng.standard_normal((32, 4)).astype(np.float32)
    made = quantise_trt(network, extents(network, x))
    kinds = {item.name: item.data_type for item in made.graph.initializer}
    assert kinds["w.fp16"] == TensorProto.FLOAT16 and kinds["v_quantized"] == TensorProto.INT8
    assert named(made, "node_a").input[0].endswith(".fp16")
    np.testing.assert_allclose(run(made, x), run(network, x), atol=0.05)


@pytest.mark.parametrize("form", [quantise_host, quantise_trt])
def test_kept_nodes_are_not_quantised(network, ranges, form) -> None:
    made = form(network, ranges, keep={"node_c2"})
    names = {item.name for item in made.graph.initializer}
    assert "w2_quantized" not in names and "w1_quantized" in names
    everything = form(network, ranges, keep={item.name for item in network.graph.node})
    assert not set(operators(everything)) & {"QuantizeLinear", "DequantizeLinear"}


def test_nodes_that_half_cannot_hold_stay_in_fp32(network, ranges) -> None:
    made = quantise_trt(network, ranges, keep_full={"node_m", "node_y"})
    assert "Cast" not in operators(made)


def test_a_range_narrower_than_the_data_clips(network, ranges) -> None:
    narrow = {**ranges, "p1": (0.0, ranges["p1"][1] / 4), "r1": (0.0, ranges["r1"][1] / 4)}
    assert error(quantise_host(network, narrow), network) > error(
        quantise_host(network, ranges), network
    )


@pytest.mark.parametrize("form", [quantise_host, quantise_trt])
def test_a_missing_range_is_an_error(network, ranges, form) -> None:
    del ranges["s"]
    with pytest.raises(EngineError, match=r"ONNX Runtime .* cannot quantise the model: .*\bs\b"):
        form(network, ranges)


def test_an_old_opset_is_an_error(network, ranges) -> None:
    network.opset_import[0].version = 12
    with pytest.raises(EngineError, match="INT8 needs opset 13, the model has 12"):
        quantise_host(network, ranges)


@pytest.mark.parametrize("form", [quantise_host, quantise_trt])
def test_the_same_model_and_ranges_give_the_same_bytes(network, ranges, form) -> None:
    first = form(network, ranges).SerializeToString()
    assert form(residual_network(), ranges).SerializeToString() == first
    assert network.SerializeToString() == residual_network().SerializeToString()


def test_every_output_of_a_network_stays_float() -> None:
    network = residual_network()
    features = onnx.helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 5, 3, 3])
    network.graph.output.append(features)
    for form in (quantise_host, quantise_trt):
        made = form(network, extents(network, X))
        producers = {name: item.op_type for item in made.graph.node for name in item.output}
        assert producers["s"] in ("Add", "Cast") and producers["y"] in ("Gemm", "Cast")
        assert [item.name for item in made.graph.output] == ["y", "s"]
        run(made, X)


def test_only_nodes_that_lose_precision_can_be_kept(network) -> None:
    assert quantised_nodes(network, TRT_OPERATORS) == ["node_c1", "node_c2", "node_s", "node_y"]
    assert quantised_nodes(network, HOST_OPERATORS) == ["node_c1", "node_c2", "node_s", "node_y"]
