"""Two batches are under way at a time, each in memory of its own."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import Cascade
from runtime.devices import GpuOptions
from tests.cuda import bundles
from tests.cuda.agreement import check_equal

MODES = ("host", "padded", "graph")
ROWS = 8
BUCKETS = (1, 4, ROWS)


def load(folder, mode):
    return Cascade.load(folder, "cuda", batch=ROWS, gpu=GpuOptions(mode=mode, verify=False))


@pytest.mark.parametrize("mode", MODES)
def test_the_next_saver_is_queued_before_the_current_large_run_has_ended(mode, folder, gpu):
    driver = gpu(seed=None)  # which runs nothing before somebody waits for it
    frames = bundles.random_frames(ROWS, (6, 6, 3))
    everything = np.ones(ROWS, np.uint8)
    with load(folder, mode) as cascade:
        driver.reset()
        first = cascade.submit(frames, force=everything)
        begun = len(driver.history)
        second = cascade.submit(frames, force=everything)
        saver, large = (
            ("enqueued graph", "replayed large at 8")
            if mode == "graph"
            else ("enqueued saver at 8", "ran large at 8")
        )
        assert saver in driver.history[begun:]
        assert large not in driver.history
        assert not first.done() and not second.done()
        assert (first.result().label == second.result().label).all()
        assert driver.history.count(large) == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_batches_is_answered_in_order(mode, seed, folder, gpu):
    batches = [bundles.random_frames(rows, (6, 6, 3), seed=rows) for rows in (8, 3, 1, 8, 5, 2, 7)]
    with Cascade.load(folder, "cpu", batch=ROWS) as cascade:
        expected = [cascade.run(frames) for frames in batches]
    gpu(seed=seed)
    with load(folder, mode) as cascade:
        found = list(cascade.stream(batches))
        for answers, wanted in zip(found, expected, strict=True):
            check_equal(answers, wanted, cascade.thresholds, band=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_results_that_are_asked_for_late_are_those_of_their_batch(mode, folder, gpu):
    batches = [bundles.random_frames(ROWS, (6, 6, 3), seed=seed) for seed in range(5)]
    with Cascade.load(folder, "cpu", batch=ROWS) as cascade:
        expected = [cascade.run(frames) for frames in batches]
    gpu()
    with load(folder, mode) as cascade:
        pending = [cascade.submit(frames) for frames in batches]
        thresholds = cascade.thresholds
    for batch, wanted in reversed(list(zip(pending, expected, strict=True))):
        check_equal(batch.result(), wanted, thresholds, band=1e-4)  # after the cascade was closed


def test_frames_may_be_changed_as_soon_as_submit_returns(folder, gpu):
    frames = bundles.random_frames(ROWS, (6, 6, 3))
    with Cascade.load(folder, "cpu", batch=ROWS) as cascade:
        expected = cascade.run(frames)
    gpu(seed=None)
    with load(folder, "graph") as cascade:
        changing = frames.copy()
        pending = cascade.submit(changing)
        changing[...] = 0
        check_equal(pending.result(), expected, cascade.thresholds, band=1e-4)


@pytest.mark.parametrize("shares_memory", [False, True])
def test_frames_are_copied_to_the_device_only_where_it_has_memory_of_its_own(
    shares_memory, folder, gpu
):
    driver = gpu(shares_memory=shares_memory)
    frames = bundles.random_frames(ROWS, (6, 6, 3))
    with Cascade.load(folder, "cpu", batch=ROWS) as cascade:
        expected = cascade.run(frames)
    with load(folder, "graph") as cascade:
        driver.reset()
        check_equal(cascade.run(frames), expected, cascade.thresholds, band=1e-4)
        copies = driver.history.count("enqueued copy in")
        assert copies == (1 if shares_memory else 2)  # the settings, and the frames
        kinds = {block.kind for block in driver.memory.blocks()}
        assert ("mapped" in kinds) is shares_memory


def test_thresholds_and_forced_rows_of_two_batches_under_way_are_their_own(folder, gpu):
    gpu()
    frames = bundles.random_frames(ROWS, (6, 6, 3))
    with load(folder, "graph") as cascade:
        cascade.thresholds = (1.0,)
        first = cascade.submit(frames)
        cascade.thresholds = (0.0,)
        second = cascade.submit(frames)
        third = cascade.submit(frames, force=np.ones(ROWS, np.uint8))
        assert (first.result().stage == 1).all()
        assert (second.result().stage == 0).all()
        assert (third.result().stage == 1).all()
