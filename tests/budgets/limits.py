"""The budgets: what a kernel may take, and what is wrong with one that takes more."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from tests.budgets.sass import count
from tests.budgets.usage import Usage


class Budget(NamedTuple):
    """Most registers of a thread and bytes of shared memory of a block; least 128-bit loads."""

    registers: int
    shared: int
    vector_loads: int = 0


# By kernel, the first that matches. With at most 64 registers, 4 blocks of 256 threads are resident
# on a multiprocessor, each thread with one 16-byte load under way: 16 KiB. To keep its memory busy,
# an H100 needs some 15 KiB on each of 132 (3.35 TB/s x 600 ns), an AGX Orin 8 KiB on each of 16.
BUDGETS = {
    r"gate_\w+_x256": Budget(56, 4096, vector_loads=1),
    r"gate_\w+": Budget(64, 4096, vector_loads=1),
    r"scatter_\w+": Budget(56, 512, vector_loads=1),
    r"gather_16": Budget(48, 16, vector_loads=4),
    r"gather_\w+": Budget(32, 16),
    r"preprocess_\w+": Budget(64, 512),
    r"select_bucket": Budget(32, 0),
}


def budget_of(kernel: str) -> Budget:
    """Return the budget of a kernel; one without is a KeyError."""
    for pattern, budget in BUDGETS.items():
        if re.fullmatch(pattern, kernel):
            return budget
    raise KeyError(f"{kernel} has no budget in tests/budgets/limits.py")


def violations(usage: Usage, opcodes: Counter[str], budget: Budget) -> list[str]:
    """Return what is over budget, in words; nothing when all is well.

    Local memory is what a thread keeps outside its registers: spilled ones, arrays indexed by a
    variable. It is as slow as the memory of the device, and never needed by these kernels.
    """
    found = []
    if usage.spill_stores or usage.spill_loads:
        found.append(f"spills {usage.spill_stores} bytes, reloads {usage.spill_loads}")
    if usage.stack:
        found.append(f"{usage.stack} bytes of local memory")
    local = count(opcodes, "LDL") + count(opcodes, "STL")
    if local:
        found.append(f"{local} instructions that access local memory")
    if usage.registers > budget.registers:
        found.append(f"{usage.registers} registers, budget {budget.registers}")
    if usage.shared > budget.shared:
        found.append(f"{usage.shared} bytes of shared memory, budget {budget.shared}")
    vector_loads = count(opcodes, "LDG", "128")
    if vector_loads < budget.vector_loads:
        found.append(f"{vector_loads} 128-bit loads, expected {budget.vector_loads}")
    return found
