"""What a cascade takes of a GPU it gives back, however often it is loaded."""

from __future__ import annotations

import gc
import threading

import pytest

from runtime import Cascade
from runtime.devices import GpuOptions
from tests.cuda import bundles

ROWS = 2
BUCKETS = (1, ROWS)
MODES = ("host", "padded", "graph")


def load(folder, mode):
    return Cascade.load(folder, "cuda", batch=ROWS, gpu=GpuOptions(mode=mode, verify=False))


def cycle(folder, mode, frames):
    cascade = load(folder, mode)
    answers = cascade.run(frames)
    cascade.close()
    return answers


@pytest.mark.parametrize("mode", MODES)
def test_closing_frees_everything_and_again_does_nothing(mode, folder, gpu):
    driver = gpu()
    frames = bundles.random_frames(ROWS, (6, 6, 3))
    cascade = load(folder, mode)
    assert driver.live()["context"] == 1
    cascade.run(frames)
    cascade.close()
    assert driver.live() == {}
    calls = len(driver.counts.calls)
    cascade.close()
    assert len(driver.counts.calls) == calls


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "cycles"), [("host", 1000), ("padded", 100), ("graph", 200)])
def test_nothing_is_left_after_many_cycles(mode, cycles, folder, gpu):
    driver = gpu()
    frames = bundles.random_frames(ROWS, (6, 6, 3))
    for _ in range(3):  # what is loaded once
        first = cycle(folder, mode, frames)
    gc.collect()
    objects = len(gc.get_objects())
    for _ in range(cycles):
        answers = cycle(folder, mode, frames)
        assert (driver.leaked, driver.live()) == ({}, {})
        driver.reset()
    assert (answers.label == first.label).all()
    gc.collect()
    assert len(gc.get_objects()) < objects + 500  # none a cycle


def test_a_cascade_may_be_closed_by_another_thread(folder, gpu):
    driver = gpu()
    cascade = load(folder, "graph")
    results = []

    def use_and_close():
        results.append(cascade.run(bundles.random_frames(ROWS, (6, 6, 3))))
        cascade.close()

    thread = threading.Thread(target=use_and_close)
    thread.start()
    thread.join()
    assert len(results) == 1
    assert driver.live() == {}


def test_threads_that_share_a_cascade_get_their_own_answers(folder, gpu):
    gpu()
    batches = [bundles.random_frames(ROWS, (6, 6, 3), seed=seed) for seed in range(8)]
    with load(folder, "host") as cascade:
        expected = [cascade.run(frames) for frames in batches]
        found = {}

        def work(numbers):
            for number in numbers:
                found[number] = cascade.run(batches[number])

        threads = [threading.Thread(target=work, args=(range(k, 8, 4),)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(8))
    for number, wanted in enumerate(expected):
        assert (found[number].label == wanted.label).all()
        assert (found[number].confidence == wanted.confidence).all()


def test_two_cascades_share_a_gpu(folder, gpu):
    driver = gpu()
    frames = bundles.random_frames(ROWS, (6, 6, 3))
    with load(folder, "graph") as first:
        expected = first.run(frames)
        with load(folder, "host") as second:
            assert driver.live()["context"] == 2
            assert (second.run(frames).label == expected.label).all()
        assert (first.run(frames).label == expected.label).all()
