"""The model that forms are made from: what is simplified, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.errors import EngineError, UnsupportedModel
from engines.half import to_half
from engines.preparation import NEWEST_OPSET, OLDEST_OPSET, prepare
from tests.engines.form_graphs import (
    images,
    model,
    node,
    operators,
    residual_network,
    run,
    scalar,
)

WIDE = ("n", 2, 4, 4)


def saved(tmp_path: Path, made: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_a_batch_normalisation_is_folded_into_its_convolution(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((3, 2, 1, 1)).astype(np.float32)}
    weights |= {name: rng.random(3).astype(np.float32) + 0.5 for name in "sbmv"}
    network = model(
        [node("Conv", "x w", "c"), node("BatchNormalization", "c s b m v", "y")],
        weights, shape=WIDE, outputs={"y": ("n", 3, 4, 4)},
    )  # fmt: skip
    ready = prepare(saved(tmp_path, network))
    assert operators(ready) == ["Conv"]
    x = rng.standard_normal((3, 2, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(ready, x), run(network, x), atol=1e-5)


def test_only_the_domains_in_use_are_named(tmp_path: Path) -> None:
    ready = prepare(saved(tmp_path, residual_network()))
    assert [item.domain for item in ready.opset_import] == [""]


def test_every_node_has_a_name_of_its_own(tmp_path: Path) -> None:
    network = model([node("Add", "x x", "a"), node("Mul", "a x", "b"), node("Sub", "b x", "y")], {})
    for item, name in zip(network.graph.node, ("", "same", "same"), strict=True):
        item.name = name
    names = [item.name for item in prepare(saved(tmp_path, network)).graph.node]
    assert len(set(names)) == 3 and "same" in names and all(names)


@pytest.mark.parametrize(("given", "wanted"), [(11, OLDEST_OPSET), (15, 15), (20, NEWEST_OPSET)])
def test_the_opset_is_one_that_tensorrt_8_reads(tmp_path: Path, given: int, wanted: int) -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "y")]
    weights = {"w": np.ones((1, 1, 3, 3), np.float32)}
    shape, out = ("n", 1, 6, 6), {"y": ("n", 1, 4, 4)}
    network = model(nodes, weights, shape=shape, outputs=out, opset=given)
    ready = prepare(saved(tmp_path, network))
    assert ready.opset_import[0].version == wanted
    np.testing.assert_allclose(run(ready, images(2)), run(network, images(2)), atol=1e-5)


def test_an_opset_that_cannot_be_converted_stays(tmp_path: Path) -> None:
    network = model([node("Gelu", "x", "y")], {}, opset=20)
    assert prepare(saved(tmp_path, network)).opset_import[0].version == 20


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        residual_network(), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    expected = run(residual_network(), images(3))
    np.testing.assert_array_equal(run(prepare(path), images(3)), expected)


def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    network = model([node("Relu", "x", "y")], {})
    network.graph.node[0].op_type = "FooBar"
    with pytest.raises(UnsupportedModel, match=r"node node_y \(FooBar\): unknown operator"):
        prepare(saved(tmp_path, network))


@pytest.mark.parametrize("content", [b"", b"garbage " * 9])
def test_empty_and_garbage_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"model\.onnx"):
        prepare(path)


def test_what_onnx_runtime_cannot_run_is_refused(tmp_path: Path) -> None:
    network = model([node("Add", "x w", "y")], {"w": np.ones(4, np.float32)})
    network.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "w"))
    with pytest.raises(EngineError, match=r"model\.onnx: .*ONNX Runtime"):
        prepare(saved(tmp_path, network))


def test_a_model_that_was_cast_or_quantised_is_refused(tmp_path: Path) -> None:
    half = to_half(model([node("Add", "x one", "y")], {"one": scalar(1)}))
    with pytest.raises(EngineError, match="16-bit weights already"):
        prepare(saved(tmp_path, half))
    network = model([node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
                    {"s": np.array(1, np.float32), "z": np.array(0, np.int8)})  # fmt: skip
    with pytest.raises(EngineError, match=r"node node_q \(QuantizeLinear\): .*quantised already"):
        prepare(saved(tmp_path, network))


def test_operators_of_onnx_runtime_are_left_in_place(tmp_path: Path) -> None:
    network = model([node("Relu", "x", "y")], {})
    network.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    network.graph.node[0].op_type, network.graph.node[0].domain = "Gelu", "com.microsoft"
    ready = prepare(saved(tmp_path, network))
    assert operators(ready) == ["Gelu"]
    assert {item.domain for item in ready.opset_import} == {"", "com.microsoft"}
