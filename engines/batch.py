"""The batch axis of an ONNX graph: whether it is dynamic, what fixes it, and how to free it.

Told from shapes alone. Whether a changed graph computes the same is for whoever runs it to see.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from engines.errors import UnsupportedModel
from engines.onnx_file import node_title
from engines.onnx_model import Shape
from engines.shapes import check_shapes, dimensions, graph_inputs, infer_shapes

AXIS_NAME = "n"
_TRIED = 3
"""A batch that no exporter would fix."""


@dataclass(frozen=True)
class BatchAxis:
    """What is known of axis 0.

    Attributes
    ----------
    fixed
        The batch that inputs or outputs are declared with; None if they are dynamic.
    obstacle
        The node that keeps the batch from being another one, and why; None if there is none.
    freeable
        Whether `free_batch` can make a batch dynamic that is not.
    """

    fixed: int | None
    obstacle: str | None
    freeable: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether any batch may be fed."""
        return self.fixed is None and self.obstacle is None


def batch_axis(proto: onnx.ModelProto) -> BatchAxis:
    """Return what the declared shapes, and those inferred for another batch, say of axis 0."""
    fixed = declared_batch(proto) if any(map(_is_fixed(proto), _interface(proto))) else None
    axis = BatchAxis(fixed, _obstacle(proto))
    if axis.is_dynamic:
        return axis
    try:
        free_batch(proto)
    except UnsupportedModel as error:
        return BatchAxis(fixed, str(error))
    return dataclasses.replace(axis, freeable=True)


def free_batch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose batch axis is dynamic, as far as shapes tell.

    Declared shapes get a named axis 0, and a Reshape to a shape written for one batch takes the
    batch from its input instead.

    Raises
    ------
    UnsupportedModel
        When another node fixes the batch; names it, without the path.
    """
    freed = onnx.ModelProto()
    freed.CopyFrom(proto)
    del freed.graph.value_info[:]
    for info in filter(_is_fixed(proto), _interface(freed)):
        info.type.tensor_type.shape.dim[0].dim_param = AXIS_NAME
    _free_reshapes(freed, declared_batch(proto))
    obstacle = _obstacle(freed)
    if obstacle:
        raise UnsupportedModel(obstacle)
    return freed


def inputs_at(proto: onnx.ModelProto, batch: int) -> dict[str, Shape]:
    """Return the shapes of the inputs with axis 0 set to a batch."""
    shapes = {info.name: dimensions(info) for info in graph_inputs(proto.graph)}
    return {name: (batch, *shape[1:]) for name, shape in shapes.items() if shape}


def declared_batch(proto: onnx.ModelProto) -> int:
    """Return the batch that the inputs are declared with, 1 if it is dynamic."""
    for info in graph_inputs(proto.graph):
        shape = dimensions(info)
        if shape and isinstance(shape[0], int):
            return shape[0]
    return 1


def _interface(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*graph_inputs(proto.graph), *proto.graph.output]


def _is_fixed(proto: onnx.ModelProto) -> Callable[[onnx.ValueInfoProto], bool]:
    """Return the test for a tensor that is declared with the model's fixed batch."""
    batch = declared_batch(proto)

    def is_fixed(info: onnx.ValueInfoProto) -> bool:
        shape = dimensions(info)
        return shape is not None and shape[:1] == (batch,)

    return is_fixed


class _Growth:
    """Shapes at one batch, and at `_TRIED` times as many."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        batch = declared_batch(proto)
        self.larger = inputs_at(proto, batch * _TRIED)
        self._before = infer_shapes(proto, inputs_at(proto, batch))
        self._after = infer_shapes(proto, self.larger)

    def axis(self, name: str) -> bool | None:
        """Return whether a tensor's axis 0 grew with the batch; None if that is not known."""
        old, new = self._before.get(name), self._after.get(name)
        return _is_multiple(old[:1], new[:1]) if old and new else None

    def elements(self, name: str) -> bool | None:
        """Return whether a tensor as a whole grew with the batch; None if that is not known."""
        old, new = self._before.get(name), self._after.get(name)
        return None if old is None or new is None else _is_multiple(old, new)


def _is_multiple(old: Shape, new: Shape) -> bool | None:
    counts = []
    for shape in (old, new):
        sizes = [size for size in shape if isinstance(size, int)]
        if len(sizes) != len(shape):
            return None
        counts.append(math.prod(sizes))
    return counts[1] == _TRIED * counts[0]


def _obstacle(proto: onnx.ModelProto) -> str | None:
    """Return the node that does not follow the batch, if shapes show one."""
    growth = _Growth(proto)
    problem = None
    try:
        check_shapes(proto, growth.larger)
    except UnsupportedModel as error:
        problem = str(error)
    reached = _reached(proto.graph)
    outputs = [info.name for info in proto.graph.output if info.name in reached]
    if problem is None and all(growth.axis(name) is not False for name in outputs):
        return None
    # A Transpose may only move the batch, and Shape reads it; what stops it comes later.
    nodes = [node for node in proto.graph.node if node.op_type not in ("Shape", "Transpose")]
    for grows in (growth.axis, growth.elements):
        for node in nodes:
            if any(map(grows, node.input)) and any(grows(name) is False for name in node.output):
                return f"{node_title(node)} gives the batch a fixed size"
    return problem or "the outputs do not follow the batch"


def _free_reshapes(proto: onnx.ModelProto, batch: int) -> None:
    graph = proto.graph
    constants = dict(_constants(graph))
    reached = _reached(graph)
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[0] not in reached:
            continue
        shape = constants.get(node.input[1])
        if shape is None or not shape.size or shape[0] != batch or _has_zero(node, shape):
            continue
        # -1 is whatever is left over, and may stand once; 0 copies axis 0 of the input.
        first = 0 if -1 in shape else -1
        tensor = numpy_helper.from_array(
            np.array([first, *shape[1:]], np.int64), f"{node.input[1]}/batch/{number}"
        )
        graph.initializer.append(tensor)
        node.input[1] = tensor.name
        del node.attribute[:]


def _has_zero(node: onnx.NodeProto, shape: npt.NDArray[np.int64]) -> bool:
    """Return whether a 0 in the shape means an empty axis; allowzero is Reshape's one attribute."""
    return 0 in shape and any(item.i for item in node.attribute)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yield the int64 values that are written in the graph, as shapes are."""
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            tensors += [(node.output[0], item.t) for item in node.attribute if item.name == "value"]
    for name, tensor in tensors:
        here = tensor.data_location != onnx.TensorProto.EXTERNAL
        if here and tensor.data_type == onnx.TensorProto.INT64:
            yield name, numpy_helper.to_array(tensor)


def _reached(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that depend on an input."""
    reached = {info.name for info in graph_inputs(graph)}
    for node in graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    return reached
