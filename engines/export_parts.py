"""The stages' models as parts of one graph: one opset, names of their own, only what is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import GraphProto, ModelProto, NodeProto, compose, helper, inliner, version_converter

from engines.errors import UnsupportedModel
from engines.onnx_file import default_opset, read_onnx
from engines.shapes import dimensions, graph_inputs
from runtime.schema import CascadeSpec, Stage

OLDEST_OPSET = 13
"""From here on ReduceSum takes its axes as an input, as the nodes between the stages do."""

OLDEST_IR = 8
"""Read by every ONNX Runtime that is supported."""


class Parts(NamedTuple):
    """One graph per stage, and what a model that holds them all must say of its versions."""

    graphs: list[GraphProto]
    opsets: dict[str, int]
    ir_version: int


def read_parts(spec: CascadeSpec, paths: Sequence[Path]) -> Parts:
    """Read the stages' models; all names of a part begin with its stage's and ``/``.

    Raises
    ------
    UnsupportedModel
        When a model is damaged, does not have the inputs and outputs that ``cascade.json`` names,
        or cannot be brought to the newest opset among the stages.
    """
    protos = [read_onnx(path).proto for path in paths]
    opsets = {"": max(OLDEST_OPSET, *(default_opset(proto) or 0 for proto in protos))}
    graphs = []
    for path, proto, stage in zip(paths, protos, spec.stages, strict=True):
        outputs = _read_outputs(spec, stage)
        _check_interface(path, proto.graph, stage, outputs, len(spec.labels))
        _join_domains(path, proto, opsets)
        onnx.external_data_helper.load_external_data_for_model(proto, os.fspath(path.parent))
        graphs.append(_part(_converted(path, proto, opsets[""]), stage, outputs))
    return Parts(graphs, opsets, max(OLDEST_IR, *(proto.ir_version for proto in protos)))


def _read_outputs(spec: CascadeSpec, stage: Stage) -> list[str]:
    """Return the outputs that the cascade reads: logits, a gate's score, tensors for later."""
    found = [stage.logits]
    for item, gate in zip(spec.stages, spec.gates, strict=False):
        if item.name == stage.name and gate.score.output:
            found.append(gate.score.output)
    for source in (item.source for later in spec.stages for item in later.inputs):
        producer, _, tensor = source.partition("/")
        if producer == stage.name and tensor:
            found.append(tensor)
    return list(dict.fromkeys(found))


def _check_interface(
    path: Path, graph: GraphProto, stage: Stage, outputs: list[str], classes: int
) -> None:
    wanted = sorted(item.tensor for item in stage.inputs)
    inputs = sorted(item.name for item in graph_inputs(graph))
    _require(path, "inputs", wanted, inputs, fits=inputs == wanted)
    found = {item.name: item for item in graph.output}
    _require(path, "outputs", outputs, sorted(found), fits=set(outputs) <= set(found))
    shape = dimensions(found[stage.logits])
    fits = shape is None or (len(shape) == 2 and shape[1] in (classes, None))
    _require(path, f"shape of {stage.logits}", ["n", classes], list(shape or ()), fits=fits)
    for item in (*graph_inputs(graph), found[stage.logits]):
        batch = (dimensions(item) or (None,))[0]
        _require(path, f"batch of {item.name}", "any", batch, fits=not isinstance(batch, int))


def _require(path: Path, what: str, expected: object, found: object, *, fits: bool) -> None:
    if not fits:
        raise UnsupportedModel(
            f"{path}: {what}: expected {expected} as cascade.json says, the model has {found}. "
            "Export the model for this bundle, or mend cascade.json."
        )


def _join_domains(path: Path, proto: ModelProto, opsets: dict[str, int]) -> None:
    """Note the operator sets that are not ONNX's own; two versions of one cannot be joined."""
    for item in proto.opset_import:
        if item.domain in ("", "ai.onnx"):
            continue
        version = opsets.setdefault(item.domain, item.version)
        if version != item.version:
            raise UnsupportedModel(
                f"{path}: has operators of {item.domain} in version {item.version}, an earlier "
                f"stage in version {version}. Export both with the same."
            )


def _converted(path: Path, proto: ModelProto, opset: int) -> ModelProto:
    if default_opset(proto) == opset:
        return proto
    try:
        return version_converter.convert_version(proto, opset)
    except (
        RuntimeError,
        version_converter.ConvertError,
        onnx.shape_inference.InferenceError,
    ) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UnsupportedModel(
            f"{path}: opset {default_opset(proto)} cannot be brought to {opset}, which another "
            f"stage needs: {reason} Export all stages with the same opset."
        ) from None


def _part(proto: ModelProto, stage: Stage, outputs: list[str]) -> GraphProto:
    flat = inliner.inline_local_functions(proto) if proto.functions else proto
    prefix = f"{stage.name}/"
    # Without the map, weights that a graph inside a node reads would keep their names in there.
    weights = {tensor.name: prefix + tensor.name for tensor in flat.graph.initializer}
    graph = compose.add_prefix_graph(flat.graph, prefix, name_map=weights)
    return _pruned(graph, {f"{stage.name}/{name}" for name in outputs})


def _pruned(graph: GraphProto, wanted: set[str]) -> GraphProto:
    """Return the nodes and constants that the wanted tensors need.

    ONNX Runtime runs nodes that nobody reads, too. Shapes that the exporter wrote down are left
    out: a stage's batch size may have the same symbol as another's, and is not the same.
    """
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted = wanted.union(_reads(node))
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    sparse = [item for item in graph.sparse_initializer if item.values.name in wanted]
    return helper.make_graph(kept[::-1], graph.name, [], [], constants, sparse_initializer=sparse)


def _reads(node: NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those of graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (item.name for item in graph.output)
            for inner in graph.node:
                yield from _reads(inner)
