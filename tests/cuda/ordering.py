"""Short uses of a cascade in which a wait, an event or an edge too few shows.

`complaints` says what went wrong under one order of streams. It is held to find nothing in the code
as it is, and something in every mutant of it: see tests/mutants.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime import Cascade
from runtime.cuda import CudaDevice
from runtime.devices import GpuOptions
from runtime.errors import DeviceError, TensorRTError, TinysaverError
from tests.cuda import bundles
from tests.cuda.producers import DlPack, Interface
from tests.cuda_double import memory
from tests.cuda_double.driver import Driver, Failure
from tests.cuda_double.install import kernels
from tests.cuda_double.memory import span
from tests.cuda_double.plans import write_plans
from tests.cuda_double.shim import shim
from tests.cuda_double.structures import Status
from tests.cuda_double.work import Touched
from tests.tensorrt_double.executing import ExecutionContext

ROWS = 4
BUCKETS = {"saver": (1, ROWS), "large": (1, 2)}  # two rounds, of which one needs copies
MODES = ("host", "padded", "graph")
_BATCHES = 5
_SHAPE = (6, 6, 3)

Case = Callable[["World", int], Iterator[str]]


class World(NamedTuple):
    """A bundle with plans, batches of frames, and what the CPU device makes of them.

    Attributes
    ----------
    answers
        Per batch: label, stage, and the large stage's logits.
    """

    folder: Path
    batches: list[np.ndarray]
    answers: list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def make_world(folder: Path) -> World:
    """Write the bundle, find the right answers, and keep them there for `open_world`."""
    shim().use(Driver(kernels()))
    bundles.two_stages(folder)
    write_plans(folder, BUCKETS)
    shim().use(None)
    batches = [bundles.random_frames(ROWS, _SHAPE, seed=seed) for seed in range(_BATCHES)]
    with Cascade.load(folder, "cpu", batch=ROWS) as cascade:
        results = [cascade.run(frames) for frames in batches]
        logits = [cascade.executor.stage_logits(frames)[-1] for frames in batches]
    np.savez(
        folder / "world.npz",
        batches=np.stack(batches),
        label=np.stack([answers.label for answers in results]),
        stage=np.stack([answers.stage for answers in results]),
        logits=np.stack(logits),
    )
    return open_world(folder)


def open_world(folder: Path) -> World:
    """Read what `make_world` has written."""
    content = np.load(folder / "world.npz")
    answers = [content[name] for name in ("label", "stage", "logits")]
    return World(folder, list(content["batches"]), list(zip(*answers, strict=True)))


def complaints(world: World, seed: int) -> Iterator[str]:
    """Yield what went wrong, each with the name of the use."""
    for case in CASES:
        for complaint in _attempt(case, world, seed):
            yield f"{case.__name__.strip('_')}: {complaint}"


def _attempt(case: Case, world: World, seed: int) -> Iterator[str]:
    try:
        yield from case(world, seed)
    except (TinysaverError, ArithmeticError, LookupError, StopIteration, RuntimeError) as error:
        yield f"{type(error).__name__}: {error}"


def _late_results(world: World, seed: int) -> Iterator[str]:
    """Batches are asked for long after they were submitted, the last one first."""
    for mode in MODES:
        with _gpu(seed) as driver:
            with _load(world, mode) as cascade:
                pending = [cascade.submit(frames) for frames in world.batches]
                for number in reversed(range(_BATCHES)):
                    yield from _compare(world, number, pending[number].result())
            yield from _faults(driver)


def _frames_on_the_device(world: World, seed: int) -> Iterator[str]:
    """Frames are filled late, on the stream of another library."""
    for kind in (Interface, DlPack):
        with _gpu(seed) as driver:
            with _load(world, "graph") as cascade:
                arrays = [kind(driver, frames) for frames in world.batches]
                for number, results in enumerate(cascade.stream(arrays)):
                    yield from _compare(world, number, results)
                for array in arrays:
                    array.free()
            yield from _faults(driver)


def _rows_of_frames_on_the_device(world: World, seed: int) -> Iterator[str]:
    """A drift guard copies some frames, which are filled late."""
    for kind in (Interface, DlPack):
        with _gpu(seed) as driver:
            with _load(world, "graph") as cascade:
                frames = world.batches[0]
                array, rows = kind(driver, frames), np.array([0, len(frames) - 1])
                if not np.array_equal(cascade.copy_rows(array, rows), frames[rows]):
                    yield "the rows are others"
                array.free()
            yield from _faults(driver)


def _logits_beside_a_batch(world: World, seed: int) -> Iterator[str]:
    """The logits of one frame are asked for while a batch is under way."""
    with _gpu(seed) as driver:
        with _load(world, "host") as cascade:
            pending = cascade.submit(world.batches[0])
            logits = cascade.executor.stage_logits(world.batches[1][:1])[-1]
            if not np.allclose(logits, world.answers[1][2][:1], rtol=1e-4, atol=1e-4):
                yield "row 0 of batch 1 has other logits"
            yield from _compare(world, 0, pending.result())
        yield from _faults(driver)


def _a_batch_that_fails(world: World, seed: int) -> Iterator[str]:
    """A batch fails half-way; its frames are then changed, and its memory used by others."""
    for lazily in (seed, None):
        with _gpu(lazily) as driver:
            with _load(world, "host") as cascade:
                cascade.run(world.batches[0])
                array = Interface(driver, world.batches[1])
                driver.failure = Failure(Status.INVALID_VALUE, 1, "cuLaunchKernel")
                try:
                    cascade.submit(array)
                    yield "the failure went unnoticed"
                except DeviceError:
                    driver.failure = None
                _overwrite(driver, array)
                for number in (2, 3):
                    yield from _compare(world, number, cascade.run(world.batches[number]))
                array.free()
            yield from _faults(driver)


def _a_wait_that_fails(world: World, seed: int) -> Iterator[str]:
    """A batch fails, and so does the wait for what it had enqueued; then others use its memory."""
    with _gpu(None) as driver:
        with _load(world, "host") as cascade:
            cascade.run(world.batches[0])
            driver.failure = Failure(Status.INVALID_VALUE, 0, "cuStreamSynchronize")
            original = ExecutionContext.execute_async_v3
            ExecutionContext.execute_async_v3 = lambda self, stream_handle: False
            try:
                cascade.submit(world.batches[1])
                yield "the failure went unnoticed"
            except TensorRTError:
                pass
            finally:
                ExecutionContext.execute_async_v3 = original
            for number in (2, 3, 4):
                yield from _compare(world, number, cascade.run(world.batches[number]))
        yield from _faults(driver)


def _closing_with_batches_under_way(world: World, seed: int) -> Iterator[str]:
    """A cascade is closed before its batches have ended; their results are asked for then."""
    for mode in MODES:
        with _gpu(None) as driver:
            with _load(world, mode) as cascade:
                pending = [cascade.submit(frames) for frames in world.batches[:2]]
            for number, batch in enumerate(pending):
                yield from _compare(world, number, batch.result())
            yield from _faults(driver)


def _loading_that_fails(world: World, seed: int) -> Iterator[str]:
    """An engine refuses a context while others have begun to run."""
    original = ExecutionContext.set_optimization_profile_async
    left = [3]

    def refuse(self: Any, profile_index: int, stream_handle: int) -> bool:
        left[0] -= 1
        return left[0] >= 0 and original(self, profile_index, stream_handle)

    with _gpu(None) as driver:
        ExecutionContext.set_optimization_profile_async = refuse
        try:
            _load(world, "host").close()
            yield "the refusal went unnoticed"
        except TensorRTError:
            pass
        finally:
            ExecutionContext.set_optimization_profile_async = original
        yield from _faults(driver)


def _a_fault_at_the_first_run(world: World, seed: int) -> Iterator[str]:
    """A kernel fails when it runs for the first time, which loading must notice."""
    with _gpu(None) as driver:
        driver.kernels = _Faulty()
        try:
            _load(world, "host").close()
            yield "a fault in the warm-up went unnoticed"
        except DeviceError:
            pass


class _Faulty:
    """Kernels of which none runs."""

    def of(self, cubin: bytes) -> Any:
        return kernels().of(cubin)

    def launch(self, *arguments: Any) -> Any:
        raise RuntimeError("a fault")


def _closing_a_device_that_works(world: World, seed: int) -> Iterator[str]:
    """A device is closed while a stream still writes its memory."""
    with _gpu(None) as driver:
        device = CudaDevice()
        with device.active():
            stream, target = device.stream(), device.allocate(64)
            stream.fill(target.array(np.uint8, (64,)), 1)
        device.close()
        yield from _faults(driver)


CASES: tuple[Case, ...] = (
    _late_results,
    _logits_beside_a_batch,
    _frames_on_the_device,
    _rows_of_frames_on_the_device,
    _closing_with_batches_under_way,
    _a_batch_that_fails,
    _a_wait_that_fails,
    _loading_that_fails,
    _a_fault_at_the_first_run,
    _closing_a_device_that_works,
)


@contextmanager
def _gpu(seed: int | None) -> Iterator[Driver]:
    driver = Driver(kernels(), seed=seed)
    shim().use(driver)
    try:
        yield driver
    finally:
        shim().use(None)


def _load(world: World, mode: Any) -> Cascade:
    options = GpuOptions(mode=mode, verify=False)
    return Cascade.load(world.folder, "cuda", batch=ROWS, gpu=options)


def _compare(world: World, number: int, results: Any) -> Iterator[str]:
    label, stage, _ = world.answers[number]
    wrong = np.flatnonzero((results.label != label) | (results.stage != stage)).tolist()
    if wrong:
        yield f"rows {wrong} of batch {number} are answered otherwise"


def _faults(driver: Driver) -> Iterator[str]:
    yield from driver.errors
    left = driver.leaked or driver.live()
    if left:
        yield f"left: {left}"


def _overwrite(driver: Driver, array: Interface) -> None:
    """Let the owner of frames write others, on its own stream."""
    place, content = span(array.block.start, array.block.nbytes), bytes(array.block.nbytes)

    def run() -> Touched:
        memory.write(place.start, content)
        return Touched([], [place])

    driver.queues.enqueue(array.stream, "overwriting", run)
