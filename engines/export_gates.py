"""A gate as ONNX nodes: the decisions of `kernels.reference`, in float32.

A row that is not valid (a NaN, +inf, or no finite logit) gets a softmax total of NaN by the rules
of IEEE arithmetic alone, and no comparison with NaN holds: it escalates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from engines.export_nodes import Nodes
from runtime.schema import Score, Threshold

# The exponential of less than -104 is 0 in float32; and 0 times this is 0, where -inf gives NaN.
_FLOOR = -1000.0
_TINY = float(np.finfo(np.float32).tiny)


class Answer(NamedTuple):
    """Names of tensors: label i64 [n], confidence f32 [n]."""

    label: str
    confidence: str


class Decision(NamedTuple):
    """Names of tensors: label i64 [n], confidence f32 [n], kept bool [n].

    Label and confidence of a row that is not kept need not mean anything.
    """

    label: str
    confidence: str
    kept: str


class _Softmax(NamedTuple):
    """Names of tensors: exponent and its exponential f32 [n, K], their total f32 [n]."""

    exponent: str
    weight: str
    total: str


def add_last_answer(nodes: Nodes, logits: str) -> Answer:
    """Add label and confidence of the last stage, which has to answer every row.

    One that is not valid has confidence 0, and as label the lowest index of the largest logit that
    is not NaN.
    """
    nan = nodes.add("IsNaN", "nan", logits)
    ordered = nodes.add("Where", "ordered", nan, -np.inf, logits)
    largest = nodes.reduce("ReduceMax", "largest", ordered, keep=True)
    equal = nodes.add("Equal", "equal", ordered, largest)
    # A NaN, now -inf, must not be found before a real -inf.
    found = nodes.add("And", "found", equal, nodes.add("Not", "no_nan", nan))
    counted = nodes.add("Cast", "counted", found, to=TensorProto.FLOAT)
    label = nodes.add("ArgMax", "label", counted, axis=1, keepdims=0)
    total = _add_softmax(nodes, logits, largest, temperature=1.0).total
    bad = nodes.add("IsNaN", "bad", total)
    confidence = nodes.add("Reciprocal", "reciprocal", total)
    return Answer(label, nodes.add("Where", "confidence", bad, 0.0, confidence))


def add_gate(
    nodes: Nodes,
    logits: str,
    score: Score,
    threshold: Threshold,
    *,
    classes: int,
    tensor: str | None = None,
) -> Decision:
    """Add a gate that reads logits f32 [n, K].

    Parameters
    ----------
    threshold
        One number, or K by predicted class; rounded to float32 as everywhere.
    tensor
        The score [n] or [n, 1] that the model itself puts out, for a learned gate.
    """
    largest = nodes.reduce("ReduceMax", "largest", logits, keep=True)
    softmax = _add_softmax(nodes, logits, largest, temperature=score.temperature)
    label = nodes.add("ArgMax", "label", logits, axis=1, keepdims=0)
    limit = nodes.constant("threshold", threshold)
    if isinstance(threshold, list):
        limit = nodes.add("Gather", "class_threshold", limit, label, axis=0)
    if score.name == "max_softmax":
        confidence = nodes.add("Reciprocal", "confidence", softmax.total)
        product = nodes.add("Mul", "product", softmax.total, limit)
        return Decision(label, confidence, nodes.add("Less", "kept", product, 1.0))
    confidence = _add_score(nodes, logits, score, softmax, classes=classes, tensor=tensor)
    above = nodes.add("Greater", "above", confidence, limit)
    valid = nodes.add("Not", "valid", nodes.add("IsNaN", "bad", softmax.total))
    return Decision(label, confidence, nodes.add("And", "kept", above, valid))


def _add_softmax(nodes: Nodes, logits: str, largest: str, *, temperature: float) -> _Softmax:
    exponent = nodes.add("Sub", "distance", logits, largest)
    if temperature != 1.0:
        exponent = nodes.add("Div", "exponent", exponent, temperature)
    weight = nodes.add("Exp", "weight", exponent)
    return _Softmax(exponent, weight, nodes.reduce("ReduceSum", "total", weight))


def _add_score(
    nodes: Nodes,
    logits: str,
    score: Score,
    softmax: _Softmax,
    *,
    classes: int,
    tensor: str | None,
) -> str:
    """Add a score f32 [n] other than max-softmax, with the formulas of `kernels.reference`."""
    if tensor is not None:
        return _add_learned(nodes, tensor)
    if score.name == "margin":
        value = _add_margin(nodes, softmax, classes)
    elif score.name == "entropy":
        value = _add_entropy(nodes, softmax, classes)
    else:
        value = _add_p_norm(nodes, logits, float(score.p or 0))
    return nodes.add("Clip", "confidence", value, 0.0, 1.0)


def _add_learned(nodes: Nodes, tensor: str) -> str:
    """Take the model's own score; what is not a finite number counts as 0."""
    flat = nodes.add("Reshape", "flat", tensor, [-1])
    nan = nodes.add("IsNaN", "score_nan", flat)
    infinite = nodes.add("IsInf", "score_infinite", flat)
    wrong = nodes.add("Or", "score_wrong", nan, infinite)
    return nodes.add("Where", "confidence", wrong, 0.0, flat)


