"""Small networks that the tests of forms are about, and what runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array],
    *,
    shape: Sequence[int | str] = ("n", 4),
    outputs: dict[str, Sequence[int | str]] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a model from ``x`` to ``y``, or to other float outputs, with inferred shapes."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
            for name, size in (outputs or {"y": shape}).items()
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return onnx.shape_inference.infer_shapes(made)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node named after its first output; blanks separate names, ``-`` is none."""
    read = [name.replace("-", "") for name in inputs.split()]
    names = outputs.split()
    return helper.make_node(kind, read, names, name=f"node_{names[0]}", **attributes)


def run(made: onnx.ModelProto, x: Array) -> Array:
    """Return the first output; the model is checked first."""
    onnx.checker.check_model(made, full_check=True)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def operators(made: onnx.ModelProto) -> list[str]:
    return [item.op_type for item in made.graph.node]


def named(made: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = [item for item in made.graph.node if item.name == name]
    return found


def scalar(value: float) -> Array:
    return np.array([value], np.float32)


def overflowing(*, large: float = 1e5) -> onnx.ModelProto:
    """Return ``y = 2 x``, by way of two branches that multiply by ``large`` and then divide."""
    return model(
        [
            node("Mul", "x large", "a"),
            node("Relu", "a", "b"),
            node("Mul", "b small", "c"),
            node("Mul", "b small", "d"),
            node("Add", "c d", "e"),
            node("Mul", "e one", "y"),
        ],
        {"large": scalar(large), "small": scalar(1 / large), "one": scalar(1)},
    )


def residual_network(seed: int = 0) -> onnx.ModelProto:
    """Return a convolutional network with a residual branch and a matrix product at its end."""
    rng = np.random.default_rng(seed)

    def filters(outputs: int, inputs: int) -> Array:
        scale = np.sqrt(2 / (9 * inputs))
        return (rng.standard_normal((outputs, inputs, 3, 3)) * scale).astype(np.float32)

    weights = {
        "w1": filters(5, 1),
        "b1": rng.standard_normal(5).astype(np.float32) / 4,
        "w2": filters(5, 5),
        "b2": rng.standard_normal(5).astype(np.float32) / 4,
        "w3": rng.standard_normal((5, 3)).astype(np.float32),
        "b3": rng.standard_normal(3).astype(np.float32),
    }
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p1 w2 b2", "c2", pads=[1, 1, 1, 1]),
        node("Relu", "c2", "r2"),
        node("Add", "p1 r2", "s"),
        node("ReduceMax", "s", "m", axes=[2, 3], keepdims=0),
        node("Gemm", "m w3 b3", "y"),
    ]
    return model(nodes, weights, shape=("n", 1, 6, 6), outputs={"y": ("n", 3)})


def images(n: int, *, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((n, 1, 6, 6)).astype(np.float32)


def activations(made: onnx.ModelProto, x: Array) -> dict[str, Array]:
    """Return every float activation, the input included."""
    wider = onnx.ModelProto()
    wider.CopyFrom(made)
    there = {item.name for item in made.graph.output}
    names = [name for item in made.graph.node for name in item.output]
    for name in names:
        if name not in there:
            wider.graph.output.add(name=name)
    session = onnxruntime.InferenceSession(
        wider.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = [item.name for item in session.get_outputs()]
    return {"x": x, **dict(zip(wanted, session.run(wanted, {"x": x}), strict=True))}


def extents(made: onnx.ModelProto, x: Array) -> dict[str, tuple[float, float]]:
    """Return least and largest value of every activation."""
    found = activations(made, x)
    return {name: (float(value.min()), float(value.max())) for name, value in found.items()}
