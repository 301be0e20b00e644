"""Every driver call fails once: no hang, no leak, no wrong answer, and an error that is ours."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import Cascade
from runtime.devices import GpuOptions
from runtime.errors import DeviceError, TinysaverError
from tests.cuda_double.driver import Failure
from tests.cuda_double.structures import Status

ROWS = 2
BUCKETS = (1, ROWS)
MODES = ("host", "padded", "graph")
RELEASES = frozenset(
    {
        "cuMemFree_v2",
        "cuMemFreeHost",
        "cuStreamDestroy_v2",
        "cuEventDestroy_v2",
        "cuModuleUnload",
        "cuGraphDestroy",
        "cuGraphExecDestroy",
        "cuCtxPushCurrent_v2",  # in front of a release
        "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
        "cuGetProcAddress_v2",  # of a release: cuda-bindings then lacks it
    }
)
"""What leaks a thing when it fails, whatever the caller does; everything else must not."""

pytestmark = pytest.mark.filterwarnings("ignore:.*could not be cleaned up")


def use(folder, mode, frames):
    """Load a cascade, have two batches under way, close it; return the answers."""
    options = GpuOptions(mode=None if mode == "graph" else mode, verify=False)
    with Cascade.load(folder, "cuda", batch=ROWS, gpu=options) as cascade:
        return list(cascade.stream([frames, frames[:1], frames]))


def calls_of(folder, mode, frames, gpu):
    driver = gpu()
    answers = use(folder, mode, frames)
    calls = list(driver.counts.calls)
    return calls, answers


def same(found, expected):
    return all(
        (answers.label == wanted.label).all() and (answers.stage == wanted.stage).all()
        for answers, wanted in zip(found, expected, strict=True)
    )


# A wait may be what fails: then memory is freed that may be in use, and the driver has to wait.


def check(number, name, folder, mode, frames, expected, driver):
    """Run with one call failing, and look at what came of it."""
    status = Status.OUT_OF_MEMORY if "Alloc" in name else Status.INVALID_VALUE
    driver.failure = Failure(status, number)
    what = f"call {number}, {name}, in mode {mode}"
    try:
        found = use(folder, mode, frames)
    except TinysaverError as error:
        assert str(error), what
    else:
        assert same(found, expected), what
    driver.failure = None
    assert driver.errors == [], what
    left = driver.leaked or driver.live()
    assert left == {} or name in RELEASES, f"{what}: left {left}"


@pytest.mark.parametrize("mode", MODES)
def test_some_calls_fail_once(mode, folder, frames, gpu):
    calls, expected = calls_of(folder, mode, frames, gpu)
    first = {name: number for number, name in reversed(list(enumerate(calls)))}
    for name, number in first.items():
        check(number, name, folder, mode, frames, expected, gpu.ignoring(frees_wait=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_call_fails_once(mode, folder, frames, gpu):
    calls, expected = calls_of(folder, mode, frames, gpu)
    assert len(calls) > 200
    for number, name in enumerate(calls):
        check(number, name, folder, mode, frames, expected, gpu.ignoring(frees_wait=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_context_ends_at_every_call(mode, folder, frames, gpu):
    calls, expected = calls_of(folder, mode, frames, gpu)
    for number, name in enumerate(calls):
        driver = gpu.ignoring(frees_wait=True)
        driver.failure = Failure(Status.LAUNCH_FAILED, number, sticky=True)
        what = f"call {number}, {name}, in mode {mode}"
        try:
            found = use(folder, mode, frames)
        except TinysaverError as error:
            assert str(error), what
        else:
            assert same(found, expected), what
        assert driver.errors == [], what
        freed = [later for later in driver.counts.calls[number + 1 :] if later in FREES]
        assert not freed or name in RELEASES, f"{what}: then {freed[:3]}"


FREES = RELEASES - {"cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"}


def test_after_a_call_that_failed_a_cascade_goes_on(folder, frames, gpu):
    driver = gpu()
    with Cascade.load(folder, "cuda", batch=ROWS, gpu=GpuOptions(verify=False)) as cascade:
        expected = cascade.run(frames)
        driver.failure = Failure(Status.INVALID_VALUE, 0, "cuGraphLaunch")
        with pytest.raises(DeviceError, match="cuGraphLaunch: CUDA_ERROR_INVALID_VALUE"):
            cascade.run(frames)
        assert (cascade.run(frames).confidence == expected.confidence).all()


def test_a_batch_under_way_survives_the_failure_of_the_next(folder, frames, gpu):
    driver = gpu()
    with Cascade.load(folder, "cuda", batch=ROWS, gpu=GpuOptions(verify=False)) as cascade:
        expected = cascade.run(frames)
        pending = cascade.submit(frames)
        driver.failure = Failure(Status.INVALID_VALUE, 0, "cuGraphLaunch")
        with pytest.raises(DeviceError):
            cascade.submit(frames)
        assert (pending.result().confidence == expected.confidence).all()


def test_results_that_could_not_be_waited_for_are_asked_for_again(folder, frames, gpu):
    driver = gpu()
    with Cascade.load(folder, "cuda", batch=ROWS, gpu=GpuOptions(verify=False)) as cascade:
        expected = cascade.run(frames)
        pending = cascade.submit(frames)
        driver.failure = Failure(Status.INVALID_VALUE, 0, "cuEventSynchronize")
        with pytest.raises(DeviceError, match="cuEventSynchronize failed"):
            pending.result()
        assert (pending.result().confidence == expected.confidence).all()
        assert not np.isnan(expected.confidence).any()
