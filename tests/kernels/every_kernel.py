"""One small run of every kernel, checked against the reference: few blocks, most branches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from kernels import ops
from kernels.launch import DeviceArray, Launch
from tests.cuda_cpu import build
from tests.cuda_cpu.emulation import KERNELS
from tests.kernels import gate_cases
from tests.kernels.dense_cases import Array, Plan, run_gather, run_scatter
from tests.kernels.gate_cases import Case, make_logits
from tests.kernels.machine import Machine
from tests.kernels.preprocess_cases import FORMATS, Source, network, run_preprocess

Run = Callable[[Machine], None]

SCORES: dict[str, ops.ScoreName] = {
    "max_softmax": "max_softmax",
    "margin": "margin",
    "entropy": "entropy",
    "p_norm": "p_norm",
    "tensor": "learned",
}
DTYPES = {"fp16": "float16", "fp32": "float32"}
# By the lanes that share a row: two blocks each, the second one not full.
GATE_SHAPES = {4: (70, 10), 32: (13, 131), 256: (2, 4100)}
SCATTER_SHAPES = {32: (13, 203), 256: (2, 4100)}


class LowGrid:
    """A machine with grids at most two rows high, so that blocks take one row after another."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def upload(self, values: Array, *, offset: int = 0) -> DeviceArray:
        return self._machine.upload(values, offset=offset)

    def download(self, array: DeviceArray) -> Array:
        return self._machine.download(array)

    def run(self, *launches: Launch) -> None:
        self._machine.run(*(_lowered(launch) for launch in launches))


def _lowered(launch: Launch) -> Launch:
    if launch.grid is None:
        return launch
    x, y, z = launch.grid
    return dataclasses.replace(launch, grid=(x, min(y, 2), z))


def run_gate(score: ops.ScoreName, dtype: str, lanes: int, machine: Machine) -> None:
    rows, classes = GATE_SHAPES[lanes]
    offset = np.dtype(dtype).itemsize
    gate_cases.run(
        Case(
            *(rows, classes, dtype, "edge", score),
            offset=offset,
            valid=rows - 1,
            force=True,
            samples=rows + 5,
        ),
        machine,
    )


def run_one_scatter(dtype: str, lanes: int, combined: bool, machine: Machine) -> None:
    rows, classes = SCATTER_SHAPES[lanes]
    plan = Plan(rows, rows - 1, (rows,))
    rng = np.random.default_rng(lanes)
    logits = make_logits(rng, rows, classes, "edge").astype(dtype)
    other = rng.standard_normal((rows, classes)).astype(dtype) if combined else None
    offset = np.dtype(dtype).itemsize
    run_scatter(plan, logits, machine, other=other, weight=0.7, offset=offset)


def run_gather_of_words(dtype: str, machine: Machine) -> None:
    """Gather two tensors of 4-byte or 1-byte words, or many 4-byte words as vectors of 16."""
    shapes = {"uint8": (1031, 3), "float32": (1027, 9), "vector": (4116, 8)}
    tensors = [
        np.arange(7 * size).reshape(7, size).astype("float32" if dtype == "vector" else dtype)
        for size in shapes[dtype]
    ]
    run_gather(Plan(7, 5, (2, 4)), tensors, LowGrid(machine))


def run_preprocess_of_all(dtype: str, machine: Machine) -> None:
    """Escalated frames of every format into a letterbox, with tiles that are not full."""
    sources = [Source(6, 10, name, pitch=3, offset=1, split=name == "nv12") for name in FORMATS]
    net = network(35, 34, "bgr", "letterbox", unit=False)
    plan = Plan(len(sources), len(sources) - 1, (2, 4))
    run_preprocess(sources, net, LowGrid(machine), dtype=dtype, plan=plan)


def run_select(machine: Machine) -> None:
    index = machine.upload(np.array([1], np.int32))
    machine.run(
        ops.select(index, [70], is_switch=True), ops.select(index, [5, 6, 7], is_switch=False)
    )


def _runs() -> Iterator[tuple[str, Run]]:
    for (suffix, score), (short, dtype), lanes in itertools.product(
        SCORES.items(), DTYPES.items(), GATE_SHAPES
    ):
        yield f"gate_{suffix}_{short}_x{lanes}", functools.partial(run_gate, score, dtype, lanes)
    for (short, dtype), lanes, combined in itertools.product(
        DTYPES.items(), SCATTER_SHAPES, (False, True)
    ):
        name = f"scatter_{'combined_' if combined else ''}{short}_x{lanes}"
        yield name, functools.partial(run_one_scatter, dtype, lanes, combined)
    for size, dtype in {16: "vector", 4: "float32", 1: "uint8"}.items():
        yield f"gather_{size}", functools.partial(run_gather_of_words, dtype)
    for short, dtype in DTYPES.items():
        yield f"preprocess_{short}", functools.partial(run_preprocess_of_all, dtype)
    yield "select_bucket", run_select


RUNS: dict[str, Run] = dict(_runs())


def kernel_names() -> set[str]:
    """Return the names of all kernels there are."""
    return {name for source in KERNELS.glob("*.cu") for name in build.kernel_names(source)}
