"""Multiply-accumulates of an ONNX graph, from the shapes of its tensors.

One is counted for each product of a convolution or matrix multiplication, as model cards and
papers do: not for bias, activation, pooling, normalisation or element-wise work. Padding counts as
any other element.

The counters on PyPI were not taken: onnx-tool 1.0.1 counts bias and activations too (224,554 for
a network of 215,168), and onnx-opcounter 0.0.4 runs the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import inliner

from engines.onnx_file import node_title
from engines.onnx_model import Shape
from engines.shapes import infer_shapes

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Macs:
    """What was counted.

    Attributes
    ----------
    total
        Multiply-accumulates of the whole batch; None where a shape is unknown.
    counted
        Nodes that were counted, by operator.
    uncounted
        Nodes that are not counted although they may multiply, by operator: recurrent and attention
        layers, graphs inside nodes, operators that are not ONNX's own.
    unknown
        The first node whose shapes could not be told.
    """

    total: int | None
    counted: Mapping[str, int]
    uncounted: Mapping[str, int]
    unknown: str | None = None


def count_macs(proto: onnx.ModelProto, inputs: Mapping[str, Shape]) -> Macs:
    """Count the multiply-accumulates of one run with inputs of the given shapes."""
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    nodes = proto.graph.node
    shapes = infer_shapes(proto, inputs)
    counted = [node for node in nodes if _is_own(node) and node.op_type in _COUNTED]
    uncounted = Counter(
        node.op_type for node in nodes if not _is_own(node) or node.op_type in _UNCOUNTED
    )
    counts = [_node_macs(node, shapes) for node in counted]
    unknown = [node for node, macs in zip(counted, counts, strict=True) if macs is None]
    known = [macs for macs in counts if macs is not None]
    return Macs(
        total=None if unknown else sum(known),
        counted=Counter(node.op_type for node in counted),
        uncounted=uncounted,
        unknown=node_title(unknown[0]) if unknown else None,
    )


def _is_own(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _node_macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    rule = _COUNTED[node.op_type]
    tensors = [*(node.input[place] for place in rule.inputs), node.output[0]]
    known = [_sizes(shapes.get(name)) for name in tensors]
    sizes = [item for item in known if item is not None]
    return rule.count(sizes, node) if len(sizes) == len(known) else None


def _sizes(shape: Shape | None) -> Sizes | None:
    if shape is None:
        return None
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None


def _convolution(sizes: list[Sizes], node: onnx.NodeProto) -> int:
    """Each output element sums over the weights ``[out, in / group, *kernel]`` of its channel."""
    weights, output = sizes
    return math.prod(output) * math.prod(weights[1:])


def _transposed(sizes: list[Sizes], node: onnx.NodeProto) -> int:
    """Each input element meets the weights ``[in, out / group, *kernel]`` of its channel."""
    data, weights, _ = sizes
    return math.prod(data) * math.prod(weights[1:])


def _gemm(sizes: list[Sizes], node: onnx.NodeProto) -> int:
    left, output = sizes
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(output) * left[0 if transposed else 1]


def _matmul(sizes: list[Sizes], node: onnx.NodeProto) -> int:
    left, output = sizes
    return math.prod(output) * left[-1]


@dataclass(frozen=True)
class _Rule:
    """Which inputs of a node are read, beside its first output, and what is made of their sizes."""

    inputs: Iterable[int]
    count: Callable[[list[Sizes], onnx.NodeProto], int]


_COUNTED = {
    "Conv": _Rule((1,), _convolution),
    "ConvInteger": _Rule((1,), _convolution),
    "QLinearConv": _Rule((3,), _convolution),
    "ConvTranspose": _Rule((0, 1), _transposed),
    "Gemm": _Rule((0,), _gemm),
    "MatMul": _Rule((0,), _matmul),
    "MatMulInteger": _Rule((0,), _matmul),
    "QLinearMatMul": _Rule((0,), _matmul),
}
# Of these, If, Loop and Scan hold graphs of their own.
_UNCOUNTED = frozenset(
    {"Attention", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "RNN", "Scan"}
)
