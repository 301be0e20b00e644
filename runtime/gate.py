"""The gate on the host: the decisions of `kernels.reference`, vectorised in float32.

It must not cost more than the saver. Max-softmax is therefore left to the engine where that can be
added to its graph (`runtime.gate_graph`); other scores are computed here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import reference
from runtime.schema import Score

Float32 = npt.NDArray[np.float32]


class Decision(NamedTuple):
    """What a gate says of ``m`` rows: answers, and which rows to escalate (ascending, i64)."""

    label: npt.NDArray[np.int64]
    confidence: Float32
    escalated: npt.NDArray[np.int64]


class Top(NamedTuple):
    """What an engine computed itself, see `runtime.gate_graph`: label i64 [m], confidence f32 [m].

    The confidence of a row that is not valid is NaN.
    """

    label: npt.NDArray[np.int64]
    confidence: Float32


class _Buffers(NamedTuple):
    largest: Float32
    exponent: Float32
    total: Float32
    confidence: Float32


class HostGate:
    """Softmax-max, arg-max and threshold for rows of logits.

    Borrowed buffers: a decision is valid until the next call.

    Parameters
    ----------
    score
        How sure means; the last stage of a cascade has the default one, and a threshold of 0.
    rows, classes
        The most rows of one call, and the number of classes.
    """

    def __init__(self, score: Score, *, rows: int, classes: int) -> None:
        self._score = score
        self._buffers = _Buffers(
            np.empty((rows, 1), np.float32),
            np.empty((rows, classes), np.float32),
            np.empty(rows, np.float32),
            np.empty(rows, np.float32),
        )
        self._views: dict[int, _Buffers] = {}

    def answer(
        self, logits: Float32, *, top: Top | None = None
    ) -> tuple[npt.NDArray[np.int64], Float32]:
        """Return label i64 [m] and confidence f32 [m] of a last stage's logits f32 [m, K].

        ``top``, where the engine gave it, spares the softmax.
        """
        if top is None:
            label, confidence, _ = self._softmax(logits)
        else:
            label, confidence = top
            _repair(logits, label, confidence, confidence)
        return label, confidence

    def decide(
        self,
        logits: Float32,
        threshold: float | Float32,
        *,
        top: Top | None = None,
        tensor: Float32 | None = None,
        force: npt.NDArray[np.uint8] | None = None,
    ) -> Decision:
        """Return labels, confidences and the rows to escalate.

        Parameters
        ----------
        logits
            f32 [m, K].
        threshold
            float32, one number or [K] by predicted class.
        top
            Confidence and label, where the engine gave them. Those of a bad row are not mended: it
            escalates, and a later stage answers it.
        tensor
            f32 [m], the score a learned gate put out; else scores come from ``logits``.
        force
            u8 [m], non-zero escalates.
        """
        if top is None:
            label, confidence, total = self._softmax(logits)
        else:
            label, confidence = top
            total = np.reciprocal(confidence, out=self._rows(len(confidence)).total)
        limit = threshold if isinstance(threshold, float) else threshold[label]
        if self._score.name == "max_softmax":
            kept = reference.accept(total, limit)
        else:
            confidence = self._other_score(logits, tensor)
            kept = (confidence > limit) & ~np.isnan(total)
        if force is not None:
            kept &= force == 0
        return Decision(label, confidence, (~kept).nonzero()[0])

    def _softmax(self, logits: Float32) -> tuple[npt.NDArray[np.int64], Float32, Float32]:
        # ufunc.reduce, not ndarray.max and sum: at one row their Python wrappers cost as much as
        # the saver. A bad row's total is NaN, which no threshold accepts.
        largest, exponent, total, confidence = self._rows(len(logits))
        np.maximum.reduce(logits, axis=1, keepdims=True, out=largest)
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(logits, largest, out=exponent)
            if self._score.temperature != 1.0:
                exponent /= np.float32(self._score.temperature)
        np.exp(exponent, out=exponent)
        np.add.reduce(exponent, axis=1, out=total)
        label: npt.NDArray[np.int64] = logits.argmax(1)
        np.reciprocal(total, out=confidence)
        _repair(logits, label, confidence, total)
        return label, confidence, total

    def _rows(self, rows: int) -> _Buffers:
        views = self._views.get(rows)
        if views is None:
            views = self._views[rows] = _Buffers(*(buffer[:rows] for buffer in self._buffers))
        return views

    def _other_score(self, logits: Float32, tensor: Float32 | None) -> Float32:
        if tensor is not None:
            return np.nan_to_num(tensor, copy=True, nan=0.0, posinf=0.0, neginf=0.0)
        score = self._score
        p = {} if score.p is None else {"p": score.p}
        value = reference.score(logits, score.name, temperature=score.temperature, **p)
        return value.astype(np.float32)


def _repair(
    logits: Float32, label: npt.NDArray[np.int64], confidence: Float32, sign: Float32
) -> None:
    """Mend label and confidence, in place, of the rows whose ``sign`` f32 [m] is NaN."""
    if math.isnan(np.add.reduce(sign)):
        bad = np.isnan(sign)
        label[bad] = reference.softmax(logits[bad]).label
        confidence[bad] = 0.0
