"""Modules and kernels of the double: a cubin's kernels are run by the CPU emulation.

The cubin itself is not executed. Its sections name the kernels in it, and the emulation has built
the same sources; so what runs is what the file says, if it was compiled from these sources.
"""

from __future__ import annotations

import ctypes
import re

from kernels.launch import Grid, Kernel
from tests.cuda_cpu.emulation import KERNELS, Conditional, EmulatedLauncher
from tests.cuda_double.work import Touched

_SECTION = re.compile(rb"\0\.text\.(\w+)(?=\0)")


class Kernels:
    """All kernels of the project, by name."""

    def __init__(self) -> None:
        self._launcher = EmulatedLauncher()
        self._modules = [path.stem for path in sorted(KERNELS.glob("*.cu"))]

    def of(self, cubin: bytes) -> dict[str, Kernel]:
        """Return the kernels of a cubin; threads of a block are not known yet."""
        names = {name.decode() for name in _SECTION.findall(cubin)}
        return {
            name: Kernel(module, name)
            for module in self._modules
            for name in names
            if self._launcher.has(module, name)
        }

    def launch(
        self, kernel: Kernel, grid: Grid, arguments: bytes
    ) -> tuple[Touched, tuple[Conditional, ...]]:
        """Run a kernel; return what it touched, and the conditional handles that it set."""
        buffer = ctypes.create_string_buffer(arguments, len(arguments))
        self._launcher.launch(kernel, grid, _as_structure(buffer), stream=0)
        launched = self._launcher.launched.pop()
        return Touched(*self._launcher.touched(kernel.module)), launched.conditionals


def _as_structure(buffer: ctypes.Array) -> ctypes.Structure:
    fields = (("content", ctypes.c_char * len(buffer)),)
    kind = type("Arguments", (ctypes.Structure,), {"_fields_": fields})
    return kind.from_buffer(buffer)
