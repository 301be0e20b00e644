"""All launch modes on the doubles answer what the CPU device answers."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from runtime import Cascade
from runtime.bundle import load_bundle
from runtime.devices import GpuOptions
from runtime.simulation import Simulation
from tests.cuda import bundles
from tests.cuda.agreement import check_equal
from tests.cuda_double.plans import write_plans

MODES = ("host", "padded", "graph")
SMALL = {
    "three": (bundles.three_stages, bundles.NV12["shape"]),
    "four": (bundles.four_stages, bundles.BGR["shape"]),
}


@pytest.fixture(scope="session")
def zoo_frames(zoo):
    return np.load(zoo / "data" / "test.npz")["images"]


@pytest.fixture(scope="session")
def zoo_answers(zoo, zoo_frames):
    """Return what the CPU device answers of the first frames."""

    @functools.cache
    def answers(count):
        with Cascade.load(zoo, "cpu", batch=256) as cascade:
            return cascade.run(zoo_frames[:count])

    return answers


def run(folder, mode, frames, *, batch):
    """Return what the doubles answer, and the thresholds."""
    forms = ["fp32"] * len(load_bundle(folder).spec.stages)
    options = GpuOptions(mode=mode, verify=False)
    with Cascade.load(folder, "cuda", batch=batch, forms=forms, gpu=options) as cascade:
        assert cascade.executor.mode == mode
        return cascade.run(frames), cascade.thresholds


@pytest.mark.parametrize("mode", MODES)
def test_some_images_of_the_zoo(mode, gpu, zoo, zoo_frames, zoo_answers):
    gpu()
    found, thresholds = run(zoo, mode, zoo_frames[:150], batch=64)
    check_equal(found, zoo_answers(150), thresholds)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_test_images_of_the_zoo_at_batch_256(mode, gpu, zoo, zoo_frames, zoo_answers):
    gpu()
    found, thresholds = run(zoo, mode, zoo_frames, batch=256)
    assert len(found) == 10_000
    check_equal(found, zoo_answers(10_000), thresholds)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("mode", MODES)
def test_small_batches_in_any_order_of_streams(
    mode, batch, seed, gpu, zoo, zoo_frames, zoo_answers
):
    gpu(seed=seed)
    found, thresholds = run(zoo, mode, zoo_frames[:500], batch=batch)
    check_equal(found, zoo_answers(500), thresholds)


def check_small(name, mode, folder, *, batch, rows):
    """Compare a bundle whose stages resize to different sizes and read each other's tensors."""
    make, shape = SMALL[name]
    write_plans(make(folder), (1, 4, 9, 32))
    frames = bundles.random_frames(rows, shape)
    with Cascade.load(folder, "cpu", batch=32) as cascade:
        expected = cascade.run(frames)
    assert set(expected.stage) == set(range(len(cascade.thresholds) + 1))
    found, thresholds = run(folder, mode, frames, batch=batch)
    check_equal(found, expected, thresholds, band=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SMALL)
def test_letterbox_nv12_and_tensors_of_earlier_stages(name, mode, gpu, tmp_path):
    gpu()
    check_small(name, mode, tmp_path / "bundle", batch=20, rows=70)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SMALL)
def test_the_same_in_small_batches_and_any_order_of_streams(name, mode, batch, seed, gpu, tmp_path):
    gpu(seed=seed)
    check_small(name, mode, tmp_path / "bundle", batch=batch, rows=500)


@pytest.mark.parametrize("shares_memory", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_frames_of_any_size_learned_scores_and_a_p_norm(mode, shares_memory, gpu, tmp_path):
    gpu(shares_memory=shares_memory)
    folder = bundles.other_scores(tmp_path / "bundle")
    write_plans(folder, (1, 16))
    sizes = [(20, 28), (41, 13), (64, 48), (5, 5), (20, 28)]
    batches = [bundles.random_frames(24, (*size, 3), seed=k) for k, size in enumerate(sizes)]
    with Cascade.load(folder, "cpu", batch=16) as cascade:
        expected = [cascade.run(frames) for frames in batches]
    assert {stage for answers in expected for stage in answers.stage} == {0, 1, 2}
    options = GpuOptions(mode=mode, verify=False)
    with Cascade.load(folder, "cuda", batch=16, gpu=options) as cascade:
        for found, wanted in zip(cascade.stream(batches), expected, strict=True):
            check_equal(found, wanted, cascade.thresholds, band=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_thresholds_by_class_and_forced_rows(mode, gpu, tmp_path):
    gpu()
    folder = bundles.four_stages(tmp_path / "bundle")
    write_plans(folder, (1, 32))
    rng = np.random.default_rng(0)
    thresholds = rng.uniform(0.3, 0.9, (3, bundles.CLASSES)).tolist()
    frames = bundles.random_frames(90, bundles.BGR["shape"])
    force = (rng.random((3, 90)) < 0.2).astype(np.uint8)
    found = []
    for device in ("cpu", "cuda"):
        options = GpuOptions(mode=mode, verify=False)
        with Cascade.load(folder, device, batch=32, gpu=options) as cascade:
            cascade.thresholds = thresholds
            found.append(cascade.run(frames, force=force))
    same = (found[0].label == found[1].label) & (found[0].stage == found[1].stage)
    assert same.all() and set(found[0].stage) == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_engines_with_fp16_inputs_and_outputs_decide_by_their_own_logits(mode, gpu, tmp_path):
    gpu()
    folder = bundles.two_stages(tmp_path / "bundle", dtype=np.float16)
    write_plans(folder, (1, 4, 32))
    frames = bundles.random_frames(320, (6, 6, 3))
    options = GpuOptions(mode=mode, verify=False)
    with Cascade.load(folder, "cuda", batch=32, gpu=options) as cascade:
        parts = [cascade.executor.stage_logits(part) for part in np.split(frames, 10)]
        logits = [np.concatenate([part[stage] for part in parts]) for stage in range(2)]
        found, thresholds = cascade.run(frames), cascade.thresholds
    expected = Simulation(logits).answers(thresholds)
    otherwise = (found.label != expected.label) | (found.stage != expected.stage)
    assert otherwise.sum() <= 1 and 0 < expected.stage.sum() < 320
