"""Launches in a process of their own, and what sanitizers see there of the small kernels.

A race is one by the rules of CUDA, also where the threads happened to run in a harmless order.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

import numpy as np
import pytest

from kernels.launch import Kernel, Launch
from tests.cuda_cpu import build, standalone
from tests.cuda_cpu.emulation import EmulationError
from tests.cuda_cpu.standalone import Crash, SanitizerReport, StandaloneMachine
from tests.kernels.toys import TOYS, ToyArguments, line, place

BLOCKS, WARP = 3, 32
RACES = {
    "race_between_barriers": "BEFORE THE NEXT",
    "race_between_syncwarps": "BEFORE THE NEXT SYNCWARP",
    "race_in_spite_of_ballot": "A BALLOT ORDERS NOTHING",
    "race_of_blocks": "BY EVERY BLOCK",
    "write_behind_the_fence": "BY THE LAST BLOCK",
}

in_every_order = pytest.mark.parametrize("order", ["ascending", "descending", "random"])
one_block_or_all_at_a_time = pytest.mark.parametrize("resident", [1, BLOCKS])


def run(name: str, variant: build.Variant, *, n: int = 0, **options: Any) -> list[int]:
    """Run a toy and return its ``out``, one word for each thread; ``in`` is 0, 1, 2 ..."""
    machine = StandaloneMachine(variant, folder=TOYS.parent, **options)
    given = machine.upload(np.arange(BLOCKS * WARP, dtype=np.uint32))
    out = machine.upload(np.zeros(BLOCKS * WARP, np.uint32))
    arguments = ToyArguments(given.address, out.address, None, n)
    machine.run(Launch(Kernel("toys", name, WARP), (BLOCKS, 1, 1), arguments))
    return machine.download(out).tolist()


@pytest.mark.parametrize("variant", [build.PLAIN, build.PORTABLE], ids=lambda variant: variant.name)
def test_values_come_back(variant: build.Variant) -> None:
    expected = np.arange(BLOCKS * WARP).reshape(BLOCKS, WARP)[:, ::-1].reshape(-1)
    assert run("reverse_block", variant) == expected.tolist()


def test_launches_of_one_run_see_what_the_ones_before_have_left() -> None:
    machine = StandaloneMachine(build.PLAIN, folder=TOYS.parent)
    first, second, third = (machine.upload(np.arange(32, dtype=np.uint32)) for _ in range(3))
    launches = [
        Launch(
            Kernel("toys", "reverse_block", 32), (1, 1, 1), ToyArguments(source, target, None, 0)
        )
        for source, target in ((first.address, second.address), (second.address, third.address))
    ]
    machine.run(*launches, Launch(Kernel("toys", "reverse_block", 32), None, ToyArguments()))
    assert machine.download(second).tolist() == list(range(32))[::-1]
    assert machine.download(third).tolist() == list(range(32))


def test_what_the_emulation_refuses_is_told() -> None:
    with pytest.raises(EmulationError, match=f"divergent __syncthreads: .*{place('OTHERS HERE')}"):
        run("divergent_barrier", build.PLAIN)


def test_a_crash_is_no_report() -> None:
    with pytest.raises(Crash, match="exit -11"):
        run("crash", build.PLAIN, n=16)


def test_a_kernel_that_does_not_end_is_stopped(monkeypatch) -> None:
    monkeypatch.setattr(standalone, "TIMEOUT_S", 1)
    with pytest.raises(subprocess.TimeoutExpired):
        run("endless", build.PLAIN)


def test_where_addresses_are_too_random_for_the_sanitizer_they_are_not_randomised(
    monkeypatch, tmp_path
) -> None:
    driver = tmp_path / "driver"
    driver.write_text(
        "#!/bin/sh\n"
        # Bit 18 of the personality is ADDR_NO_RANDOMIZE.
        "case $(cat /proc/self/personality) in *4????) exit 0;; esac\n"
        "echo 'FATAL: ThreadSanitizer: unexpected memory mapping 0x1-0x2' >&2\nexit 66\n"
    )
    driver.chmod(0o755)
    standalone._run_driver(driver)


@pytest.mark.slow
@in_every_order
@one_block_or_all_at_a_time
@pytest.mark.parametrize("name", RACES)
def test_a_race_is_seen(name: str, resident: int, order: str) -> None:
    with pytest.raises(SanitizerReport, match="WARNING: ThreadSanitizer: data race") as report:
        run(name, build.THREAD, order=order, resident=resident)
    assert re.search(line(RACES[name]), str(report.value))


@pytest.mark.slow
@in_every_order
@one_block_or_all_at_a_time
@pytest.mark.parametrize("name", ["ordered_by_syncwarp", "last_block_sums", "reverse_block"])
def test_what_cuda_orders_is_no_race(name: str, resident: int, order: str) -> None:
    run(name, build.THREAD, order=order, resident=resident)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message", "mark"),
    [
        ("past_shared", "heap-buffer-overflow.*WRITE of size 4", "PAST THE ROW"),
        ("before_global", "heap-buffer-overflow.*READ of size 4", "BEFORE IN"),
        ("past_local", r"runtime error: index 9 out of bounds for type .*\[4\]", "PAST FOUR"),
        ("overflow", "runtime error: signed integer overflow", "PAST THE LARGEST INT"),
    ],
)
def test_an_access_out_of_bounds_is_seen(name: str, message: str, mark: str) -> None:
    n = 2**31 - 1 if name == "overflow" else 9
    with pytest.raises(SanitizerReport) as report:
        run(name, build.ADDRESS, n=n)
    assert re.search(message, str(report.value), re.DOTALL)
    assert re.search(line(mark), str(report.value))
