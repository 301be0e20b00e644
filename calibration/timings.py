"""Measuring what batches of each model cost on this machine's CPU, in seconds or joules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from calibration.energy import Meter
from calibration.pool import Card
from runtime.measurement import Subject
from runtime.schema import Stage
from runtime.session import HostModel

Runs = Mapping[str, Callable[[int], object]]
"""Per model a function that runs one batch of the given size."""

LEAST_SECONDS = 0.2
"""For which a batch is repeated to read its energy: sensors are renewed every few milliseconds."""


def measure_seconds(
    runs: Runs,
    sizes: Sequence[int],
    *,
    rounds: int = 30,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, dict[int, float]]:
    """Return the median time of each model at each batch size.

    Models and sizes take turns, so that a change in the machine's speed meets all of them.

    Parameters
    ----------
    advance
        Told the end of each round.
    """
    subjects = {(name, size): Subject(name) for name in runs for size in sizes}
    for name, size in subjects:
        runs[name](size)
    for _ in range(rounds):
        for (name, size), subject in subjects.items():
            subject.measure(partial(runs[name], size), size)
        advance()
    return {
        name: {size: float(np.median(subjects[name, size].seconds)) for size in sizes}
        for name in runs
    }


def measure_joules(
    runs: Runs,
    sizes: Sequence[int],
    meter: Meter,
    *,
    rounds: int = 3,
    seconds: float = LEAST_SECONDS,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, dict[int, float]]:
    """Return the median energy of one batch of each model at each size, idle power included."""
    found: dict[tuple[str, int], list[float]] = {(n, s): [] for n in runs for s in sizes}
    for name, size in found:
        runs[name](size)
    for _ in range(rounds):
        for (name, size), joules in found.items():
            joules.append(_joules_of_batch(partial(runs[name], size), meter, seconds))
        advance()
    return {name: {size: float(np.median(found[name, size])) for size in sizes} for name in runs}


def host_runs(
    folder: Path, cards: Mapping[str, Card], *, threads: int
) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Yield per model a function that runs a batch of noise of the given size on the CPU."""
    for name, card in cards.items():
        yield name, host_run(folder / card.file, card.stage(), threads=threads)


def host_run(path: Path, stage: Stage, *, threads: int) -> Callable[[int], object]:
    """Return a function that runs a batch of noise through a stage that reads frames, on the CPU.

    Parameters
    ----------
    path
        ONNX file of the stage.
    """
    model = HostModel(path, threads=threads)
    shape = (len(stage.preprocessing.mean), *stage.preprocessing.size)
    rng = np.random.default_rng(0)
    frames: dict[int, npt.NDArray[np.float32]] = {}

    def run(size: int) -> object:
        if size not in frames:
            frames[size] = rng.standard_normal((size, *shape), np.float32)
        return model.run({item.tensor: frames[size] for item in stage.inputs})

    return run


def _joules_of_batch(run: Callable[[], object], meter: Meter, seconds: float) -> float:
    before, end, batches = meter.joules(), perf_counter() + seconds, 0
    while batches == 0 or perf_counter() < end:
        run()
        batches += 1
    return (meter.joules() - before) / batches
