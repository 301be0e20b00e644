"""INT8 by explicit quantise/dequantise pairs: one set of ranges, a form for each engine.

=============  =========================  ===========================================
form           ``int8_host``              ``int8_trt``
=============  =========================  ===========================================
engine         ONNX Runtime on a CPU      TensorRT 8.6 to 11, TensorRT-RTX
activations    unsigned, any zero point   signed, symmetric (the only ones its parser takes)
weights        signed, by channel         signed, by channel
bias           int32                      float (its parser refuses a quantised one)
the rest       FP32                       FP16
=============  =========================  ===========================================

The pairs are placed by ONNX Runtime's quantizer. In both forms the outputs stay float, so that a
gate reads logits that were not rounded to 256 steps.

In ``int8_trt`` the nodes that compute from integers to integers keep their FP32 type, and nothing
stands between them and their pairs: that is what TensorRT 8.6 fuses. The rest is cast to FP16, for
typed networks run each node in the type it is written in. A matrix product belongs to the rest
whatever stands around it: Turing has no FP32 one.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from engines.errors import EngineError
from engines.half import drop_unused_weights, to_half
from engines.onnx_file import default_opset
from engines.preparation import NEWEST_OPSET, OLDEST_OPSET

Ranges = Mapping[str, tuple[float, float]]
"""Least and largest value of each activation tensor that its integers span."""

HOST_OPERATORS: tuple[str, ...] = tuple(sorted({*QLinearOpsRegistry, *QDQRegistry}))
TRT_OPERATORS = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool",
    "MatMul", "MaxPool", "Relu",
)  # fmt: skip
"""What TensorRT has integer kernels for, or fuses into one."""

_ACTIVATIONS = ("Clip", "Relu")
_PRODUCTS = ("Gemm", "MatMul")
_INTEGER_OPERATORS = tuple(item for item in TRT_OPERATORS if item not in _PRODUCTS)
_AFTER_PRODUCT = ("Add", "Flatten", "Identity", "LogSoftmax", "Reshape", "Softmax", "Squeeze")
_MOVES = (
    "ArgMax", "Gather", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip


def quantise_host(
    model: onnx.ModelProto, ranges: Ranges, *, keep: Collection[str] = (), weight_bits: int = 8
) -> onnx.ModelProto:
    """Return the form ``int8_host``.

    Parameters
    ----------
    model
        From `engines.preparation.prepare`.
    keep
        Names of nodes that stay in FP32.
    weight_bits
        7 for a CPU without VNNI, whose sums of 8-bit products saturate.

    Raises
    ------
    EngineError
        When a range is missing, or the model cannot be quantised.
    """
    scheme = _Scheme(QuantType.QUInt8, HOST_OPERATORS, reduce_range=weight_bits == 7)
    quantised = _quantise(model, ranges, keep, scheme)
    _drop_pairs(quantised.graph)
    return quantised


def quantise_trt(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    keep: Collection[str] = (),
    keep_full: Collection[str] = (),
) -> onnx.ModelProto:
    """Return the form ``int8_trt``.

    Parameters
    ----------
    model
        From `engines.preparation.prepare`.
    keep
        Names of nodes that are not quantised.
    keep_full
        Of these and the rest, names of nodes that FP16 cannot hold (`engines.half.unsafe_nodes`).

    Raises
    ------
    EngineError
        When a range is missing, or the model cannot be quantised.
    """
    options = {"QuantizeBias": False, "ActivationSymmetric": True}
    scheme = _Scheme(QuantType.QInt8, TRT_OPERATORS, options=options)
    quantised = _quantise(model, ranges, {*keep, *_heads(model.graph)}, scheme)
    # TensorRT fuses an activation into the node before it, if nothing stands between them.
    _drop_pairs(quantised.graph, before=_ACTIVATIONS)
    return to_half(quantised, keep={*_integer_nodes(quantised.graph), *keep_full})


def quantised_nodes(model: onnx.ModelProto, operators: Collection[str]) -> list[str]:
    """Return the names of the nodes that lose precision when ``operators`` are quantised.

    Those that only select or move values take the integers of their input as they are.
    """
    return [
        node.name
        for node in model.graph.node
        if node.op_type in operators and node.op_type not in (*_ACTIVATIONS, *_MOVES)
    ]


class _Scheme(NamedTuple):
    """What ONNX Runtime's quantizer is told for one form."""

    activations: QuantType
    operators: tuple[str, ...]
    reduce_range: bool = False
    options: Mapping[str, Any] = MappingProxyType({})


