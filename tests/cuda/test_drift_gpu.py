"""Gears and the drift guard on the doubles do what they do on the CPU."""

from __future__ import annotations

import json

import numpy as np
import pytest

from runtime import Cascade
from runtime.devices import GpuOptions
from runtime.drift import DriftGuard, Watch
from tests.cuda import bundles
from tests.cuda.agreement import check_equal
from tests.cuda.producers import KINDS
from tests.cuda_double.shim import shim

ROWS = 16
BUCKETS = (1, 4, ROWS)
SHAPE = (6, 6, 3)
GEARS = [[0.9], [0.7]]
MODES = ("host", "padded", "graph")


@pytest.fixture
def geared(folder):
    """The small bundle with gears."""
    content = json.loads((folder / "cascade.json").read_text())
    content["settings"]["fp32/fp32"]["gears"] = GEARS
    (folder / "cascade.json").write_text(json.dumps(content))
    return folder


def load(folder, device="cpu", mode="graph"):
    return Cascade.load(folder, device, batch=ROWS, gpu=GpuOptions(mode=mode, verify=False))


def through_gears(cascade, batches):
    """Answer a batch at each gear, with two under way."""
    pending = []
    for gear, frames in enumerate(batches):
        cascade.shift(gear)
        pending.append(cascade.submit(frames))
    return [item.result() for item in pending]


def captures(calls):
    return sum("BeginCapture" in name for name in calls)


@pytest.mark.parametrize("mode", MODES)
def test_gears_change_between_batches_under_way_and_no_graph_is_captured_anew(mode, geared):
    batches = [bundles.random_frames(ROWS, SHAPE, seed=seed) for seed in range(4)]
    with load(geared) as cascade:
        expected = through_gears(cascade, batches)
    with load(geared, "cuda", mode) as cascade:
        calls = shim().driver.counts.calls
        begun = captures(calls)
        assert (begun > 0) == (mode == "graph")
        found = through_gears(cascade, batches)
        assert captures(calls) == begun
    for mine, other, thresholds in zip(found, expected, cascade.gears, strict=True):
        assert mine.gear == other.gear == cascade.gears.index(thresholds)
        check_equal(mine, other, thresholds, band=1e-4)
    assert (found[3].stage == 1).all() and (found[0].stage == 0).any()


def watched(cascade, batches):
    """Return what a guard has seen, with one alarm on the way."""
    guard = DriftGuard(cascade, Watch(share=0.5, batch=5), references=[0.1, 0.9, 0.9])
    answers = list(guard.stream(batches))
    guard.flush()
    return guard.account, guard.alarms, np.concatenate([a.stage for a in answers])


@pytest.mark.parametrize("mode", MODES)
def test_a_guard_sees_the_same_and_raises_the_same_alarms(mode, geared):
    batches = [bundles.random_frames(ROWS, SHAPE, seed=seed) for seed in range(12)]
    with load(geared) as cascade:
        expected = watched(cascade, batches)
    with load(geared, "cuda", mode) as cascade:
        found = watched(cascade, batches)
        assert cascade.gear == 1
    assert found[:2] == expected[:2]
    assert found[2].tolist() == expected[2].tolist()
    assert len(found[1]) == 1 and found[0].shadowed > 10


@pytest.mark.parametrize("kind", KINDS)
def test_frames_on_the_gpu_are_watched_too(kind, geared, gpu):
    batches = [bundles.random_frames(ROWS, SHAPE, seed=seed) for seed in range(4)]
    with load(geared) as cascade:
        expected = watched(cascade, batches)
    driver = gpu()
    with load(geared, "cuda") as cascade:
        arrays = [kind(driver, frames) for frames in batches]
        found = watched(cascade, arrays)
        for array in arrays:
            array.free()
    assert found[0] == expected[0] and found[0].shadowed > 0
