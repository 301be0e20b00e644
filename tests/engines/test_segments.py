"""Networks cut at the ends of their blocks: the parts in a row are the whole, weights and all."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from engines.errors import UnsupportedModel
from engines.segments import add_output, add_pooled, cut_blocks
from runtime.bundle import demo_folder

SHAPE = {"input": (1, 1, 28, 28)}
BLOCKS = {
    "tiny": [16, 16, 32],
    "middle": [16, 16, 16, 32, 64, 64],
    "large": [32, 64, 64, 128, 128, 128],
    "plain-16": [16, 32, 64],
}


def read(name):
    return onnx.load(demo_folder() / "models" / f"{name}.onnx")


def run(model, **inputs):
    session = ort.InferenceSession(model.SerializeToString())
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def images(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 1, 28, 28), np.float32)


def weights(*models):
    return {item.name: item.SerializeToString() for m in models for item in m.graph.initializer}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_end_after_activation_pooling_and_sum(name):
    assert [cut.channels for cut in cut_blocks(read(name), SHAPE).cuts] == BLOCKS[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_segments_in_a_row_are_the_whole_network(name):
    model = read(name)
    blocks, pixels = cut_blocks(model, SHAPE), images(7)
    whole, stops = run(model, input=pixels)["logits"], [*range(1, len(blocks.cuts) + 1), None]
    data = {"input": pixels}
    for start, stop in enumerate(stops):
        data = run(blocks.segment(start, stop), **data)
        assert len(data) == 1
    np.testing.assert_allclose(data["logits"], whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_segments_hold_every_weight_once_byte_for_byte(name):
    model = read(name)
    blocks = cut_blocks(model, SHAPE)
    stops = [*range(1, len(blocks.cuts) + 1), None]
    parts = [blocks.segment(start, stop) for start, stop in enumerate(stops)]
    assert weights(*parts) == weights(model)
    assert sum(len(part.graph.initializer) for part in parts) == len(model.graph.initializer)


def test_a_segment_may_hold_several_blocks():
    model, pixels = read("middle"), images(5)
    blocks = cut_blocks(model, SHAPE)
    first = run(blocks.segment(0, 4), input=pixels)
    rest = run(blocks.segment(4, None), **first)
    np.testing.assert_allclose(rest["logits"], run(model, input=pixels)["logits"], atol=1e-5)


def test_the_model_that_is_cut_stays_as_it_was():
    model = read("tiny")
    before = model.SerializeToString()
    cut_blocks(model, SHAPE).segment(1, 2)
    assert model.SerializeToString() == before


def test_a_pooled_map_is_the_mean_over_its_places():
    blocks = cut_blocks(read("tiny"), SHAPE)
    part = blocks.segment(0, 2)
    add_pooled(part, blocks.cuts[1], "pooled")
    add_output(part, "pooled", (blocks.cuts[1].channels,))
    found = run(part, input=images(3))
    np.testing.assert_allclose(found["pooled"], found["block2"].mean((2, 3)), atol=1e-6)


def graph(*nodes, shape=("n", 4, 8, 8), output=("n", 4, 8, 8)):
    filters = helper.make_tensor("w", TensorProto.FLOAT, (4, 4, 1, 1), [0.5] * 16)
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)],
            [filters],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


CONV = helper.make_node("Conv", ["input", "w"], ["a"])


def test_a_network_with_a_way_around_its_blocks_is_refused():
    around = graph(CONV, helper.make_node("Relu", ["a"], ["b"]),
                   helper.make_node("Add", ["b", "input"], ["logits"]))  # fmt: skip
    with pytest.raises(UnsupportedModel, match="all ways to the output go through"):
        cut_blocks(around, {"input": (1, 4, 8, 8)})


def test_a_network_of_tokens_is_refused():
    tokens = graph(helper.make_node("Gelu", ["input"], ["logits"]), shape=("n", 49, 64))
    with pytest.raises(UnsupportedModel, match="Networks of tokens"):
        cut_blocks(tokens, {"input": (1, 49, 64)})


def test_a_taken_name_is_refused():
    taken = graph(
        CONV,
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["block1"]),
        helper.make_node("GlobalAveragePool", ["block1"], ["logits"]),
    )
    with pytest.raises(UnsupportedModel, match="named 'block1' already"):
        cut_blocks(taken, {"input": (1, 4, 8, 8)})


def test_constants_of_a_later_part_travel_with_it():
    """A Constant node depends on nothing, so it belongs wherever it is read."""
    scale = helper.make_tensor("", TensorProto.FLOAT, (1,), [3.0])
    model = graph(
        helper.make_node("Constant", [], ["three"], value=scale),
        CONV,
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "three"], ["logits"]),
    )
    blocks = cut_blocks(model, {"input": (1, 4, 8, 8)})
    assert len(blocks.cuts) == 1
    pixels = np.random.default_rng(1).standard_normal((2, 4, 8, 8), np.float32)
    rest = run(blocks.segment(1, None), **run(blocks.segment(0, 1), input=pixels))
    np.testing.assert_array_equal(rest["logits"], run(model, input=pixels)["logits"])
