"""FP16 by casting: a model's nodes in half precision, its inputs and outputs still float32.

Nodes that would overflow are kept in FP32, and so are the tensors between them: no value passes
through FP16 on its way from one kept node to the next. Which nodes those are is measured on data
(`unsafe_nodes`), not guessed. Where an operator takes float16 is read from ONNX's own definitions,
so none is listed here.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.errors import EngineError
from engines.onnx_file import default_opset, node_title

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).tiny)
"""The smallest normal number: below it digits are lost, and below 6e-8 everything."""

LOST_SHARE = 0.5
"""Of a tensor's nonzero values: more than this below `SMALLEST` is an underflow."""

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_HALF_TEXT = "tensor(float16)"


class Extremes(NamedTuple):
    """What real data showed of a tensor.

    Attributes
    ----------
    largest
        Of the absolute values.
    small_share
        Share of the nonzero values that are below `SMALLEST`.
    """

    largest: float
    small_share: float

    def problem(self) -> str | None:
        """Return what FP16 would do to the tensor, None if nothing bad."""
        if self.largest > LARGEST:
            return f"reaches {self.largest:.3g}, FP16 ends at {LARGEST:,.0f}"
        if self.small_share > LOST_SHARE:
            return f"underflows: {self.small_share:.0%} of it is below {SMALLEST:.1e}"
        return None


def unsafe_nodes(model: onnx.ModelProto, extremes: Mapping[str, Extremes]) -> dict[str, str]:
    """Return the nodes that must stay in FP32, by name, with the reason.

    A tensor that FP16 cannot hold keeps the node that writes it and all that read it.

    Parameters
    ----------
    extremes
        By tensor, as `calibration.int8` measures them. Weights are looked at here.
    """
    seen = {**extremes, **dict(_weight_extremes(model.graph))}
    problems = {name: item.problem() for name, item in seen.items()}
    found = {}
    for node in model.graph.node:
        for name in (*node.output, *node.input):
            if problems.get(name) and node.name not in found:
                found[node.name] = f"{name} {problems[name]}"
    return found


