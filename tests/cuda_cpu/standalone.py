"""A machine whose launches run in a process of their own, built with a sanitizer.

It has the memory and the ``run`` of ``tests.kernels.machine.Machine``, so that the cases of the
kernel tests run on it as they are: their values are compared, and whatever the sanitizer reports is
an error.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.launch import DeviceArray, Launch
from tests.cuda_cpu import build
from tests.cuda_cpu.emulation import KERNELS, ORDERS, EmulationError, Order

DRIVER = Path(__file__).with_name("driver.cc")
# Symbols are looked up here: ThreadSanitizer's own way takes minutes.
SANITIZERS = {
    "TSAN_OPTIONS": "symbolize=0:history_size=4:atexit_sleep_ms=0:exitcode=66",
    "ASAN_OPTIONS": "symbolize=0:detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "symbolize=0:print_stacktrace=0",
}
TIMEOUT_S = 120
REFUSED = 2
"""Exit code of the driver when a launch has failed."""
FRAME = re.compile(r"\((\S+)\+(0x[0-9a-f]+)\)")
"""A place in a program, as a report names it: the file without its folder, and an offset."""
SPACING = 1 << 36
FIRST_ADDRESS = 0x5A5A << 40
"""No number that a kernel works with looks like an address from here on."""

Array = npt.NDArray[Any]


class SanitizerReport(RuntimeError):
    """What a sanitizer has found, with places in the source."""


class Crash(RuntimeError):
    """The driver ended in a way that nothing explains."""


class _Buffer(NamedTuple):
    address: int
    offset: int
    content: bytearray


class StandaloneMachine:
    """Memory, and launches that run in the driver.

    Parameters
    ----------
    variant
        How kernels are built: `build.THREAD` or `build.ADDRESS`.
    folder
        Where the ``.cu`` files are.
    seed, order, resident
        As of `EmulatedLauncher`.
    """

    def __init__(
        self,
        variant: build.Variant,
        *,
        folder: Path = KERNELS,
        seed: int = 0,
        order: Order = "ascending",
        resident: int = 4,
    ) -> None:
        self._variant = variant
        self._folder = folder
        self._options = struct.pack("<3Q", seed, ORDERS[order], resident)
        self._buffers: list[_Buffer] = []

    def upload(self, values: Array, *, offset: int = 0) -> DeviceArray:
        values = np.ascontiguousarray(values)
        address = FIRST_ADDRESS + SPACING * len(self._buffers) + offset
        self._buffers.append(_Buffer(address, offset, bytearray(values.tobytes())))
        return DeviceArray(address, values.dtype, values.shape)

    def download(self, array: DeviceArray) -> Array:
        (buffer,) = (held for held in self._buffers if held.address == array.address)
        values: Array = np.frombuffer(buffer.content, array.dtype).reshape(array.shape).copy()
        return values

    def run(self, *launches: Launch) -> None:
        """Run launches in order.

        Raises
        ------
        SanitizerReport
            When the sanitizer has found something.
        EmulationError
            When the emulation has.
        Crash, subprocess.TimeoutExpired
            When the driver ends in another way, or not at all.
        """
        with tempfile.TemporaryDirectory() as folder:
            job, result = Path(folder, "job"), Path(folder, "result")
            job.write_bytes(b"".join(self._job(launches)))
            _run_driver(build.program(DRIVER, variant=self._variant), job, result)
            content = result.read_bytes()
        for buffer in self._buffers:
            buffer.content[:], content = (
                content[: len(buffer.content)],
                content[len(buffer.content) :],
            )

    def _job(self, launches: Iterable[Launch]) -> Iterable[bytes]:
        yield self._options
        yield struct.pack("<Q", len(self._buffers))
        for address, offset, content in self._buffers:
            yield struct.pack("<3Q", address, offset, len(content))
            yield bytes(content)
        enqueued = [launch for launch in launches if launch.grid]
        yield struct.pack("<Q", len(enqueued))
        for launch in enqueued:
            yield from self._launch(launch)

    def _launch(self, launch: Launch) -> Iterable[bytes]:
        source = self._folder / f"{launch.kernel.module}.cu"
        yield _text(str(build.module(source, variant=self._variant)).encode())
        yield _text(launch.kernel.name.encode())
        assert launch.grid
        yield struct.pack("<6Q", *launch.grid, launch.kernel.threads, 1, 1)
        yield _text(
            ctypes.string_at(ctypes.addressof(launch.arguments), ctypes.sizeof(launch.arguments))
        )


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _run_driver(driver: Path, *arguments: Path) -> None:
    command = [str(driver), *map(str, arguments)]
    done = _run(command)
    if "unexpected memory mapping" in done.stderr:
        # ThreadSanitizer cannot place its tables where the kernel randomises addresses widely.
        done = _run(["setarch", "--addr-no-randomize", *command])
    if "Sanitizer" in done.stderr or "runtime error" in done.stderr:
        raise SanitizerReport(symbolised(done.stderr))
    if done.returncode == REFUSED:
        raise EmulationError(done.stderr.strip())
    if done.returncode:
        raise Crash(f"exit {done.returncode}: {done.stderr.strip()}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **SANITIZERS}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def symbolised(report: str) -> str:
    """Return a report with ``function file:line`` in place of addresses in what was built here."""
    offsets = defaultdict(set)
    for name, offset in FRAME.findall(report):
        offsets[name].add(offset)
    places = {
        (name, offset): place
        for name, wanted in offsets.items()
        if (build.CACHE / name).exists()
        for offset, place in _places(build.CACHE / name, sorted(wanted)).items()
    }
    return FRAME.sub(lambda found: places.get((found[1], found[2]), found[0]), report)


def _places(program: Path, offsets: list[str]) -> dict[str, str]:
    command = ["addr2line", "-e", str(program), "-a", "-f", "-C", "-i", "-s", *offsets]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    places: dict[str, str] = {}
    for entry in re.split(r"^(?=0x)", done.stdout, flags=re.MULTILINE)[1:]:
        address, *lines = entry.splitlines()
        inlined = [f"{name} {place}" for name, place in zip(lines[::2], lines[1::2], strict=True)]
        places[hex(int(address, 16))] = ", in ".join(inlined)
    return places
