"""The gather and scatter kernels on the CPU emulation against the reference."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import ops
from tests.kernels.dense_cases import Plan, run_gather, run_scatter
from tests.kernels.gate_cases import make_logits
from tests.kernels.machine import emulated

PLANS = [
    Plan(1, 0),
    Plan(1, 1),
    Plan(7, 3),
    Plan(32, 32),
    Plan(33, 33),
    Plan(33, 20),
    Plan(100, 64),
    Plan(100, 65),
    Plan(100, 0, padded=True),
    Plan(100, 33, padded=True),
    Plan(100, 100, (3, 7)),
    Plan(257, 256, (1, 256)),
]


def tensor(rows: int, *shape: int, dtype: str = "float32") -> np.ndarray:
    rng = np.random.default_rng(rows)
    return rng.integers(0, 100, (rows, *shape)).astype(dtype)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_gather_fills_each_round_and_no_more(plan: Plan) -> None:
    run_gather(plan, [tensor(plan.rows, 3, 4)], emulated())


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), "float32"),
        ((1,), "uint8"),
        ((5,), "float16"),
        ((3, 5, 7), "uint8"),
        ((4,), "float32"),
        ((3, 33, 40), "float32"),
        ((1100,), "float16"),
        ((4099,), "uint8"),
    ],
)
def test_gather_of_rows_of_any_size(shape: tuple[int, ...], dtype: str) -> None:
    run_gather(Plan(9, 5), [tensor(9, *shape, dtype=dtype)], emulated())


@pytest.mark.parametrize("offset", [0, 1, 4, 16])
def test_gather_of_misaligned_memory(offset: int) -> None:
    run_gather(Plan(9, 5), [tensor(9, 64, dtype="uint8")], emulated(), offset=offset)


def test_gather_of_several_tensors_in_one_launch() -> None:
    tensors = [tensor(50, 3, 8, 8), tensor(50, 10), tensor(50, 2, dtype="uint8"), tensor(50)]
    run_gather(Plan(50, 21), tensors, emulated(seed=4))


def test_gather_of_more_rows_than_a_grid_is_high() -> None:
    run_gather(Plan(70_000, 66_000, (70_000,)), [tensor(70_000, dtype="uint8")], emulated())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["plain", "edge", "ties"])
@pytest.mark.parametrize("classes", [2, 10, 33, 1001, 4100])
@pytest.mark.parametrize("plan", [Plan(1, 1), Plan(33, 20), Plan(20, 0, padded=True)], ids=str)
def test_scatter_writes_answers_to_their_samples(
    plan: Plan, classes: int, kind: str, dtype: str
) -> None:
    rng = np.random.default_rng([plan.rows, classes])
    logits = make_logits(rng, plan.dense_rows, classes, kind).astype(dtype)
    run_scatter(plan, logits, emulated(seed=2), temperature=1.5)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("classes", [3, 10, 1001, 4100])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_scatter_of_combined_logits(classes: int, weight: float, dtype: str) -> None:
    plan = Plan(40, 23)
    rng = np.random.default_rng(classes)
    logits = rng.standard_normal((plan.dense_rows, classes)).astype(dtype)
    other = rng.standard_normal((plan.rows, classes)).astype(dtype)
    run_scatter(plan, logits, emulated(), other=other, weight=weight)


@pytest.mark.parametrize("offset", [4, 12])
def test_scatter_of_misaligned_logits(offset: int) -> None:
    plan = Plan(20, 9)
    logits = tensor(plan.dense_rows, 37)
    run_scatter(plan, logits, emulated(), offset=offset)


def test_select_switches_to_the_index_or_sets_the_bucket_it_names() -> None:
    machine = emulated()
    index = machine.upload(np.array([2], np.int32))
    machine.run(
        ops.select(index, [70], is_switch=True), ops.select(index, [5, 6, 7], is_switch=False)
    )
    switch, chain = (launched.conditionals for launched in machine.launcher.launched)
    assert switch == ((70, 2),)
    assert chain == ((5, 0), (6, 0), (7, 1))


def test_select_of_an_empty_round_runs_nothing() -> None:
    machine = emulated()
    index = machine.upload(np.array([3], np.int32))
    machine.run(ops.select(index, [5, 6, 7], is_switch=False))
    assert [value for _, value in machine.launcher.launched[0].conditionals] == [0, 0, 0]


def test_gather_of_a_tensor_above_two_gigabytes() -> None:
    """Only the rows that are copied are ever touched; both lie past 2^31 bytes."""
    rows, row_bytes = 2060, 2**20
    tensor = np.zeros((rows, row_bytes), np.uint8)
    idx = np.array([2050, 2059], np.int32)
    tensor[idx] = np.array([[7], [9]], np.uint8)
    target = np.zeros((2, row_bytes), np.uint8)
    machine = emulated()
    escalated = ops.Escalated(
        machine.upload(idx),
        machine.upload(np.array([2], np.int32)),
        machine.upload(np.array([2], np.int32)),
        largest=2,
        rounds=1,
    )
    pair = [ops.DeviceArray(a.ctypes.data, a.dtype, a.shape) for a in (tensor, target)]
    machine.run(ops.gather([(pair[0], pair[1])], escalated))
    np.testing.assert_array_equal(target, tensor[idx])
