"""How work is launched: which mode is chosen and why, how often the host waits and what for."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import Cascade
from runtime.devices import GpuOptions
from runtime.errors import GraphError
from tests.cuda import bundles
from tests.cuda_double.plans import write_plans

BUCKETS = (1, 4, 8)
ROWS = 8


def load(folder, mode=None):
    options = GpuOptions(mode=mode, verify=False)
    return Cascade.load(folder, "cuda", batch=ROWS, gpu=options)


def forced(gates, rows):
    """Send exactly these rows on, at each gate."""
    force = np.zeros((gates, ROWS), np.uint8)
    force[:, :rows] = 1
    return force


@pytest.mark.parametrize("rows", [0, 1, 5, ROWS])
def test_host_waits_once_for_each_gate_that_had_rows(rows, gpu, tmp_path):
    driver = gpu()
    folder = bundles.three_stages(tmp_path / "bundle")
    write_plans(folder, BUCKETS)
    frames = bundles.random_frames(ROWS, bundles.NV12["shape"])
    with load(folder, "host") as cascade:
        cascade.thresholds = (0.0, 0.0)
        driver.reset()
        pending = cascade.submit(frames, force=forced(2, rows))
        assert driver.counts.waits == (1 if rows == 0 else 2)
        results = pending.result()
    assert (results.stage == np.where(np.arange(ROWS) < rows, 2, 0)).all()


@pytest.mark.parametrize("mode", ["padded", "graph"])
@pytest.mark.parametrize("rows", [0, 1, 5, ROWS])
def test_other_modes_wait_for_nothing_but_the_results(mode, rows, gpu, tmp_path):
    driver = gpu()
    folder = bundles.three_stages(tmp_path / "bundle")
    write_plans(folder, BUCKETS)
    frames = bundles.random_frames(ROWS, bundles.NV12["shape"])
    with load(folder, mode) as cascade:
        cascade.thresholds = (0.0, 0.0)
        driver.reset()
        pending = cascade.submit(frames, force=forced(2, rows))
        assert driver.counts.waits == 0
        results = pending.result()
        assert driver.counts.waits == 1
    assert (results.stage == np.where(np.arange(ROWS) < rows, 2, 0)).all()


@pytest.mark.parametrize("mode", ["host", "padded", "graph"])
def test_no_batch_allocates(mode, folder, frames, gpu):
    driver = gpu()
    with load(folder, mode) as cascade:
        driver.reset()
        for rows in (ROWS, 3, 1):
            cascade.run(frames[:rows])
        assert driver.counts.allocations == 0


def test_a_graph_is_one_launch(folder, frames, gpu):
    driver = gpu()
    with load(folder, "graph") as cascade:
        driver.reset()
        cascade.run(frames)
        assert (driver.counts.launches, driver.counts.graph_launches) == (0, 1)


def test_a_graph_runs_the_smallest_body_that_holds_the_rows_and_none_for_no_rows(
    folder, frames, gpu
):
    driver = gpu()
    with load(folder, "graph") as cascade:
        cascade.thresholds = (0.0,)
        for rows, expected in (
            (0, []),
            (1, ["large at 1"]),
            (3, ["large at 4"]),
            (8, ["large at 8"]),
        ):
            driver.reset()
            cascade.run(frames, force=forced(1, rows))
            ran = [what.removeprefix("replayed ") for what in driver.history]
            assert [name for name in ran if name.startswith("large")] == expected


def test_a_smaller_input_takes_the_graph_of_its_bucket(folder, frames, gpu):
    driver = gpu()
    with load(folder, "graph") as cascade:
        driver.reset()
        cascade.run(frames[:3])
        assert "replayed saver at 4" in driver.history


def test_padded_runs_the_large_engine_at_its_largest_batch_whatever_the_count(folder, frames, gpu):
    driver = gpu()
    with load(folder, "padded") as cascade:
        cascade.thresholds = (0.0,)
        driver.reset()
        results = cascade.run(frames)
        assert "ran large at 8" in driver.history and (results.stage == 0).all()


def test_rounds_that_start_at_an_unaligned_row_are_run_on_copies(gpu, tmp_path):
    gpu()
    folder = bundles.two_stages(tmp_path / "bundle")
    write_plans(folder, {"saver": (20,), "large": (1, 3)})  # 3 rows of 7 logits: 84 bytes
    frames = bundles.random_frames(20, (6, 6, 3))
    with Cascade.load(folder, "cpu") as cascade:
        expected = cascade.run(frames, force=np.ones(20, np.uint8))
    for mode in ("host", "padded", "graph"):
        gpu()
        with Cascade.load(
            folder, "cuda", batch=20, gpu=GpuOptions(mode=mode, verify=False)
        ) as cascade:
            found = cascade.run(frames, force=np.ones(20, np.uint8))
        assert (found.label == expected.label).all()
        assert np.allclose(found.confidence, expected.confidence, atol=1e-5)


# Which mode is chosen


def test_graph_is_chosen_where_it_can_be(folder):
    with load(folder) as cascade:
        executor = cascade.executor
        assert (executor.mode, executor.mode_reason) == (
            "graph",
            "SWITCH nodes, no wait for a count",
        )


@pytest.mark.parametrize("mode", ["host", "padded"])
def test_the_mode_that_is_asked_for_is_taken(mode, folder):
    with load(folder, mode) as cascade:
        assert (cascade.executor.mode, cascade.executor.mode_reason) == (mode, "asked for")


@pytest.mark.slow  # compiles all kernels for CUDA 12
@pytest.mark.parametrize(
    ("version", "mode", "reason"),
    [
        ((12, 2), "host", "no graph: conditional nodes need a driver of CUDA 12.4, it has 12.2"),
        ((12, 6), "graph", "IF nodes, no wait for a count"),
        ((12, 8), "graph", "SWITCH nodes, no wait for a count"),
    ],
)
def test_the_driver_decides_which_nodes_there_are(version, mode, reason, gpu, tmp_path):
    gpu(driver=version)
    folder = bundles.two_stages(tmp_path / "bundle")
    write_plans(folder, BUCKETS)
    frames = bundles.random_frames(ROWS, (6, 6, 3))
    with Cascade.load(folder, "cpu") as cascade:
        expected = cascade.run(frames)
    with load(folder) as cascade:
        assert (cascade.executor.mode, cascade.executor.mode_reason) == (mode, reason)
        assert (cascade.run(frames).label == expected.label).all()


@pytest.mark.slow  # as above
def test_more_batch_sizes_than_if_nodes_can_be_set(gpu, tmp_path):
    gpu(driver=(12, 6))
    folder = bundles.two_stages(tmp_path / "bundle")
    write_plans(folder, range(1, 34))
    with Cascade.load(folder, "cuda", batch=33, gpu=GpuOptions(verify=False)) as cascade:
        executor = cascade.executor
        assert (executor.mode, executor.mode_reason) == (
            "host",
            "no graph: 33 batch sizes, IF nodes allow 32",
        )


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        (("KERNEL", "HOST"), "a conditional body must not contain a HOST node"),
        (("KERNEL", "MEM_ALLOC"), "a conditional body must not contain a MEM_ALLOC node"),
        (("KERNEL", "EVENT_RECORD"), "a conditional body must not contain a EVENT_RECORD node"),
        (("KERNEL", "MEMCPY"), "a conditional body copies host memory that is not mapped"),
    ],
)
def test_an_engine_that_no_body_may_contain_is_launched_by_the_host(
    kinds, reason, gpu, tmp_path, frames
):
    gpu()
    folder = bundles.two_stages(tmp_path / "bundle")
    write_plans(folder, BUCKETS, captured_as=kinds)
    with load(folder) as cascade:
        executor = cascade.executor
        assert (executor.mode, executor.mode_reason) == ("host", f"no graph: {reason}")
        cascade.run(frames)
    with pytest.raises(GraphError, match=reason):
        load(folder, "graph")


@pytest.mark.parametrize("kind", ["MEMSET", "EMPTY"])
def test_an_engine_of_other_nodes_is_captured(kind, gpu, tmp_path, frames):
    gpu()
    folder = bundles.two_stages(tmp_path / "bundle")
    write_plans(folder, BUCKETS, captured_as=("KERNEL", kind))
    with load(folder) as cascade:
        assert cascade.executor.mode == "graph"
        cascade.run(frames)
