"""The small kernels of tests/cuda_cpu/toys.cu, on which the emulation itself is tested."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tests.cuda_cpu import build

TOYS = Path(build.__file__).with_name("toys.cu")


class ToyArguments(ctypes.Structure):
    _fields_ = (
        ("in_", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("wide", ctypes.c_void_p),
        ("n", ctypes.c_uint),
    )


def line(mark: str) -> str:
    """The line that ends with a mark, as a regular expression for how messages name it."""
    lines = TOYS.read_text().splitlines()
    (number,) = (k for k, line in enumerate(lines, 1) if line.endswith(f"// {mark}"))
    return rf"toys\.cu:{number}\b"


def place(mark: str) -> str:
    """The same with the column, as messages of the emulation have it."""
    return line(mark) + r":\d+"
