"""A launcher that runs kernels on the CPU, thread by thread: emulation, not a GPU."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Literal, NamedTuple

from kernels.launch import Grid, Kernel
from tests.cuda_cpu import build

Order = Literal["ascending", "descending", "random"]

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
ORDERS: dict[Order, int] = {"ascending": 0, "descending": 1, "random": 2}
_MOST_CONDITIONALS, _MESSAGE = 256, 1024


class EmulationError(RuntimeError):
    """A kernel did what is not allowed on the hardware, or will not end."""


class Conditional(NamedTuple):
    """A call of ``cudaGraphSetConditional``."""

    handle: int
    value: int


class Span(NamedTuple):
    """Bytes from the address ``start`` to before ``stop``."""

    start: int
    stop: int


class Launched(NamedTuple):
    """What one launch did.

    Attributes
    ----------
    bytes_read, bytes_written
        Of global memory, summed over the accesses of all threads.
    atomics
        How many of the accesses were atomic; each counts its bytes as read and as written.
    switches
        From one thread to another: what emulating costs.
    conditionals
        In the order of the calls.
    """

    kernel: Kernel
    bytes_read: int
    bytes_written: int
    atomics: int
    switches: int
    conditionals: tuple[Conditional, ...]


class EmulatedLauncher:
    """Runs launches at once, in host memory: addresses are those of NumPy arrays.

    Streams are ignored, since every launch has ended when the next one starts.

    Parameters
    ----------
    seed
        None, or the seed of a random order.
    order
        In which blocks start, and the threads of a block run between two waits. ``"ascending"``
        without a seed, ``"random"`` with one; ``"descending"`` costs no more than ascending.
    resident
        How many blocks run at the same time.
    folder
        Where the ``.cu`` files are.

    Attributes
    ----------
    launched
        What each launch did, the latest last.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        order: Order | None = None,
        resident: int = 4,
        folder: Path = KERNELS,
        variant: build.Variant = build.PLAIN,
    ) -> None:
        chosen: Order = order or ("ascending" if seed is None else "random")
        self._options = _Options(seed or 0, ORDERS[chosen], resident)
        self._folder = folder
        self._variant = variant
        self._modules: dict[str, ctypes.CDLL] = {}
        self.launched: list[Launched] = []

    def load(self, module: str) -> None:
        """Build a ``.cu`` file, if need be, and load it."""
        if module not in self._modules:
            path = build.module(self._folder / f"{module}.cu", variant=self._variant)
            self._modules[module] = _library(path)

    def launch(
        self, kernel: Kernel, grid: Grid, arguments: ctypes.Structure, *, stream: int
    ) -> None:
        """Run a kernel to its end.

        Raises
        ------
        EmulationError
            When it did what it must not, or the arguments are not of the size it takes.
        """
        self.load(kernel.module)
        library = self._modules[kernel.module]
        _check_size(library, kernel, arguments)
        report = _Report()
        library.cuda_cpu_launch(
            kernel.name.encode(),
            ctypes.byref(_Shape(grid, (kernel.threads, 1, 1))),
            ctypes.byref(self._options),
            ctypes.byref(ctypes.c_void_p(ctypes.addressof(arguments))),
            ctypes.byref(report),
        )
        if report.message:
            raise EmulationError(f"{kernel.name}: {report.message.decode()}")
        self.launched.append(_launched(kernel, report))

    def has(self, module: str, kernel: str) -> bool:
        """Return whether a ``.cu`` file has a kernel of that name."""
        self.load(module)
        return bool(self._modules[module].cuda_cpu_parameters(kernel.encode()))

    def touched(self, module: str) -> tuple[list[Span], list[Span]]:
        """Return the bytes that the last launch of a module read, and those it wrote.

        Atomics have written. In no order; not known in the build with ThreadSanitizer.
        """
        library = self._modules[module]
        return _ranges(library, written=0), _ranges(library, written=1)


def _ranges(library: ctypes.CDLL, *, written: int) -> list[Span]:
    count = library.cuda_cpu_touched(written, None, 0)
    ranges = (ctypes.c_uint64 * 2 * count)()
    library.cuda_cpu_touched(written, ranges, count)
    return [Span(first, end) for first, end in ranges]


class _Shape(ctypes.Structure):
    _fields_ = (("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3))


class _Options(ctypes.Structure):
    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("order", ctypes.c_uint32),
        ("resident_blocks", ctypes.c_uint32),
    )


class _Conditional(ctypes.Structure):
    _fields_ = (("handle", ctypes.c_uint64), ("value", ctypes.c_uint32))


class _Report(ctypes.Structure):
    _fields_ = (
        ("bytes_read", ctypes.c_uint64),
        ("bytes_written", ctypes.c_uint64),
        ("atomics", ctypes.c_uint64),
        ("switches", ctypes.c_uint64),
        ("conditionals", ctypes.c_uint32),
        ("conditional", _Conditional * _MOST_CONDITIONALS),
        ("message", ctypes.c_char * _MESSAGE),
    )


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.cuda_cpu_parameters.restype = ctypes.POINTER(ctypes.c_size_t)
    library.cuda_cpu_launch.restype = None
    library.cuda_cpu_touched.restype = ctypes.c_size_t
    library.cuda_cpu_touched.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    return library


def _check_size(library: ctypes.CDLL, kernel: Kernel, arguments: ctypes.Structure) -> None:
    sizes = library.cuda_cpu_parameters(kernel.name.encode())
    if not sizes:
        raise EmulationError(f"{kernel.module}.cu has no kernel {kernel.name}")
    got = ctypes.sizeof(arguments)
    if sizes[0] != got or sizes[1] != 0:
        raise EmulationError(
            f"{kernel.name}: expected one parameter of {got} bytes, as the arguments have, "
            f"the kernel takes {sizes[0]}{' and more' if sizes[1] else ''}"
        )


def _launched(kernel: Kernel, report: _Report) -> Launched:
    calls = report.conditional[: report.conditionals]
    return Launched(
        kernel,
        report.bytes_read,
        report.bytes_written,
        report.atomics,
        report.switches,
        tuple(Conditional(call.handle, call.value) for call in calls),
    )