def _quantise(
    model: onnx.ModelProto, ranges: Ranges, keep: Collection[str], scheme: _Scheme
) -> onnx.ModelProto:
    opset = default_opset(model) or 0
    if opset < OLDEST_OPSET:
        raise EngineError(
            f"INT8 needs opset {OLDEST_OPSET}, the model has {opset} and cannot be converted. "
            f"Export it with opset {NEWEST_OPSET}."
        )
    spans = {name: tuple(np.float32(value) for value in pair) for name, pair in ranges.items()}
    try:
        quantizer = QDQQuantizer(
            model=copy.deepcopy(model),
            per_channel=True,
            reduce_range=scheme.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=scheme.activations,
            tensors_range=TensorsData(CalibrationMethod.MinMax, spans),
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(keep),
            op_types_to_quantize=list(scheme.operators),
            extra_options=dict(scheme.options),
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"ONNX Runtime {ort.__version__} cannot quantise the model: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    quantised: onnx.ModelProto = quantizer.model.model
    del quantised.metadata_props[:]
    return quantised


class _Pair(NamedTuple):
    """QuantizeLinear and the only DequantizeLinear that reads it."""

    quantise: onnx.NodeProto
    dequantise: onnx.NodeProto

    @property
    def source(self) -> str:
        return str(self.quantise.input[0])

    @property
    def result(self) -> str:
        return str(self.dequantise.output[0])


class _Links:
    """Who writes and who reads each tensor of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.outputs = {info.name for info in graph.output}
        self.weights = {tensor.name for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def readers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that read any output of a node."""
        return [reader for name in node.output for reader in self.consumers.get(name, [])]

    def is_between_integers(self, node: onnx.NodeProto, inside: Collection[str]) -> bool:
        """Return whether a node reads and is read by pairs, or nodes ``inside``, only."""
        inputs = [name for name in node.input if name and name not in self.weights]
        writers = [self.producers.get(name) for name in inputs]
        return (
            not self.outputs & {*node.output}
            and all(w and (w.op_type == "DequantizeLinear" or w.name in inside) for w in writers)
            and all(r.op_type == "QuantizeLinear" or r.name in inside for r in self.readers(node))
        )


def _drop_pairs(graph: onnx.GraphProto, *, before: tuple[str, ...] = ()) -> None:
    """Remove the pairs on the graph's outputs, and those that only operators ``before`` read."""
    for quantise in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        links = _Links(graph)
        readers = links.readers(quantise)
        if len(readers) != 1 or quantise.input[0] not in links.producers:
            continue
        pair = _Pair(quantise, readers[0])
        then = links.readers(pair.dequantise)
        if pair.result in links.outputs and pair.source not in links.outputs:
            _remove(graph, pair, old=pair.source, new=pair.result)
        elif then and all(node.op_type in before for node in then):
            _remove(graph, pair, old=pair.result, new=pair.source)
    drop_unused_weights(graph)


def _remove(graph: onnx.GraphProto, pair: _Pair, *, old: str, new: str) -> None:
    """Take out a pair, and let the tensor ``old`` be called ``new`` in the rest."""
    for node in pair:
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _integer_nodes(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the nodes that compute from integers to integers as a whole.

    Everything they read comes from a DequantizeLinear, a weight or another of them, and everything
    that reads them is a QuantizeLinear or another of them.
    """
    links = _Links(graph)
    inside = {node.name for node in graph.node if node.op_type in _INTEGER_OPERATORS}
    while True:
        outside = {
            node.name
            for node in graph.node
            if node.name in inside and not links.is_between_integers(node, inside)
        }
        if not outside:
            return inside
        inside -= outside


def _heads(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the matrix products that the graph's outputs come from directly.

    They are a small part of the work, and the last place for an error: they run in FP16.
    """
    links = _Links(graph)
    found = set()
    for name in links.outputs:
        node = links.producers.get(name)
        while node is not None and node.op_type in _AFTER_PRODUCT:
            node = links.producers.get(node.input[0])
        if node is not None and node.op_type in _PRODUCTS:
            found.add(node.name)
    return found
