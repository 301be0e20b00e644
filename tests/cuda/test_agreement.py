"""All launch modes on the doubles answer what the CPU device answers."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import Cascade
from runtime.devices import GpuOptions
from tests.cuda import bundles
from tests.cuda.agreement import check_equal, first
from tests.cuda_double.plans import write_plans

MODES = ("host", "padded", "graph")
MAKERS = {"three": bundles.three_stages, "four": bundles.four_stages}


@pytest.fixture(scope="session")
def zoo_frames(zoo):
    return np.load(zoo / "data" / "test.npz")["images"]


@pytest.fixture(scope="session")
def zoo_answers(zoo, zoo_frames):
    with Cascade.load(zoo, "cpu", batch=256) as cascade:
        return cascade.run(zoo_frames)


def run(folder, mode, frames, *, batch):
    forms = ["fp32"] * len(Cascade.load(folder, "cpu").stage_names)
    options = GpuOptions(mode=mode, verify=False)
    with Cascade.load(folder, "cuda", batch=batch, forms=forms, gpu=options) as cascade:
        assert cascade.executor.mode == mode
        return cascade.run(frames), cascade.thresholds


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_the_zoo(mode, gpu, zoo, zoo_frames, zoo_answers):
    gpu()
    found, thresholds = run(zoo, mode, zoo_frames[:300], batch=256)
    check_equal(found, first(zoo_answers, 300), thresholds)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_test_images_of_the_zoo_at_batch_256(mode, gpu, zoo, zoo_frames, zoo_answers):
    gpu()
    found, thresholds = run(zoo, mode, zoo_frames, batch=256)
    assert len(found) == 10_000
    check_equal(found, zoo_answers, thresholds)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("mode", MODES)
def test_small_batches_in_any_order_of_streams(
    mode, batch, seed, gpu, zoo, zoo_frames, zoo_answers
):
    gpu(seed=seed)
    found, thresholds = run(zoo, mode, zoo_frames[:500], batch=batch)
    check_equal(found, first(zoo_answers, 500), thresholds)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MAKERS)
def test_stages_of_other_sizes_that_read_earlier_tensors(name, mode, gpu, tmp_path):
    gpu()
    folder = MAKERS[name](tmp_path / "bundle")
    buckets = (1, 4, 9, 20)
    write_plans(folder, buckets)
    shape = bundles.NV12["shape"] if name == "three" else bundles.BGR["shape"]
    frames = bundles.random_frames(70, shape)
    with Cascade.load(folder, "cpu", batch=20) as cascade:
        expected = cascade.run(frames)
    assert set(expected.stage) == set(range(len(cascade.thresholds) + 1))
    found, thresholds = run(folder, mode, frames, batch=20)
    check_equal(found, expected, thresholds, band=1e-4)
