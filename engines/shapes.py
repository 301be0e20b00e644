"""Shapes of all tensors of an ONNX graph, inferred without running it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import TensorProto

from engines.errors import UnsupportedModel
from engines.folding import LARGEST_VALUE, fold_shapes
from engines.onnx_model import Shape


def dimensions(info: onnx.ValueInfoProto) -> Shape | None:
    """Return a tensor's shape: sizes, names of dynamic axes, None where nothing is said.

    None is returned for a tensor whose rank is unknown, and for what is no tensor.
    """
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(_dimension(item) for item in kind.shape.dim)


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return what a caller feeds; before IR version 4 weights are listed as inputs too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [info for info in graph.input if info.name not in constants]


def infer_shapes(proto: onnx.ModelProto, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shape of every tensor that can be told, given those of the inputs.

    Weights take part as shapes only. Nodes whose own inference fails leave their outputs out.
    """
    return _settle(_light(proto, inputs))


def check_shapes(proto: onnx.ModelProto, inputs: Mapping[str, Shape]) -> None:
    """Raise when shapes do not fit together, naming the node that says so.

    Raises
    ------
    UnsupportedModel
        With ONNX's own words; without the path, which the caller knows.
    """
    light = _light(proto, inputs)
    _settle(light)
    try:
        onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedModel(_explain(str(error))) from None


def _settle(light: onnx.ModelProto) -> dict[str, Shape]:
    """Infer shapes, and fold what they make known into the model, until nothing is left to fold."""
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
        except onnx.shape_inference.InferenceError:
            # Some versions raise even where they were not asked to; see `check_shapes`.
            inferred = light
        found = dict(_shapes_of(inferred))
        if not fold_shapes(light, found):
            return found


def _explain(message: str) -> str:
    """Return node and reason from ``(op_type:MatMul, node name: mm): [...] reason``."""
    found = re.search(r"\(op_type:(\w*)(?:, node name: (.*?))?\):\s*(?:\[\w+\])?\s*(.*)", message)
    if found is None:
        return message.strip().splitlines()[0]
    operator, name, reason = found.groups()
    return f"node {name or '(without a name)'} ({operator}): {reason}"


def _light(proto: onnx.ModelProto, inputs: Mapping[str, Shape]) -> onnx.ModelProto:
    """Return a copy with the given input shapes, and with weights replaced by their shapes."""
    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    for info in graph_inputs(proto.graph):
        graph.input.add().CopyFrom(_reshaped(info, inputs.get(info.name)))
    for tensor in proto.graph.initializer:
        if _is_value(tensor):
            graph.initializer.add().CopyFrom(tensor)
        else:
            graph.input.add().CopyFrom(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    for info in proto.graph.output:
        # Only its type: a batch size that the exporter wrote down would contradict the inputs.
        kind = info.type.tensor_type.elem_type
        graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info(info.name, kind, None))
    return light


def _is_value(tensor: onnx.TensorProto) -> bool:
    size = 1
    for dimension in tensor.dims:
        size *= dimension
    return size <= LARGEST_VALUE and tensor.data_location != TensorProto.EXTERNAL


def _reshaped(info: onnx.ValueInfoProto, shape: Shape | None) -> onnx.ValueInfoProto:
    if shape is None:
        return info
    kind = info.type.tensor_type.elem_type
    return onnx.helper.make_tensor_value_info(info.name, kind, shape)


def _shapes_of(proto: onnx.ModelProto) -> Iterator[tuple[str, Shape]]:
    graph = proto.graph
    for info in (*graph.input, *graph.value_info, *graph.output):
        shape = dimensions(info)
        if shape is not None:
            yield info.name, shape
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)


def _dimension(item: Any) -> int | str | None:
    if item.HasField("dim_value"):
        return int(item.dim_value)
    return str(item.dim_param) if item.HasField("dim_param") else None
