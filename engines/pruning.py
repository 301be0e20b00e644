"""Dropping what no output of an ONNX graph needs."""

from __future__ import annotations

import onnx

from engines.onnx_file import nested_nodes


def drop_unneeded(graph: onnx.GraphProto) -> None:
    """Drop nodes and weights that no output depends on, in place."""
    needed, nodes = {info.name for info in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            # Graphs inside a node read tensors of this one without naming them as its inputs.
            needed.update(name for part in nested_nodes([node]) for name in part.input)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    for tensor in [item for item in graph.initializer if item.name not in needed]:
        graph.initializer.remove(tensor)
