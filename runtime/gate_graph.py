"""Softmax and its largest entry, added to a stage's own ONNX graph when it is loaded on the CPU.

The engine then computes what the gate reads (confidence and label) in the run that it makes anyway.
The bundle's file stays as it is: a protobuf message followed by another one of its type is the two
merged, so a fragment with the further nodes and outputs is appended to the bytes of the model. That
needs no onnx package on the device.

Field numbers are those of onnx.proto3 (github.com/onnx/onnx, Apache-2.0).
"""

from __future__ import annotations

import struct

CONFIDENCE = "tinysaver.confidence"
"""f32 [n, 1], the largest softmax probability; NaN in a row that is not valid."""

LABEL = "tinysaver.label"
"""i64 [n, 1], lowest index of the largest logit."""

_ONE, _LARGEST, _PLACE = "tinysaver.one", "tinysaver.largest", "tinysaver.place"
_TEMPERATURE, _SCALED, _SOFTMAX = "tinysaver.temperature", "tinysaver.scaled", "tinysaver.softmax"
_FLOAT, _INT64, _INT_ATTRIBUTE = 1, 7, 2


def with_confidence(model: bytes, logits: str, temperature: float) -> bytes:
    """Return a serialised ONNX model (opset >= 10) with the outputs `CONFIDENCE` and `LABEL`.

    Parameters
    ----------
    model
        A serialised ``ModelProto`` without external data.
    logits
        Name of its output f32 [n, K].
    """
    parts = [_field(5, _tensor(_ONE, _INT64, [1], struct.pack("<q", 1)))]
    # Labels by the logits themselves: rounding can make two probabilities equal.
    parts.append(_field(1, _node("TopK", [logits, _ONE], [_LARGEST, LABEL], axis=1)))
    if temperature != 1.0:
        parts.append(_field(5, _tensor(_TEMPERATURE, _FLOAT, [], struct.pack("<f", temperature))))
        parts.append(_field(1, _node("Div", [logits, _TEMPERATURE], [_SCALED])))
        logits = _SCALED
    parts.append(_field(1, _node("Softmax", [logits], [_SOFTMAX], axis=1)))
    parts.append(_field(1, _node("TopK", [_SOFTMAX, _ONE], [CONFIDENCE, _PLACE], axis=1)))
    parts.append(_field(12, _output(CONFIDENCE, _FLOAT)))
    parts.append(_field(12, _output(LABEL, _INT64)))
    graph = _field(7, b"".join(parts))
    return model + graph


def _node(kind: str, inputs: list[str], outputs: list[str], *, axis: int | None = None) -> bytes:
    text = [_field(1, name.encode()) for name in inputs]
    text += [_field(2, name.encode()) for name in outputs]
    text.append(_field(4, kind.encode()))
    if axis is not None:
        attribute = _field(1, b"axis") + _number(3, axis) + _number(20, _INT_ATTRIBUTE)
        text.append(_field(5, attribute))
    return b"".join(text)


def _tensor(name: str, kind: int, shape: list[int], content: bytes) -> bytes:
    sizes = b"".join(_number(1, size) for size in shape)
    return sizes + _number(2, kind) + _field(8, name.encode()) + _field(9, content)


def _output(name: str, kind: int) -> bytes:
    rows, one = _field(1, _field(2, b"tinysaver.n")), _field(1, _number(1, 1))
    tensor = _number(1, kind) + _field(2, rows + one)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    text = bytearray()
    while value > 0x7F:
        text.append(value & 0x7F | 0x80)
        value >>= 7
    text.append(value)
    return bytes(text)
