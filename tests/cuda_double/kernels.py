"""Modules and kernels of the double: a cubin's kernels are run by the CPU emulation.

The cubin itself is not executed. Its ELF symbols name the kernels in it, and the emulation has built
the same sources; so what runs is what the file says, if it was compiled from these sources.
"""

from __future__ import annotations

import ctypes

from kernels.launch import Grid, Kernel
from tests.cuda_cpu.emulation import KERNELS, EmulatedLauncher
from tests.cuda_double.work import Span, Touched


class Kernels:
    """All kernels of the project, by name."""

    def __init__(self) -> None:
        self._launcher = EmulatedLauncher()
        self._modules = [path.stem for path in sorted(KERNELS.glob("*.cu"))]

    def of(self, cubin: bytes) -> dict[str, str]:
        """Return the kernels in a cubin, each with its module."""
        found = {}
        for module in self._modules:
            for name in self._launcher.names(module):
                if b"\0.text." + name.encode() + b"\0" in cubin:
                    found[name] = module
        return found

    def launch(
        self, name: str, module: str, shape: tuple[Grid, int], arguments: bytes
    ) -> tuple[Touched, list[tuple[int, int]]]:
        """Run a kernel; return what it touched, and the conditional handles that it set."""
        grid, threads = shape
        buffer = ctypes.create_string_buffer(arguments, len(arguments))
        structure = _as_structure(buffer)
        self._launcher.launch(Kernel(module, name, threads), grid, structure, stream=0)
        done = self._launcher.launched.pop()
        touched = Touched(
            [Span(*span) for span in done.spans_read], [Span(*span) for span in done.spans_written]
        )
        return touched, [(call.handle, call.value) for call in done.conditionals]


def _as_structure(buffer: ctypes.Array) -> ctypes.Structure:
    fields = (("bytes", ctypes.c_char * len(buffer)),)
    kind = type("Arguments", (ctypes.Structure,), {"_fields_": fields})
    return kind.from_buffer(buffer)
