"""The launch of gate.cu: score, label, accept, and the escalated rows in order."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kernels.launch import (
    THREADS,
    WARP,
    Arguments,
    DeviceArray,
    Kernel,
    Launch,
    address,
    ceil_div,
    check_answers,
    check_count,
)

ScoreName = Literal["max_softmax", "margin", "entropy", "p_norm", "learned"]

_FEW_LANES = 4
_FEW_CLASSES = 128
_MANY_CLASSES = 4096


@dataclass(frozen=True)
class GateInputs:
    """What a gate reads; gate.cu has the meaning of each array.

    Attributes
    ----------
    logits
        f16 or f32 [rows, K], K >= 2.
    valid
        i32 [1].
    thresholds
        f32 [1] or [K], from `threshold_values`.
    temperature
        f32 [1], from `temperature_value`.
    buckets
        i32 [sizes], the ``buckets`` that `gate` is given.
    scores
        f32 [rows], for a learned gate.
    force
        u8 [samples].
    row_map
        i32 [rows]; without it a row's sample is the row itself.
    """

    logits: DeviceArray
    valid: DeviceArray
    thresholds: DeviceArray
    temperature: DeviceArray
    buckets: DeviceArray
    scores: DeviceArray | None = None
    force: DeviceArray | None = None
    row_map: DeviceArray | None = None


@dataclass(frozen=True)
class GateOutputs:
    """What a gate writes.

    Attributes
    ----------
    label, confidence, stage
        i32, f32, i8 [samples], for samples whose row is kept.
    idx, count
        i32 [rows] and i32 [1], samples that go on.
    bucket, bucket_index
        i32 [rounds], see `rounds`.
    idx_rows
        i32 [rows], the rows that go on, where they differ from the samples.
    """

    label: DeviceArray
    confidence: DeviceArray
    stage: DeviceArray
    idx: DeviceArray
    count: DeviceArray
    bucket: DeviceArray
    bucket_index: DeviceArray
    idx_rows: DeviceArray | None = None


@dataclass(frozen=True)
class GateScratch:
    """Memory that a gate uses: ``masks u64 [mask_words]``, and ``ticket u32 [1]``, zeroed once."""

    masks: DeviceArray
    ticket: DeviceArray


class _GateArguments(ctypes.Structure):
    _pointers = (
        "logits scores valid thresholds temperature force row_map buckets label confidence stage "
        "idx idx_rows count bucket bucket_index masks ticket"
    )
    _numbers = "rows classes rounds bucket_sizes per_class stage_number"
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _pointers.split()),
        *((name, ctypes.c_int) for name in _numbers.split()),
        ("p", ctypes.c_float),
    )


def threshold_values(threshold: float | Sequence[float], classes: int) -> npt.NDArray[np.float32]:
    """Return the thresholds to upload, f32 [1] or [K].

    Raises
    ------
    ValueError
        For another shape, or a number that is not finite or outside [0, 1].
    """
    values = np.atleast_1d(np.asarray(threshold, np.float32))
    if values.shape not in ((1,), (classes,)):
        raise ValueError(f"thresholds: expected 1 or {classes} numbers, got {list(values.shape)}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"thresholds: expected numbers in [0, 1], got {values.tolist()}")
    return values


def temperature_value(temperature: float) -> npt.NDArray[np.float32]:
    """Return the temperature to upload, f32 [1].

    Raises
    ------
    ValueError
        When it is not finite and positive as a float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        value = np.asarray([temperature], np.float32)
    if not (np.isfinite(value) & (value > 0)).all():
        raise ValueError(f"temperature: expected a finite float32 > 0, got {temperature}")
    return value


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """Return ascending batch sizes.

    Raises
    ------
    ValueError
        When there are none, or they do not ascend from at least 1.
    """
    sizes = tuple(int(size) for size in buckets)
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise ValueError(f"buckets: expected ascending positive sizes, got {list(buckets)}")
    return sizes


def rounds(rows: int, buckets: Sequence[int]) -> int:
    """Return in how many rounds of the largest bucket ``rows`` rows run at most."""
    return ceil_div(rows, check_buckets(buckets)[-1])


