"""The gate kernel on the CPU emulation against the float64 reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ops, reference
from tests.kernels.gate_cases import Case, check, launch, run, upload
from tests.kernels.machine import emulated

ROWS = (1, 2, 31, 32, 33, 255, 256, 257, 1000, 1025, 4097)
CLASSES = (2, 3, 10, 31, 33, 1000, 1001, 21843)
MOST_LOGITS = 1_200_000
DTYPES = ("float16", "float32")


def matrix() -> list[Case]:
    """Every number of rows with every number of classes, up to a size."""
    cases = [
        Case(rows, classes, dtype, kind, seed=number)
        for number, kind in enumerate(("plain", "edge"))
        for rows in ROWS
        for classes in CLASSES
        for dtype in DTYPES
        if rows * classes <= MOST_LOGITS
    ]
    return [*cases, Case(4097, 1000, "float16"), Case(257, 21843, "float32", "edge")]


@pytest.mark.slow
@pytest.mark.parametrize("case", matrix(), ids=str)
def test_every_size_equals_the_reference(case: Case) -> None:
    run(case, emulated())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "edge", "ties", "denormal"])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (33, 10), (257, 31), (67, 1001), (3, 5003)])
def test_some_sizes_equal_the_reference(dtype: str, kind: str, rows: int, classes: int) -> None:
    run(Case(rows, classes, dtype, kind), emulated())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", ["margin", "entropy", "p_norm", "learned"])
@pytest.mark.parametrize("kind", ["plain", "edge"])
@pytest.mark.parametrize(("rows", "classes"), [(2, 2), (70, 10), (33, 130), (9, 1001), (5, 4500)])
def test_other_scores(score, kind: str, dtype: str, rows: int, classes: int) -> None:
    run(Case(rows, classes, dtype, kind, score=score), emulated())


@pytest.mark.parametrize("p", [1.0, 3.0, 60.0])
def test_p_norm_with_other_powers(p: float) -> None:
    run(Case(40, 33, score="p_norm", p=p, kind="edge"), emulated())


@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize(("rows", "classes"), [(300, 10), (300, 200), (40, 4100)])
def test_any_order_of_blocks_and_threads_gives_the_same(seed: int, rows: int, classes: int) -> None:
    run(Case(rows, classes, kind="edge", force=True), emulated(seed=seed, resident=1 + seed % 5))


@pytest.mark.parametrize("offset", [4, 8, 12])
@pytest.mark.parametrize(("rows", "classes"), [(5, 3), (65, 10), (20, 1001)])
def test_misaligned_rows_of_fp32(offset: int, rows: int, classes: int) -> None:
    run(Case(rows, classes, offset=offset), emulated())


@pytest.mark.parametrize("offset", [2, 6, 10, 14])
@pytest.mark.parametrize(("rows", "classes"), [(5, 3), (65, 10), (20, 1001)])
def test_misaligned_rows_of_fp16(offset: int, rows: int, classes: int) -> None:
    run(Case(rows, classes, "float16", offset=offset), emulated())


def count(case: Case) -> int:
    """Run one case, check it, and return how many rows it sends on."""
    logits, machine = case.values(), emulated()
    arrays = upload(case, logits, machine)
    machine.run(launch(case, arrays))
    check(case, logits, arrays, machine)
    return int(machine.download(arrays.outputs.count)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("threshold", "escalated"), [(1.0, 70), (0.0, 0)])
def test_threshold_one_sends_all_on_and_zero_none(
    threshold: float, escalated: int, dtype: str
) -> None:
    logits = np.full((70, 12), -np.inf)
    logits[:, 5] = 3.0  # as sure as can be: total is 1
    logits[::2] = np.random.default_rng(0).standard_normal((35, 12))
    case = Case(70, 12, dtype, threshold=threshold, logits=logits.astype(dtype))
    assert count(case) == escalated


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 7, 8, 49, 64, 1000, 4099])
def test_exact_hits_are_decided_as_the_reference_does(classes: int, dtype: str) -> None:
    # Equal logits: total is K exactly. K times float32(1/K) may be just below 1 or not, which is a
    # matter of that float32 alone, so no rounding may blur it; where it is 1, the row goes on.
    threshold = np.float32(1 / classes)
    case = Case(70, classes, dtype, threshold=threshold, logits=np.ones((70, classes), dtype))
    goes_on = not float(threshold) * classes < 1
    assert count(case) == reference.gate(case.values(), threshold).count == 70 * goes_on


def test_threshold_by_predicted_class() -> None:
    limits = np.linspace(0.0, 1.0, 10)
    run(Case(257, 10, kind="edge", threshold=limits.tolist()), emulated())


@pytest.mark.parametrize("temperature", [1e-3, 0.25, 3.0, 1e30, 1e-42])
def test_temperatures(temperature: float) -> None:
    run(Case(70, 33, kind="edge", temperature=temperature), emulated())


@pytest.mark.parametrize("valid", [0, 1, 63, 64, 65, 199, 200, 500])
def test_rows_past_the_valid_ones_do_not_count(valid: int) -> None:
    run(Case(200, 10, valid=min(valid, 200)), emulated())


def test_a_valid_word_past_the_rows_is_cut() -> None:
    case = Case(50, 10)
    machine = emulated()
    logits = case.values()
    arrays = upload(dataclasses.replace(case, valid=10_000), logits, machine)
    machine.run(launch(case, arrays))
    check(case, logits, arrays, machine)


@pytest.mark.parametrize("score", ["max_softmax", "learned"])
def test_force_and_row_map(score) -> None:
    run(Case(130, 10, score=score, force=True, samples=400), emulated())


@pytest.mark.parametrize("largest", [1, 8, 100, 130])
def test_counts_over_the_largest_bucket_run_in_rounds(largest: int) -> None:
    buckets = tuple(size for size in (1, 2, 4, 8, 32, 100, 130) if size <= largest)
    run(Case(301, 10, buckets=buckets), emulated())


def test_replays_need_no_reset_by_the_host() -> None:
    machine = emulated(seed=3)
    case = Case(300, 10)
    logits = case.values()
    arrays = upload(case, logits, machine)
    again = launch(case, arrays)
    machine.run(again, again, again)
    check(case, logits, arrays, machine)


def test_a_replay_after_fewer_valid_rows_is_right() -> None:
    machine = emulated()
    case = Case(300, 10)
    logits = case.values()
    arrays = upload(case, logits, machine)
    few = dataclasses.replace(arrays.inputs, valid=machine.upload(np.array([70], np.int32)))
    machine.run(launch(case, arrays._replace(inputs=few)), launch(case, arrays))
    check(case, logits, arrays, machine)


def test_three_gates_chained_through_row_maps() -> None:
    """Each gate reads the rows that the last sent on; the count never leaves the device."""
    machine = emulated(seed=1)
    samples, classes = 400, 10
    rng = np.random.default_rng(5)
    logits = [rng.standard_normal((samples, classes)).astype(np.float32) for _ in range(3)]
    limits = (0.5, 0.4, 0.3)
    first = upload(Case(samples, classes), logits[0], machine)
    arrays, launches = [], []
    for stage, limit in enumerate(limits):
        outputs = dataclasses.replace(
            upload(Case(samples, classes), logits[stage], machine).outputs,
            label=first.outputs.label,
            confidence=first.outputs.confidence,
            stage=first.outputs.stage,
        )
        inputs = dataclasses.replace(
            first.inputs,
            logits=machine.upload(logits[stage]),
            thresholds=machine.upload(ops.threshold_values(limit, classes)),
            valid=arrays[-1].count if arrays else first.inputs.valid,
            row_map=arrays[-1].idx if arrays else None,
        )
        launches.append(ops.gate(inputs, outputs, first.scratch, buckets=Case.buckets, stage=stage))
        arrays.append(outputs)
    machine.run(*launches)

    rows = np.arange(samples)
    for stage, limit in enumerate(limits):
        gated = reference.gate(logits[stage][: len(rows)], limit, row_map=rows)
        found = machine.download(arrays[stage].idx)[: gated.count]
        np.testing.assert_array_equal(found, gated.idx[: gated.count])
        kept = np.setdiff1d(rows, found)
        assert (machine.download(first.outputs.stage)[kept] == stage).all()
        rows = gated.idx[: gated.count]
    assert 0 < len(rows) < samples
    assert (machine.download(first.outputs.label)[rows] == -77).all()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    rows=st.integers(1, 300),
    classes=st.integers(2, 300),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(("plain", "edge", "ties", "denormal")),
    score=st.sampled_from(("max_softmax", "margin", "entropy", "p_norm", "learned")),
    # Not 0: a score of 0 within rounding, as of equal logits, may then be decided either way.
    threshold=st.floats(0.0009765625, 1, width=32),
    temperature=st.floats(0.0625, 16, width=32),
    valid=st.integers(0, 300),
    buckets=st.sets(st.integers(1, 300), min_size=1, max_size=9),
    extra=st.none() | st.integers(0, 50),
    force=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_setting(rows, valid, buckets, extra, seed, **settings) -> None:
    case = Case(
        rows,
        valid=min(valid, rows),
        buckets=tuple(sorted(buckets)),
        samples=None if extra is None else rows + extra,
        seed=seed,
        **settings,
    )
    run(case, emulated(seed=seed % 3))


@pytest.mark.parametrize("threshold", [0.0, None, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", ["max_softmax", "margin", "entropy"])
@pytest.mark.parametrize(
    ("rows", "classes"), [(256, 10), (257, 33), (1000, 130), (4097, 10), (256, 1001), (256, 5003)]
)
def test_little_moves_beside_logits_and_outputs(
    rows: int, classes: int, score, dtype: str, threshold: float | None
) -> None:
    """One launch; logits read once; control words and all at most 5 % more."""
    case = Case(rows, classes, dtype, score=score, threshold=threshold)
    machine = emulated()
    arrays = upload(case, case.values(), machine)
    machine.run(launch(case, arrays))
    (launched,) = machine.launcher.launched
    escalated = int(machine.download(arrays.outputs.count)[0])
    rounds = ops.rounds(rows, case.buckets)
    outputs = 4 * escalated + 9 * (rows - escalated) + 4 + 8 * rounds
    needed = arrays.inputs.logits.nbytes + outputs
    assert launched.bytes_read + launched.bytes_written <= 1.05 * needed


def test_p_norm_reads_a_row_once_where_it_fits_in_registers() -> None:
    case = Case(8, 1024, "float16", score="p_norm")
    machine = emulated()
    machine.run(launch(case, upload(case, case.values(), machine)))
    (launched,) = machine.launcher.launched
    assert launched.bytes_read < 1.1 * 8 * 1024 * 2