def to_half(model: onnx.ModelProto, *, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model with its nodes in FP16 and its inputs and outputs still float32.

    Parameters
    ----------
    model
        Computes in float32; every node has a name of its own (`engines.preparation.prepare`).
    keep
        Names of nodes that stay in FP32, beside those whose operator knows no float16.

    Raises
    ------
    EngineError
        When a weight of a node that is cast does not fit into FP16.
    """
    cast = onnx.shape_inference.infer_shapes(model)
    _inline_constants(cast.graph)
    _Casting(cast, frozenset(keep)).run()
    del cast.graph.value_info[:]
    return cast


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that computes what FP16 gives, on an engine without FP16 kernels.

    Each node computes in FP32 from values that were rounded to FP16, and its results are rounded.
    ONNX Runtime's CPU would do the first by itself, but leave out the rounding between two nodes,
    and so hide every overflow.

    Parameters
    ----------
    model
        From `to_half`.
    """
    explicit = onnx.shape_inference.infer_shapes(model)
    graph = explicit.graph
    halves = _tensors(graph, _HALF)
    nodes: list[onnx.NodeProto] = []
    full: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Cast":
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name in halves:
                if name not in full:
                    full[name] = f"{name}.full"
                    nodes.append(_cast_node(name, full[name], _FLOAT))
                node.input[place] = full[name]
        rounded = [name for name in node.output if name in halves]
        node.output[:] = [f"{name}.exact" if name in halves else name for name in node.output]
        nodes.append(node)
        nodes += [_cast_node(f"{name}.exact", name, _HALF) for name in rounded]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return explicit


class _Casting:
    """Rewrites one graph in the order of its nodes, with a cast wherever the precision changes.

    ``_half`` and ``_full`` name the FP16 and the FP32 tensor that stand for one of the original
    graph, as far as they exist already.
    """

    def __init__(self, model: onnx.ModelProto, keep: frozenset[str]) -> None:
        graph = model.graph
        self._graph = graph
        self._keep = keep
        self._opset = default_opset(model) or 0
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._floats = _tensors(graph, _FLOAT)
        self._fixed = {info.name for info in graph.output} | _captured(graph)
        self._nodes: list[onnx.NodeProto] = []
        written = {name for node in graph.node for name in node.output}
        self._names = written | self._floats
        self._full = {name: name for name in self._floats - written}
        self._half: dict[str, str] = {}

    def run(self) -> None:
        for node in list(self._graph.node):
            if node.op_type == "Cast" and node.name not in self._keep:
                self._rewrite_cast(node)
            else:
                self._rewrite(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        drop_unused_weights(self._graph)

    def _rewrite(self, node: onnx.NodeProto) -> None:
        inputs, outputs = _type_names(node, self._opset)
        halves = set() if node.name in self._keep else _half_types(node, self._opset)
        bound = set()
        for place, name in enumerate(node.input):
            if name in self._floats:
                bound.add(inputs[place])
                half = inputs[place] in halves
                node.input[place] = self._as_half(node, name) if half else self._as_full(name)
        self._nodes.append(node)
        for place, name in enumerate(node.output):
            if name in self._floats and outputs[place] in halves & bound:
                self._write_half(node, place)
            elif name in self._floats:
                self._full[name] = name

    def _rewrite_cast(self, node: onnx.NodeProto) -> None:
        """Let a cast read what there is, and one to float32 give float16."""
        name = node.input[0]
        node.input[0] = self._half.get(name) or self._full.get(name) or name
        self._nodes.append(node)
        if node.output[0] in self._floats:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", _HALF))
            self._write_half(node, 0)

    def _write_half(self, node: onnx.NodeProto, place: int) -> None:
        name = node.output[place]
        self._half[name] = name
        if name in self._fixed:
            # A caller, or a graph inside a node, reads it as float32 under this name.
            node.output[place] = self._half[name] = self._new(f"{name}.fp16")
            self._add_cast(self._half[name], name, _FLOAT)
            self._full[name] = name

    def _as_half(self, node: onnx.NodeProto, name: str) -> str:
        if name not in self._half:
            self._half[name] = self._new(f"{name}.fp16")
            if name in self._weights:
                self._add_half_weight(node, name)
            else:
                self._add_cast(self._full[name], self._half[name], _HALF)
        return self._half[name]

    def _as_full(self, name: str) -> str:
        if name not in self._full:
            self._full[name] = self._new(f"{name}.fp32")
            self._add_cast(self._half[name], self._full[name], _FLOAT)
        return self._full[name]

    def _add_half_weight(self, node: onnx.NodeProto, name: str) -> None:
        values = numpy_helper.to_array(self._weights[name])
        largest = extremes_of(values).largest
        if largest > LARGEST:
            raise EngineError(
                f"{node_title(node)}: weight {name} reaches {largest:.3g}, FP16 ends at "
                f"{LARGEST:,.0f}. Keep the node in FP32."
            )
        half = numpy_helper.from_array(values.astype(np.float16), self._half[name])
        self._graph.initializer.append(half)

    def _add_cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(_cast_node(source, target, kind))

    def _new(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _half_types(node: onnx.NodeProto, opset: int) -> set[str]:
    """Return the type names of a node that may be float16; none for a node with graphs inside."""
    schema = _schema(node, opset)
    if schema is None or any(attribute.HasField("g") for attribute in node.attribute):
        return set()
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    return {variable for variable, kinds in allowed.items() if _HALF_TEXT in kinds}


def _type_names(node: onnx.NodeProto, opset: int) -> tuple[list[str], list[str]]:
    """Return the type of each input and output as the operator's definition names it.

    Tensors of one type name have one type: T in ``Add(T, T) -> T``.
    """
    schema = _schema(node, opset)
    if schema is None:
        return [""] * len(node.input), [""] * len(node.output)
    return (
        [schema.inputs[min(k, len(schema.inputs) - 1)].type_str for k in range(len(node.input))],
        [schema.outputs[min(k, len(schema.outputs) - 1)].type_str for k in range(len(node.output))],
    )


def _schema(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return None
    return onnx.defs.get_schema(node.op_type, opset)


def _tensors(graph: onnx.GraphProto, kind: int) -> set[str]:
    """Return the names of the activations and weights of one type."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    activations = {info.name for info in infos if info.type.tensor_type.elem_type == kind}
    return activations | {item.name for item in graph.initializer if item.data_type == kind}


def _cast_node(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=target, to=kind)


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Return what graphs inside nodes may read of this one: the names of all their inputs."""
    inner = [g for node in graph.node for a in node.attribute for g in (a.g, *a.graphs)]
    names = {name for g in inner for node in g.node for name in node.input}
    names |= {info.name for g in inner for info in g.output}
    return names.union(*(_captured(g) for g in inner))


def _inline_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of float Constant nodes, which can then be cast like weights."""
    for node in list(graph.node):
        values = [item.t for item in node.attribute if item.name == "value"]
        if node.op_type == "Constant" and values and values[0].data_type == _FLOAT:
            tensor = copy.deepcopy(values[0])
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            graph.node.remove(node)


def drop_unused_weights(graph: onnx.GraphProto) -> None:
    """Remove the initializers that no node reads and no output names."""
    used = {name for node in graph.node for name in node.input} | _captured(graph)
    used |= {info.name for info in graph.output}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _weight_extremes(graph: onnx.GraphProto) -> Iterator[tuple[str, Extremes]]:
    for tensor in graph.initializer:
        if tensor.data_type == _FLOAT:
            yield tensor.name, extremes_of(numpy_helper.to_array(tensor))


def extremes_of(values: np.ndarray) -> Extremes:
    """Return the extremes of an array; infinities, which FP16 has too, do not count."""
    sizes = np.abs(values[np.isfinite(values)])
    nonzero = sizes[sizes > 0]
    if not len(nonzero):
        return Extremes(0.0, 0.0)
    return Extremes(float(nonzero.max()), float((nonzero < SMALLEST).mean()))
