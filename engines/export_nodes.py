"""Nodes and constants of an ONNX graph under construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import (
    GraphProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

Operand = str | npt.ArrayLike
"""The name of a tensor, or a constant: integers become i64, other numbers f32."""


class Nodes:
    """The nodes of one graph, or of one branch of it, in the order in which they run.

    Parameters
    ----------
    opset
        Of the default domain, at least 13.
    """

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._prefix = ""
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        self._sparse: list[SparseTensorProto] = []

    def branch(self) -> Nodes:
        """Return an empty list of nodes for a branch of this graph, which sees its tensors."""
        return Nodes(self._opset)

    def within(self, prefix: str) -> Nodes:
        """Return the same nodes, but that names given to them get a further prefix."""
        view = Nodes(self._opset)
        view._nodes, view._constants, view._sparse = self._nodes, self._constants, self._sparse
        view._prefix = self._prefix + prefix
        return view

    def add(self, kind: str, name: str, *inputs: Operand, **attributes: Any) -> str:
        """Append a node with one output of its name; return the name, with the prefix."""
        full = self._prefix + name
        names = [self._operand(f"{full}.{place}", item) for place, item in enumerate(inputs)]
        self._nodes.append(helper.make_node(kind, names, [full], name=full, **attributes))
        return full

    def reduce(self, kind: str, name: str, tensor: str, *, keep: bool = False) -> str:
        """Append a reduction over the last axis of a matrix, as `add`."""
        if kind == "ReduceMax" and self._opset < 18:
            return self.add(kind, name, tensor, axes=[1], keepdims=int(keep))
        return self.add(kind, name, tensor, [1], keepdims=int(keep))

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        """Append a constant and return its name, with the prefix."""
        return self._operand(self._prefix + name, values)

    def largest(self, name: str, tensor: str, count: int) -> str:
        """Append the ``count`` largest values of each row, descending, as `add`."""
        values = self.add("TopK", name, tensor, [count], axis=1)
        self._nodes[-1].output.append(f"{values}.places")
        return values

    def choose(
        self, name: str, condition: str, then: GraphProto, otherwise: GraphProto
    ) -> tuple[str, ...]:
        """Append an ``If``; return one name, made of ``name``, for each output of its branches."""
        full = self._prefix + name
        names = [f"{full}.{place}" for place in range(len(then.output))]
        branches = {"then_branch": then, "else_branch": otherwise}
        self._nodes.append(helper.make_node("If", [condition], names, name=full, **branches))
        return tuple(names)

    def include(self, graph: GraphProto) -> None:
        """Append all nodes and constants of a graph, whose names must be new."""
        self._nodes.extend(graph.node)
        self._constants.extend(graph.initializer)
        self._sparse.extend(graph.sparse_initializer)

    def graph(
        self, name: str, outputs: list[ValueInfoProto], inputs: list[ValueInfoProto] | None = None
    ) -> GraphProto:
        """Return the graph; a branch has no inputs."""
        return helper.make_graph(
            self._nodes,
            name,
            inputs or [],
            outputs,
            self._constants,
            sparse_initializer=self._sparse,
        )

    def _operand(self, name: str, item: Operand) -> str:
        if isinstance(item, str):
            return item
        values = np.asarray(item)
        dtype = np.int64 if values.dtype.kind == "i" else np.float32
        self._constants.append(numpy_helper.from_array(values.astype(dtype), name))
        return name
