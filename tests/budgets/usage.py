"""What ptxas says a kernel takes, read from the log of ``--ptxas-options=-v``."""

from __future__ import annotations

import re
from typing import NamedTuple

VERBOSE = "--ptxas-options=-v"


class Usage(NamedTuple):
    """Registers of a thread; bytes of local memory of a thread and shared memory of a block."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_log(log: str) -> dict[str, Usage]:
    """Return the usage of each kernel; a log that does not tell all of it is a ValueError."""
    _, *parts = _ENTRY.split(log)
    return {name: _parse_part(name, text) for name, text in zip(*[iter(parts)] * 2, strict=True)}


def _parse_part(name: str, text: str) -> Usage:
    stack, registers, shared = _STACK.search(text), _REGISTERS.search(text), _SHARED.search(text)
    if stack is None or registers is None:
        raise ValueError(f"{name}: ptxas does not tell its stack frame and registers: {text!r}")
    return Usage(
        int(registers[1]),
        int(stack[1]),
        int(stack[2]),
        int(stack[3]),
        int(shared[1] if shared else 0),
    )
