"""What a launch is made of: memory of a device, a kernel, what runs it, checked arguments."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

THREADS = 256
"""Threads of a block, in all kernels but the one-threaded `ops.select`."""

WARP = 32

MOST_INT = 2**31 - 1
"""Largest number of rows or classes, which kernels count in i32; products are 64 bits wide."""

Grid = tuple[int, int, int]


class Kernel(NamedTuple):
    """A kernel: the ``.cu`` file it stands in, without ending; its name; threads of a block."""

    module: str
    name: str
    threads: int = THREADS


class Launcher(Protocol):
    """What runs kernels: a CUDA device, or the emulation of the tests."""

    def load(self, module: str) -> None:
        """Load the kernels of one ``.cu`` file, so that launching has nothing left to load."""

    def launch(
        self, kernel: Kernel, grid: Grid, arguments: ctypes.Structure, *, stream: int
    ) -> None:
        """Enqueue a kernel, whose one parameter is ``arguments`` by value; return at once."""


class DeviceArray(NamedTuple):
    """Memory of a device, borrowed: dense, in C order.

    Attributes
    ----------
    address
        Of the first byte, as the device sees it.
    """

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size

    def __str__(self) -> str:
        """Return dtype and shape as ``f32 [2, 10]``."""
        return f"{_short(self.dtype)} {list(self.shape)}"


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and arguments, ready to be enqueued any number of times.

    It borrows the memory that its arguments point to. A grid of None launches nothing.
    """

    kernel: Kernel
    grid: Grid | None
    arguments: ctypes.Structure

    def enqueue(self, launcher: Launcher, *, stream: int) -> None:
        """Enqueue the kernel on ``stream``; neither allocates nor waits."""
        if self.grid is not None:
            launcher.launch(self.kernel, self.grid, self.arguments, stream=stream)


class Arguments:
    """The arrays of one launch, checked as they are named.

    Every problem is a ``ValueError`` such as ``label: expected i32 [64], got i64 [64]``.
    """

    def __init__(self) -> None:
        self._read: dict[str, DeviceArray] = {}
        self._written: dict[str, DeviceArray] = {}

    def read(
        self, name: str, array: DeviceArray, dtypes: str, shape: tuple[int | str, ...]
    ) -> DeviceArray:
        """Return an array that the kernel reads.

        Parameters
        ----------
        dtypes
            The allowed ones, in short: ``"f16 f32"``.
        shape
            Each length, or a name where any length will do.
        """
        self._read[name] = _checked(name, array, dtypes, shape)
        return array

    def write(
        self, name: str, array: DeviceArray, dtypes: str, shape: tuple[int | str, ...]
    ) -> DeviceArray:
        """Return an array that the kernel writes; `separate` then holds it against all others."""
        self._written[name] = _checked(name, array, dtypes, shape)
        return array

    def separate(self) -> None:
        """Refuse an array that is written and shares memory with another.

        Raises
        ------
        ValueError
            Naming both.
        """
        arrays = sorted(
            (array.address, array.address + array.nbytes, name)
            for name, array in (self._read | self._written).items()
            if array.nbytes
        )
        open_: list[tuple[int, str]] = []
        for start, stop, name in arrays:
            open_ = [(end, other) for end, other in open_ if end > start]
            for _, other in open_:
                if name in self._written or other in self._written:
                    raise ValueError(f"{name}: expected memory of its own, overlaps {other}")
            open_.append((stop, name))


def address(array: DeviceArray | None) -> int | None:
    """Return an optional array's address; None is a null pointer."""
    return None if array is None else array.address


def check_count(name: str, value: int, *, least: int = 0, most: int = MOST_INT) -> int:
    """Return a number of rows, classes or the like.

    Raises
    ------
    ValueError
        When it lies outside ``least`` to ``most``.
    """
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")
    return value


def check_answers(
    check: Arguments, label: DeviceArray, confidence: DeviceArray, stage: DeviceArray
) -> int:
    """Return the number of samples of label, confidence and stage: i32, f32, i8 [samples]."""
    (samples,) = check.write("label", label, "i32", ("samples",)).shape
    check.write("confidence", confidence, "f32", (samples,))
    check.write("stage", stage, "i8", (samples,))
    return samples


def ceil_div(amount: int, size: int) -> int:
    """Return how many parts of ``size`` cover ``amount``."""
    return -(-amount // size)


def _checked(
    name: str, array: DeviceArray, dtypes: str, shape: tuple[int | str, ...]
) -> DeviceArray:
    fits = len(array.shape) == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or _short(array.dtype) not in dtypes.split():
        wanted = "[" + ", ".join(str(length) for length in shape) + "]"
        raise ValueError(f"{name}: expected {dtypes.replace(' ', ' or ')} {wanted}, got {array}")
    check_alignment(name, array, array.dtype.itemsize)
    return array


def check_alignment(name: str, array: DeviceArray, alignment: int) -> None:
    """Refuse an address that is not a multiple of ``alignment`` bytes.

    Raises
    ------
    ValueError
        With the remainder.
    """
    if array.address % alignment:
        raise ValueError(
            f"{name}: expected an address that is a multiple of {alignment}, "
            f"got {array.address:#x} (remainder {array.address % alignment})"
        )


def _short(dtype: np.dtype[Any]) -> str:
    return f"{dtype.kind}{dtype.itemsize * 8}"