def lanes(classes: int, *, itemsize: int = 4, reads_twice: bool = False) -> int:
    """Return how many threads of a gate share a row: 4, a warp, or the block.

    Parameters
    ----------
    itemsize
        Bytes of a logit.
    reads_twice
        For a score in two passes: enough threads to hold the row in registers, where that can be.
    """
    if reads_twice:
        vectors = classes * itemsize // 16
        return next((n for n in (_FEW_LANES, WARP) if vectors <= n), THREADS)
    if classes <= _FEW_CLASSES:
        return _FEW_LANES
    return WARP if classes <= _MANY_CLASSES else THREADS


def mask_words(rows: int) -> int:
    """Return how many u64 a gate's masks need, whatever its score and classes."""
    return max(1, rows)


def gate(
    inputs: GateInputs,
    outputs: GateOutputs,
    scratch: GateScratch,
    *,
    buckets: Sequence[int],
    stage: int,
    score: ScoreName = "max_softmax",
    p: float = 2.0,
) -> Launch:
    """Return the launch of a gate: score, label, accept, and the escalated rows in order.

    Parameters
    ----------
    buckets
        Ascending batch sizes of the next stage.
    stage
        Written as the stage of the rows that are kept, 0 to 127.
    score
        ``learned`` reads ``inputs.scores``.
    p
        Of ``p_norm``, at least 1.

    Raises
    ------
    ValueError
        For an array of another dtype, shape or alignment than stated, arrays that overlap, fewer
        than 2 classes, buckets that do not ascend; the message names the array.
    """
    sizes = check_buckets(buckets)
    check_count("stage", stage, most=127)
    if not 1 <= p < float("inf"):
        raise ValueError(f"p: expected a finite number >= 1, got {p}")
    rows, classes = _check_gate(inputs, outputs, scratch, sizes)
    _check_learned(score, inputs.scores)
    itemsize = inputs.logits.dtype.itemsize
    threads_per_row = lanes(classes, itemsize=itemsize, reads_twice=score == "p_norm")
    variant = "tensor" if score == "learned" else score
    arrays = {**vars(inputs), **vars(outputs), **vars(scratch)}
    arguments = _GateArguments(
        **{name: address(array) for name, array in arrays.items()},
        rows=rows,
        classes=classes,
        rounds=rounds(rows, sizes),
        bucket_sizes=len(sizes),
        per_class=int(inputs.thresholds.shape != (1,)),
        stage_number=stage,
        p=p,
    )
    kernel = Kernel("gate", f"gate_{variant}_fp{8 * itemsize}_x{threads_per_row}")
    blocks = ceil_div(rows * threads_per_row, THREADS)
    return Launch(kernel, (blocks, 1, 1) if rows else None, arguments)


def _check_gate(
    inputs: GateInputs, outputs: GateOutputs, scratch: GateScratch, sizes: tuple[int, ...]
) -> tuple[int, int]:
    check = Arguments()
    rows, classes = check.read("logits", inputs.logits, "f16 f32", ("rows", "K")).shape
    check_count("rows", rows)
    check_count("classes", classes, least=2)
    per_class = inputs.thresholds.shape != (1,)
    check.read("valid", inputs.valid, "i32", (1,))
    check.read("thresholds", inputs.thresholds, "f32", (classes if per_class else 1,))
    check.read("temperature", inputs.temperature, "f32", (1,))
    check.read("buckets", inputs.buckets, "i32", (len(sizes),))
    if inputs.scores is not None:
        check.read("scores", inputs.scores, "f32", (rows,))
    if inputs.row_map is not None:
        check.read("row_map", inputs.row_map, "i32", (rows,))
    samples = check_answers(check, outputs.label, outputs.confidence, outputs.stage)
    if inputs.row_map is None:
        check_count("samples", samples, least=rows)
    if inputs.force is not None:
        check.read("force", inputs.force, "u8", (samples,))
    check.write("idx", outputs.idx, "i32", (rows,))
    check.write("count", outputs.count, "i32", (1,))
    if outputs.idx_rows is not None:
        check.write("idx_rows", outputs.idx_rows, "i32", (rows,))
    check.write("bucket", outputs.bucket, "i32", (rounds(rows, sizes),))
    check.write("bucket_index", outputs.bucket_index, "i32", (rounds(rows, sizes),))
    check.write("masks", scratch.masks, "u64", (mask_words(rows),))
    check.write("ticket", scratch.ticket, "u32", (1,))
    check.separate()
    return rows, classes


def _check_learned(score: ScoreName, scores: DeviceArray | None) -> None:
    if (score == "learned") != (scores is not None):
        found = "none" if scores is None else str(scores)
        raise ValueError(f"scores: expected for score 'learned' and only then, got {found}")
