"""Bytes that kernels move, counted at every access by the CPU emulation, against the least.

A count is of bytes that threads ask for. Where neighbours ask for the same bytes, or leave gaps, a
device moves others: its memory moves sectors of 32 bytes, once if a cache holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kernels import frames, ops, reference
from tests.cuda_cpu.emulation import EmulatedLauncher
from tests.kernels import gate_cases
from tests.kernels.dense_cases import Plan
from tests.kernels.gate_cases import Case
from tests.kernels.machine import EmulatedMachine
from tests.kernels.preprocess_cases import Source, network, upload_table

SECTOR = 32
_ANSWER = 4 + 4 + 1  # label, confidence, stage

GATES = (
    Case(256, 10, "float32"),
    Case(256, 10, "float16"),
    Case(256, 1000, "float32"),
    Case(256, 1000, "float16"),
    Case(1025, 1001, "float16"),
    Case(4097, 10, "float16"),
    Case(256, 21843, "float16"),
    Case(256, 1000, "float16", score="margin"),
    Case(256, 1000, "float16", score="entropy"),
    Case(256, 1000, "float16", score="p_norm"),
    Case(256, 21843, "float16", score="p_norm"),
)
ESCALATED = 0.3
"""Share of the rows that a gate sends on."""
GATHER = (Plan(64, 16), (3, 224, 224), "float16")
SCATTER = (Plan(64, 20), 1000, "float16")
PREPROCESS = (Source(480, 640, "rgb"), Source(720, 1280, "nv12"))
INPUT = network(224, 224)


class Traffic(NamedTuple):
    """What one launch moved.

    Attributes
    ----------
    counted
        Bytes read and written, summed over all threads.
    least
        Bytes of all inputs that matter and all outputs, each once.
    sectors
        The same in whole sectors of the device's memory, where inputs have gaps.
    """

    kernel: str
    case: str
    counted: int
    least: int
    sectors: int


def all_traffic() -> Iterator[Traffic]:
    """Run the cases of the table."""
    yield from map(gate, GATES)
    yield gather(*GATHER)
    yield scatter(*SCATTER)
    for source in PREPROCESS:
        yield preprocess(source)


def gate(case: Case) -> Traffic:
    """Run a gate that sends on `ESCALATED` of its rows."""
    logits = case.values()
    score = case.score if case.score != "learned" else "max_softmax"
    limit = float(np.quantile(reference.score(logits, score, p=case.p), ESCALATED))
    case = Case(**{**vars(case), "threshold": limit})
    launcher, machine = _machine()
    arrays = gate_cases.upload(case, logits, machine)
    machine.run(gate_cases.launch(case, arrays))
    count = int(machine.download(arrays.outputs.count)[0])
    rounds = ops.rounds(case.rows, case.buckets)
    least = logits.nbytes + (case.rows - count) * _ANSWER + count * 4 + 4 + 8 * rounds
    text = f"{case.rows} x {case.classes}, {case.dtype}, {count} sent on"
    return _traffic(launcher, text, least)


def gather(plan: Plan, shape: tuple[int, ...], dtype: str) -> Traffic:
    """Run a gather of one tensor."""
    launcher, machine = _machine()
    source = machine.upload(np.zeros((plan.rows, *shape), dtype))
    target = machine.upload(np.zeros((plan.dense_rows, *shape), dtype))
    machine.run(ops.gather([(source, target)], plan.upload(machine)))
    row = int(np.prod(shape)) * np.dtype(dtype).itemsize
    filled = int(plan.bucket().sum())
    text = f"{plan.count} rows of {' x '.join(map(str, shape))}, {dtype}"
    return _traffic(launcher, text, 2 * filled * row + 4 * (plan.count + 1 + plan.rounds))


def scatter(plan: Plan, classes: int, dtype: str) -> Traffic:
    """Run a scatter of one stage's answers."""
    launcher, machine = _machine()
    answers = tuple(
        machine.upload(np.zeros(plan.rows, kind)) for kind in (np.int32, np.float32, np.int8)
    )
    launch = ops.scatter(
        machine.upload(np.zeros((plan.dense_rows, classes), dtype)),
        plan.upload(machine),
        answers,  # type: ignore[arg-type]  # three of them
        temperature=machine.upload(ops.temperature_value(1.0)),
        stage=1,
    )
    machine.run(launch)
    row = classes * np.dtype(dtype).itemsize + 4 + _ANSWER
    return _traffic(launcher, f"{plan.count} rows x {classes}, {dtype}", plan.count * row + 8)


def preprocess(source: Source) -> Traffic:
    """Run one frame to `INPUT` in fp16."""
    launcher, machine = _machine()
    table = upload_table([source.upload(source.frame(), machine)], INPUT, machine)
    out = machine.upload(np.zeros((1, *INPUT.shape), "float16"))
    machine.run(ops.preprocess(table, machine.upload(np.array([1], np.int32)), out, INPUT))
    text = f"{source.format} {source.height} x {source.width} to {' x '.join(map(str, INPUT.size))}"
    rest = out.nbytes + table.nbytes + 4
    touched, sectors = _frame_bytes(source)
    return _traffic(launcher, text, touched + rest, sectors + rest)


def _frame_bytes(source: Source) -> tuple[int, int]:
    """Return the bytes of a frame that a stretch to `INPUT` needs: as they are, in sectors."""
    rows, columns = (
        np.unique(np.concatenate(frames.taps(side, target)[:2]))
        for side, target in zip((source.height, source.width), INPUT.size, strict=True)
    )
    planes = [(rows, columns, 3)]
    if source.format == "nv12":
        planes = [(rows, columns, 1), (np.unique(rows // 2), np.unique(columns // 2), 2)]
    touched = sum(len(y) * len(x) * size for y, x, size in planes)
    sectors = 0
    for y, x, size in planes:
        places = (x[:, None] * size + np.arange(size)).ravel()
        sectors += len(y) * len(np.unique(places // SECTOR)) * SECTOR
    return touched, sectors


def _machine() -> tuple[EmulatedLauncher, EmulatedMachine]:
    launcher = EmulatedLauncher()
    return launcher, EmulatedMachine(launcher)


def _traffic(
    launcher: EmulatedLauncher, case: str, least: int, sectors: int | None = None
) -> Traffic:
    (done,) = launcher.launched
    counted = done.bytes_read + done.bytes_written
    return Traffic(done.kernel.name, case, counted, least, sectors or counted)