def _add_margin(nodes: Nodes, softmax: _Softmax, classes: int) -> str:
    if classes == 1:
        return nodes.add("Reciprocal", "margin", softmax.total)
    pair = nodes.largest("pair", softmax.weight, 2)
    signed = nodes.add("Mul", "signed", pair, [1.0, -1.0])
    return nodes.add(
        "Div", "margin", nodes.reduce("ReduceSum", "difference", signed), softmax.total
    )


def _add_entropy(nodes: Nodes, softmax: _Softmax, classes: int) -> str:
    """``1 - H / ln K``, where ``H = ln total - sum(weight * exponent) / total``."""
    exponent = nodes.add("Max", "floored", softmax.exponent, _FLOOR)
    weighted = nodes.add("Mul", "weighted", softmax.weight, exponent)
    summed = nodes.reduce("ReduceSum", "summed", weighted)
    mean = nodes.add("Div", "mean", summed, softmax.total)
    negative = nodes.add("Sub", "negative", mean, nodes.add("Log", "log", softmax.total))
    share = nodes.add("Mul", "share", negative, 1 / np.log(max(2, classes)))
    return nodes.add("Add", "entropy", share, 1.0)


def _add_p_norm(nodes: Nodes, logits: str, p: float) -> str:
    """``max(c) / ||c||_p`` of the centred finite logits ``c``."""
    finite = nodes.add("Greater", "finite", logits, -np.inf)
    kept = nodes.add("Where", "finite_logits", finite, logits, 0.0)
    counted = nodes.add("Cast", "counted", finite, to=TensorProto.FLOAT)
    count = nodes.reduce("ReduceSum", "count", counted, keep=True)
    mean = nodes.add("Div", "mean", nodes.reduce("ReduceSum", "sum", kept, keep=True), count)
    distance = nodes.add("Sub", "from_mean", kept, mean)
    return _add_ratio_to_norm(nodes, nodes.add("Where", "centred", finite, distance, 0.0), p)


def _add_ratio_to_norm(nodes: Nodes, centred: str, p: float) -> str:
    # Divided by the largest first, so that no power overflows. Where all are 0, so is the ratio.
    absolute = nodes.add("Abs", "absolute", centred)
    largest = nodes.reduce("ReduceMax", "scale", absolute, keep=True)
    scale = nodes.add("Max", "safe_scale", largest, _TINY)
    power = nodes.add("Pow", "power", nodes.add("Div", "scaled", absolute, scale), p)
    summed = nodes.reduce("ReduceSum", "powers", power, keep=True)
    norm = nodes.add("Max", "safe_norm", nodes.add("Pow", "norm", summed, 1 / p), _TINY)
    ratio = nodes.add("Div", "ratio", nodes.add("Div", "signed", centred, scale), norm)
    return nodes.reduce("ReduceMax", "p_norm", ratio)
