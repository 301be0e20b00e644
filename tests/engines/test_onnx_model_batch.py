"""The batch axis: what is declared, what shapes show, and what can be freed."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.batch import batch_axis, free_batch
from engines.errors import UnsupportedModel
from engines.onnx_model import load_model, report

MODELS = Path(__file__).parent.parent / "models"


def build(*nodes, batch=1, image=(3, 2, 2), constants=None, out=5):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, *image))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, out))],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def flattened(shape, *, batch=1, **attributes):
    """A classifier whose Reshape has a constant target."""
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["flat"], name="flatten", **attributes),
        helper.make_node("MatMul", ["flat", "w"], ["y"], name="head"),
    ]
    constants = {"target": np.array(shape, np.int64), "w": np.ones((12, 5), np.float32)}
    return build(*nodes, batch=batch, constants=constants)


def declared(proto):
    return [
        [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*proto.graph.input, *proto.graph.output)
    ]


def test_a_dynamic_batch_is_seen():
    assert load_model(MODELS / "echo.onnx").is_dynamic


def test_a_fixed_batch_without_an_obstacle_can_be_freed():
    axis = batch_axis(flattened([-1, 12], batch=4))
    assert (axis.fixed, axis.obstacle, axis.freeable) == (4, None, True)
    assert declared(free_batch(flattened([-1, 12], batch=4))) == [["n", 3, 2, 2], ["n", 5]]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_reshape_for_one_batch_is_named_and_freed(batch):
    proto = flattened([batch, -1], batch=batch)
    axis = batch_axis(proto)
    assert axis.obstacle == "node flatten (Reshape) gives the batch a fixed size"
    freed = free_batch(proto)
    assert batch_axis(freed).is_dynamic
    assert declared(proto)[0][0] == batch, "the given model is left as it was"


def test_a_reshape_without_a_free_place_gets_one():
    freed = free_batch(flattened([1, 12]))
    target = next(t for t in freed.graph.initializer if t.name == freed.graph.node[0].input[1])
    assert numpy_helper.to_array(target).tolist() == [-1, 12]


def test_a_constant_node_may_hold_the_shape():
    proto = flattened([1, -1])
    target = proto.graph.initializer[0]
    constant = helper.make_node("Constant", [], ["target"], value=target)
    proto.graph.node.insert(0, constant)
    del proto.graph.initializer[0]
    assert batch_axis(free_batch(proto)).is_dynamic


def test_a_shape_shared_by_two_nodes_is_changed_for_the_batch_alone():
    """The other node reshapes weights, which have no batch."""
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Reshape", ["v", "target"], ["row"]),
        helper.make_node("Add", ["flat", "row"], ["sum"]),
        helper.make_node("MatMul", ["sum", "w"], ["y"]),
    ]
    constants = {
        "target": np.array([1, -1], np.int64),
        "v": np.ones((3, 4), np.float32),
        "w": np.ones((12, 5), np.float32),
    }
    freed = free_batch(build(*nodes, constants=constants))
    assert [node.input[1] for node in freed.graph.node[:2]] != ["target", "target"]
    assert freed.graph.node[1].input[1] == "target"


def test_a_dynamic_batch_that_a_node_fixes_is_not_dynamic():
    """What exporters write that traced one shape and were told of dynamic axes."""
    axis = batch_axis(flattened([1, -1], batch="n"))
    assert axis.fixed is None and not axis.is_dynamic
    assert batch_axis(free_batch(flattened([1, -1], batch="n"))).is_dynamic


def test_a_concatenation_with_a_constant_row_is_named():
    """A class token, as vision transformers have it, folded for a batch of one."""
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["tokens"]),
        helper.make_node("Concat", ["token", "tokens"], ["all"], name="cls", axis=1),
        helper.make_node("ReduceMean", ["all"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    constants = {
        "target": np.array([1, 3, 4], np.int64),
        "token": np.zeros((1, 1, 4), np.float32),
        "w": np.ones((4, 5), np.float32),
    }
    proto = build(*nodes, constants=constants)
    with pytest.raises(UnsupportedModel, match=r"node cls \(Concat\)"):
        free_batch(proto)
    axis = batch_axis(proto)
    assert not axis.freeable
    assert "node cls (Concat)" in (axis.obstacle or "")


def test_newer_exporters_forbid_the_copying_zero_which_the_batch_needs():
    """They write allowzero=1 at every Reshape, mostly without a 0 that it would be about."""
    for shape in ([1, 12], [1, -1]):
        assert batch_axis(free_batch(flattened(shape, allowzero=1))).is_dynamic


def test_a_reshape_to_an_empty_axis_is_left_alone():
    nodes = [helper.make_node("Reshape", ["x", "target"], ["y"], name="empty", allowzero=1)]
    constants = {"target": np.array([1, 0, 5], np.int64)}
    proto = build(*nodes, image=(3, 2, 0), constants=constants)
    with pytest.raises(UnsupportedModel, match=r"node empty \(Reshape\)"):
        free_batch(proto)


def test_a_mean_over_the_batch_is_named():
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], name="over", axes=[0], keepdims=1),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    proto = build(*nodes, constants={"w": np.ones((12, 5), np.float32)})
    with pytest.raises(UnsupportedModel, match=r"node over \(ReduceMean\) gives the batch a fixed"):
        free_batch(proto)


def test_a_transposition_of_the_batch_is_no_obstacle():
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["t"], perm=[1, 0]),
        helper.make_node("Transpose", ["t"], ["back"], perm=[1, 0]),
        helper.make_node("MatMul", ["back", "w"], ["y"]),
    ]
    constants = {"w": np.ones((12, 5), np.float32)}
    assert batch_axis(free_batch(build(*nodes, constants=constants))).is_dynamic


def test_what_stops_the_batch_after_a_transposition_is_named():
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["t"], perm=[1, 0]),
        helper.make_node("Gather", ["t", "zero"], ["first"], name="pick", axis=1),
        helper.make_node("Unsqueeze", ["first", "axes"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["y"]),
    ]
    constants = {"zero": 0, "axes": [0], "w": np.ones((12, 5), np.float32)}
    with pytest.raises(UnsupportedModel, match=r"node pick \(Gather\) gives the batch a fixed"):
        free_batch(build(*nodes, constants=constants))


def test_an_output_that_depends_on_no_input_is_no_obstacle():
    proto = flattened([-1, 12], batch="n")
    constant = helper.make_node("Identity", ["w"], ["anchors"])
    proto.graph.node.append(constant)
    shape = helper.make_tensor_value_info("anchors", TensorProto.FLOAT, (12, 5))
    proto.graph.output.append(shape)
    assert batch_axis(proto).is_dynamic


def test_the_report_names_what_fixes_the_batch(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(flattened([1, -1]).SerializeToString())
    text = report(load_model(path))
    assert "fixed at 1, but node flatten (Reshape) gives the batch a fixed size" in text
    assert "python -m engines.bundle makes it dynamic" in text
