"""Shape arithmetic of an ONNX graph, worked out once the sizes of tensors are known.

Exporters that trace write a Reshape to a shape which the graph computes from other shapes. ONNX's
own inference follows the simplest of that; attention layers need the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from engines.onnx_model import Shape

Array = npt.NDArray[Any]

LARGEST_VALUE = 1024
"""Elements of a constant that is worked with: shapes and scales, not weights."""

# Operators that shapes are computed with; none of them is costly on a few numbers.
# fmt: off
_ARITHMETIC = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal",
    "Expand", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul",
    "Neg", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum",
    "Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
))
# fmt: on
# What the evaluation of a node that contradicts itself raises.
_REFUSALS = (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError)


def fold_shapes(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Replace nodes whose values are now known by constants; return whether there were any.

    Parameters
    ----------
    proto
        Changed in place.
    shapes
        Of tensors, as far as they are known.
    """
    graph = proto.graph
    constants = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if np.prod(tensor.dims) <= LARGEST_VALUE
    }
    folded = []
    for node in graph.node:
        value = _value(node, proto, constants, shapes)
        if value is None or value.size > LARGEST_VALUE:
            continue
        constants[node.output[0]] = value
        # Constants stay: they are known to inference as they are.
        if node.op_type != "Constant":
            folded.append(node)
    for node in folded:
        graph.node.remove(node)
        value = constants[node.output[0]]
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    return bool(folded)


def _value(
    node: onnx.NodeProto,
    proto: onnx.ModelProto,
    constants: Mapping[str, Array],
    shapes: Mapping[str, Shape],
) -> Array | None:
    if len(node.output) != 1 or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Shape":
        return _shape_value(node, shapes.get(node.input[0]))
    names = [name for name in node.input if name]
    known = {name: constants[name] for name in names if name in constants}
    if node.op_type == "Constant":
        return _evaluate(node, proto, known)
    if node.op_type not in _ARITHMETIC or not names or len(known) != len(set(names)):
        return None
    return _evaluate(node, proto, known)


def _shape_value(node: onnx.NodeProto, shape: Shape | None) -> Array | None:
    if shape is None:
        return None
    ends = {item.name: item.i for item in node.attribute}
    part = shape[ends.get("start", 0) : ends.get("end")]
    sizes = [size for size in part if isinstance(size, int)]
    return np.array(sizes, np.int64) if len(sizes) == len(part) else None


def _evaluate(
    node: onnx.NodeProto, proto: onnx.ModelProto, known: dict[str, Array]
) -> Array | None:
    # Takes a tenth of a second to import, and most models need none of it.
    from onnx.reference import ReferenceEvaluator

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in known.items()
    ]
    output = helper.make_empty_tensor_value_info(node.output[0])
    graph = helper.make_graph([node], "node", inputs, [output])
    model = helper.make_model(graph, opset_imports=proto.opset_import)
    try:
        with np.errstate(all="ignore"):
            return np.asarray(ReferenceEvaluator(model).run(None, known)[0])
    except _REFUSALS:
        return None
