"""What a second stage on the same weights costs in memory, and what sharing costs in time.

Resident memory is asked of processes of their own, started afresh, that load one or both stages as
`runtime.host` does and run each: once with weights that are shared, once with weights that each
session holds, packed for its kernels. Times are taken of all sessions in one process, in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from runtime.bench_memory import MeasurementError
from runtime.bundle import Bundle, load_bundle
from runtime.errors import InputError
from runtime.host import HostStage
from runtime.shared_weights import NOTHING_SHARED, SharedWeights

WARM_RUNS = 3
ROUNDS = 30
BAR = 0.3
"""Most that the second stage may add to memory, as a share of the weights."""


class Memory(NamedTuple):
    """Resident memory of a process in bytes, with Python and all libraries."""

    one: int
    two: int

    @property
    def second(self) -> int:
        """What the second stage added."""
        return self.two - self.one


class SharedMemory(NamedTuple):
    """Memory of a bundle whose stages share their weights.

    Attributes
    ----------
    weights
        Size of the file in bytes.
    shared, own
        With one copy of the weights, and with one for each session.
    """

    weights: int
    shared: Memory
    own: Memory

    @property
    def ratio(self) -> float:
        """Memory that the second stage added on shared weights, over the size of the weights."""
        return self.shared.second / self.weights

    @property
    def is_met(self) -> bool:
        """Whether that is within the bar."""
        return self.ratio <= BAR


class Times(NamedTuple):
    """Median time of each stage for one sample in milliseconds, on shared and on own weights."""

    shared: tuple[float, ...]
    own: tuple[float, ...]


def measure_sharing(folder: Path, *, threads: int = 1) -> SharedMemory:
    """Measure the memory of the first two stages of a bundle, which name the same weights.

    Raises
    ------
    InputError
        When no stages of the bundle do.
    MeasurementError
        When a process that was to be measured failed.
    """
    bundle = load_bundle(folder)
    files = SharedWeights.of(bundle, _forms(bundle)).files
    if not files:
        raise InputError(
            f"{folder}: expected stages that share a file of weights, found none. Make one: "
            "python -m savers.shared_depth images --help"
        )
    shared, own = (
        Memory(*(_resident(folder, stages, shared, threads) for stages in ([0], [0, 1])))
        for shared in (True, False)
    )
    return SharedMemory(sum(path.stat().st_size for path in files), shared, own)


def measure_times(folder: Path, *, threads: int = 1) -> Times:
    """Measure the first two stages of a bundle, on shared weights and on own ones, in turn."""
    bundle = load_bundle(folder)
    opened = [_stages(bundle, [0, 1], shared=shared, threads=threads) for shared in (True, False)]
    taken: list[list[list[float]]] = [[[], []], [[], []]]
    for _ in range(WARM_RUNS + ROUNDS):
        for stages, times in zip(opened, taken, strict=True):
            for stage, mine in zip(stages, times, strict=True):
                begin = perf_counter()
                stage.run(1)
                mine.append(1000 * (perf_counter() - begin))
    shared, own = (tuple(median(times[WARM_RUNS:]) for times in each) for each in taken)
    return Times(shared, own)


def _forms(bundle: Bundle) -> list[Any]:
    return ["fp32"] * len(bundle.spec.stages)


def _stages(
    bundle: Bundle, stages: Sequence[int], *, shared: bool, threads: int
) -> list[HostStage]:
    weights = SharedWeights.of(bundle, _forms(bundle)) if shared else NOTHING_SHARED
    return [
        HostStage(bundle, stage, "fp32", batch=1, threads=threads, shared=weights)
        for stage in stages
    ]


def _resident(folder: Path, stages: Sequence[int], shared: bool, threads: int) -> int:
    task = {"bundle": str(folder), "stages": stages, "shared": shared, "threads": threads}
    command = [sys.executable, "-m", "savers.depth_memory"]
    done = subprocess.run(
        command, input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MeasurementError(f"the measured process failed: {last_line}")
    return int(done.stdout)


def _main() -> None:
    task = json.loads(sys.stdin.read())
    bundle = load_bundle(task["bundle"])
    stages = _stages(bundle, task["stages"], shared=task["shared"], threads=task["threads"])
    for stage in stages:
        next(iter(stage.inputs.values()))[:] = np.float32(0.5)
        for _ in range(WARM_RUNS):
            stage.run(1)
    status = Path("/proc/self/status").read_text()
    print(1024 * int(status.split("VmRSS:")[1].split()[0]))


if __name__ == "__main__":
    _main()
