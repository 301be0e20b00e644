"""Launches that fill and empty a stage's dense batch: gather.cu and scatter.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from kernels.gate import lanes
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

MOST_TENSORS = 8
"""Tensors of one gather (gather.cu)."""

_WORDS = 4  # of a thread in gather.cu
_MOST_GRID_Y = 65535


@dataclass(frozen=True)
class Escalated:
    """The rows that a gate sends on, in the rounds in which the next stage takes them.

    Attributes
    ----------
    idx, count
        i32 [rows] and i32 [1].
    bucket
        i32 [rounds], rows to fill in each round. Without it every round is filled to the largest
        size, empty ones too.
    largest, rounds
        Rows of a round, and how many rounds.
    """

    idx: DeviceArray
    count: DeviceArray
    bucket: DeviceArray | None
    largest: int
    rounds: int


@dataclass(frozen=True)
class Combination:
    """Logits of an earlier stage to be added: ``logits + weight * other``.

    Attributes
    ----------
    other
        As the logits, [*, K].
    weight
        f32 [1].
    rows
        i32 [rows], row of ``other`` for each dense row; its sample by default.
    """

    other: DeviceArray
    weight: DeviceArray
    rows: DeviceArray | None = None


class DenseArguments(ctypes.Structure):
    """``Dense`` of dense.cuh."""

    _fields_ = (
        ("idx", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("bucket", ctypes.c_void_p),
        ("largest", ctypes.c_int),
        ("rounds", ctypes.c_int),
    )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("units", ctypes.c_longlong),
    )


class _GatherArguments(ctypes.Structure):
    _fields_ = (("tensors", _Tensor * MOST_TENSORS), ("dense", DenseArguments))


class _ScatterArguments(ctypes.Structure):
    _pointers = "logits other other_rows weight temperature idx count label confidence stage"
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _pointers.split()),
        *((name, ctypes.c_int) for name in ("rows", "classes", "stage_number")),
    )


def gather(pairs: Sequence[tuple[DeviceArray, DeviceArray]], escalated: Escalated) -> Launch:
    """Return the launch that copies escalated rows of one tensor or several into dense batches.

    Parameters
    ----------
    pairs
        Source [rows, ...] and target [rounds * largest, ...] of each tensor, of any one dtype.

    Raises
    ------
    ValueError
        For no or more than 8 tensors, a target of another dtype or shape than its source, overlap.
    """
    if not 1 <= len(pairs) <= MOST_TENSORS:
        raise ValueError(f"pairs: expected 1 to {MOST_TENSORS} tensors, got {len(pairs)}")
    check = Arguments()
    dense_rows = check_escalated(check, escalated)
    sizes = [_check_pair(check, index, pair, dense_rows) for index, pair in enumerate(pairs)]
    check.separate()
    addresses = [array.address for pair in pairs for array in pair]
    word = next(w for w in (16, 4, 1) if not any(n % w for n in (*addresses, *sizes)))
    tensors = (_Tensor * MOST_TENSORS)(
        *(
            _Tensor(source.address, target.address, size // word)
            for (source, target), size in zip(pairs, sizes, strict=True)
        )
    )
    parts = ceil_div(max(sizes) // word, THREADS * _WORDS)
    empty = dense_rows == 0 or parts == 0
    grid = (check_count("row bytes", parts), min(dense_rows, _MOST_GRID_Y), len(pairs))
    arguments = _GatherArguments(tensors, dense_arguments(escalated))
    return Launch(Kernel("gather", f"gather_{word}"), None if empty else grid, arguments)


def _check_pair(
    check: Arguments, index: int, pair: tuple[DeviceArray, DeviceArray], dense_rows: int
) -> int:
    """Return the bytes of a row."""
    source, target = pair
    if not source.shape:
        raise ValueError(f"source {index}: expected [rows, ...], got {source}")
    kind = f"{source.dtype.kind}{source.dtype.itemsize * 8}"
    check.read(f"source {index}", source, kind, ("rows", *source.shape[1:]))
    check.write(f"target {index}", target, kind, (dense_rows, *source.shape[1:]))
    return DeviceArray(0, source.dtype, source.shape[1:]).nbytes


def check_escalated(check: Arguments, escalated: Escalated) -> int:
    """Check the arrays of ``escalated``, and return its dense rows, ``rounds * largest``.

    Raises
    ------
    ValueError
        As for every launch.
    """
    check_count("largest", escalated.largest, least=1)
    check_count("rounds", escalated.rounds)
    (rows,) = check.read("idx", escalated.idx, "i32", ("rows",)).shape
    check.read("count", escalated.count, "i32", (1,))
    if escalated.bucket is not None:
        check.read("bucket", escalated.bucket, "i32", (escalated.rounds,))
    dense_rows = escalated.rounds * escalated.largest
    return check_count("rounds * largest", dense_rows, least=rows)


def dense_arguments(escalated: Escalated) -> DenseArguments:
    """Return the struct of dense.cuh."""
    return DenseArguments(
        escalated.idx.address,
        escalated.count.address,
        address(escalated.bucket),
        escalated.largest,
        escalated.rounds,
    )


def scatter(
    logits: DeviceArray,
    escalated: Escalated,
    answers: tuple[DeviceArray, DeviceArray, DeviceArray],
    *,
    temperature: DeviceArray,
    stage: int,
    combination: Combination | None = None,
) -> Launch:
    """Return the launch that writes a last stage's answers to the samples they belong to.

    Parameters
    ----------
    logits
        f16 or f32 [rounds * largest, K].
    answers
        Label, confidence and stage: i32, f32, i8 [samples].
    temperature
        f32 [1].
    stage
        Written as their stage, 0 to 127.

    Raises
    ------
    ValueError
        As for `gate`.
    """
    check = Arguments()
    check_count("stage", stage, most=127)
    dense_rows = check_escalated(check, escalated)
    (_, classes) = check.read("logits", logits, "f16 f32", (dense_rows, "K")).shape
    check_count("classes", classes, least=2)
    check.read("temperature", temperature, "f32", (1,))
    check_answers(check, *answers)
    pointers = _check_combination(check, combination, logits, escalated)
    check.separate()
    (rows,) = escalated.idx.shape
    arguments = _ScatterArguments(
        **pointers,
        logits=logits.address,
        temperature=temperature.address,
        idx=escalated.idx.address,
        count=escalated.count.address,
        **{n: a.address for n, a in zip(("label", "confidence", "stage"), answers, strict=True)},
        rows=rows,
        classes=classes,
        stage_number=stage,
    )
    threads_per_row = max(WARP, lanes(classes))
    variant = "scatter_combined" if combination else "scatter"
    name = f"{variant}_fp{8 * logits.dtype.itemsize}_x{threads_per_row}"
    blocks = ceil_div(rows * threads_per_row, THREADS)
    return Launch(Kernel("scatter", name), (blocks, 1, 1) if rows else None, arguments)


def _check_combination(
    check: Arguments,
    combination: Combination | None,
    logits: DeviceArray,
    escalated: Escalated,
) -> dict[str, int | None]:
    if combination is None:
        return {}
    kind = f"f{8 * logits.dtype.itemsize}"
    check.read("other", combination.other, kind, ("rows", logits.shape[1]))
    check.read("weight", combination.weight, "f32", (1,))
    if combination.rows is not None:
        check.read("other_rows", combination.rows, "i32", escalated.idx.shape)
    return {
        "other": combination.other.address,
        "weight": combination.weight.address,
        "other_rows": address(combination.rows),
    }
