"""Where the cases of the kernel tests run: on the CPU emulation here, on a GPU in test_gpu.py."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kernels.launch import DeviceArray, Launch, Launcher
from tests.cuda_cpu.emulation import EmulatedLauncher

Array = npt.NDArray[Any]

GUARD = 64
"""Bytes around every array, which must stay as they are."""
SENTINEL = 0x5A


class Machine(Protocol):
    """Memory and a launcher."""

    def upload(self, values: Array, *, offset: int = 0) -> DeviceArray:
        """Copy values to the device, ``offset`` bytes past a multiple of 256."""

    def download(self, array: DeviceArray) -> Array:
        """Copy values back, after all work has ended."""

    def run(self, *launches: Launch) -> None:
        """Enqueue launches in order and wait for them."""


class EmulatedMachine:
    """Host memory, with a guard around each array that `download` checks."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self._blocks: dict[int, npt.NDArray[np.uint8]] = {}

    def upload(self, values: Array, *, offset: int = 0) -> DeviceArray:
        values = np.ascontiguousarray(values)
        block = np.full(values.nbytes + offset + 256 + 2 * GUARD, SENTINEL, np.uint8)
        start = -(block.ctypes.data + GUARD) % 256 + GUARD + offset
        block[start : start + values.nbytes] = values.reshape(-1).view(np.uint8)
        address = block.ctypes.data + start
        self._blocks[address] = block
        return DeviceArray(address, values.dtype, values.shape)

    def download(self, array: DeviceArray) -> Array:
        block = self._blocks[array.address]
        start = array.address - block.ctypes.data
        stop = start + array.nbytes
        outside = np.concatenate([block[start - GUARD : start], block[stop : stop + GUARD]])
        assert (outside == SENTINEL).all(), "written outside the array"
        return block[start:stop].view(array.dtype).reshape(array.shape).copy()

    def run(self, *launches: Launch) -> None:
        for launch in launches:
            launch.enqueue(self.launcher, stream=0)


def emulated(**options: Any) -> EmulatedMachine:
    """Return a machine on the emulation; options are its seed, resident blocks and the like."""
    return EmulatedMachine(EmulatedLauncher(**options))
