"""Frames that lie in device memory already are read where they are, once they are there."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from runtime import Cascade
from runtime.devices import GpuOptions
from runtime.errors import InputError
from tests.cuda import bundles
from tests.cuda.agreement import check_equal
from tests.cuda.producers import KINDS, DlPack, Interface
from tests.cuda_double.plans import write_plans

ROWS = 8
BUCKETS = (1, 4, ROWS)
SHAPE = (6, 6, 3)
MODES = ("host", "padded", "graph")


def load(folder, mode="graph"):
    return Cascade.load(folder, "cuda", batch=ROWS, gpu=GpuOptions(mode=mode, verify=False))


def expected(folder, frames):
    with Cascade.load(folder, "cpu", batch=ROWS) as cascade:
        return cascade.run(frames)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_read_after_what_fills_them(kind, mode, seed, folder, gpu):
    frames = bundles.random_frames(3 * ROWS + 1, SHAPE)
    driver = gpu(seed=seed)
    with load(folder, mode) as cascade:
        array = kind(driver, frames)
        check_equal(cascade.run(array), expected(folder, frames), cascade.thresholds, band=1e-4)
        array.free()


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_not_copied(kind, folder, gpu):
    frames = bundles.random_frames(ROWS, SHAPE)
    driver = gpu()
    with load(folder) as cascade:
        array = kind(driver, frames)
        for copies in (2, 2, 1, 1):  # the settings; and where the frames are, once in each slot
            driver.reset()
            cascade.run(array)
            assert driver.history.count("enqueued copy in") == copies
            assert driver.counts.allocations == 0
        array.free()


def test_planes_of_nv12_follow_their_frames(tmp_path, gpu):
    """Batches of one shape at ever other addresses, up and down, in both slots."""
    driver = gpu()
    folder = bundles.three_stages(tmp_path / "three")
    write_plans(folder, BUCKETS)
    shape = tuple(bundles.NV12["shape"])
    batches = [bundles.random_frames(ROWS, shape, seed=seed) for seed in range(5)]
    with load(folder) as cascade:
        arrays = [Interface(driver, frames) for frames in batches]
        for place in (0, 4, 1, 3, 2, 0):
            found, wanted = cascade.run(arrays[place]), expected(folder, batches[place])
            check_equal(found, wanted, cascade.thresholds, band=1e-4)
        for array in arrays:
            array.free()


def test_an_array_that_names_no_stream_is_ready(folder, gpu):
    frames = bundles.random_frames(ROWS, SHAPE)
    driver = gpu(seed=None)
    with load(folder) as cascade:
        array = Interface(driver, frames, stream=False)
        driver.reset()
        found = cascade.run(array)
        assert "cuStreamWaitEvent" not in driver.counts.calls
        check_equal(found, expected(folder, frames), cascade.thresholds, band=1e-4)
        array.free()


def test_an_array_may_be_ready_on_the_default_stream(folder, gpu):
    frames = bundles.random_frames(ROWS, SHAPE)
    driver = gpu()
    with load(folder) as cascade:
        array = Interface(driver, frames, stream=False)
        array._named = 1  # the legacy default stream
        check_equal(cascade.run(array), expected(folder, frames), cascade.thresholds, band=1e-4)
        array.free()


def test_frames_of_host_and_device_may_take_turns(folder, gpu):
    batches = [bundles.random_frames(ROWS, SHAPE, seed=seed) for seed in range(6)]
    answers = [expected(folder, frames) for frames in batches]
    driver = gpu()
    with load(folder) as cascade:
        arrays = [
            (
                lambda item: item,
                lambda item: Interface(driver, item),
                lambda item: DlPack(driver, item),
            )[number % 3](frames)
            for number, frames in enumerate(batches)
        ]
        for found, wanted in zip(cascade.stream(arrays), answers, strict=True):
            check_equal(found, wanted, cascade.thresholds, band=1e-4)
        for array in arrays:
            if not isinstance(array, np.ndarray):
                array.free()


def test_their_owner_lives_until_the_batch_has_ended(folder, gpu):
    driver = gpu(seed=None)
    with load(folder) as cascade:
        array = Interface(driver, bundles.random_frames(ROWS, SHAPE))
        alive, block, stream = weakref.ref(array), array.block, array.stream
        pending = cascade.submit(array)
        del array
        gc.collect()
        assert alive() is not None
        pending.result()
        gc.collect()
        assert alive() is None
        driver.queues.close(stream)
        driver.objects.pop(stream)
        driver.memory.free(block.start, "device")


def test_a_tensor_of_dlpack_is_given_back_when_the_batch_has_ended(folder, gpu):
    driver = gpu(seed=None)
    with load(folder) as cascade:
        array = DlPack(driver, bundles.random_frames(3 * ROWS, SHAPE))
        pending = cascade.submit(array)  # in three parts
        assert array.released == 0
        pending.result()
        gc.collect()
        assert array.released == 1
        array.free()


def test_dlpack_is_asked_for_the_stream_of_the_cascade(folder, gpu):
    driver = gpu()
    with load(folder) as cascade:
        array = DlPack(driver, bundles.random_frames(ROWS, SHAPE))
        cascade.run(array)
        assert array.asked and all(stream in driver.queues for stream in array.asked)
        array.free()


@pytest.mark.parametrize("kind", KINDS)
def test_no_frames_give_no_answers(kind, folder, gpu):
    driver = gpu()
    with load(folder) as cascade:
        array = kind(driver, bundles.random_frames(1, SHAPE))
        array.shape = (0, *SHAPE)
        assert len(cascade.run(array)) == 0
        array.free()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strides": (108 * 2, 18, 3, 1)}, "expected dense rows in C order, got strides"),
        ({"strides": (108, 3, 18, 1)}, "Make a contiguous copy"),
        ({"dtype": np.dtype(np.float32)}, r"expected u8 \[N, H, W, C\] on the GPU, got"),
        ({"shape": (ROWS, 6, 18)}, r"expected u8 \[N, H, W, C\] on the GPU, got"),
        ({"shape": (ROWS, 9, 4, 3)}, r"expected u8 \[N, 6, 6, 3\] \(rgb\), got uint8"),
    ],
)
def test_others_are_refused_with_what_is_wrong(kind, change, words, folder, gpu):
    driver = gpu()
    with load(folder) as cascade:
        array = kind(driver, bundles.random_frames(ROWS, SHAPE))
        for name, value in change.items():
            setattr(array, name, value)
        with pytest.raises(InputError, match=words):
            cascade.run(array)
        array.free()


@pytest.mark.parametrize("kind", KINDS)
def test_dense_strides_are_taken_and_those_of_single_rows_say_nothing(kind, folder, gpu):
    driver = gpu()
    with load(folder) as cascade:
        frames = bundles.random_frames(1, SHAPE)
        array = kind(driver, frames)
        array.strides = (77, 18, 3, 1)
        check_equal(cascade.run(array), expected(folder, frames), cascade.thresholds, band=1e-4)
        array.free()


def test_frames_on_another_gpu_are_refused(folder, gpu):
    driver = gpu(devices=2)
    with load(folder) as cascade:
        array = DlPack(driver, bundles.random_frames(ROWS, SHAPE))
        array.device = 1
        with pytest.raises(
            InputError, match="expected on GPU 0, where the cascade runs, got on GPU 1"
        ):
            cascade.run(array)
        array.free()
