"""How much of a multiprocessor a kernel fills, by formula.

Limits are those of the CUDA Programming Guide, "Technical Specifications per Compute Capability";
the formula is that of NVIDIA's cuda_occupancy.h, against which test_budgets.py checks it.
"""

from __future__ import annotations

from typing import NamedTuple

WARP = 32
REGISTERS = 65536  # of a multiprocessor, in four parts
PARTS = 4
REGISTER_UNIT = 256  # of a warp


class Multiprocessor(NamedTuple):
    """Limits: threads, blocks, bytes of shared memory, and how the last are handed out."""

    threads: int
    blocks: int
    shared: int
    shared_unit: int = 128
    shared_reserved: int = 1024  # of each block, by the driver


MULTIPROCESSORS = {
    "sm_75": Multiprocessor(1024, 16, 64 * 1024, shared_unit=256, shared_reserved=0),
    "sm_80": Multiprocessor(2048, 32, 164 * 1024),
    "sm_86": Multiprocessor(1536, 16, 100 * 1024),
    "sm_87": Multiprocessor(1536, 16, 164 * 1024),
    "sm_89": Multiprocessor(1536, 24, 100 * 1024),
    "sm_90": Multiprocessor(2048, 32, 228 * 1024),
    "sm_100": Multiprocessor(2048, 32, 228 * 1024),
    "sm_110": Multiprocessor(1536, 24, 228 * 1024),
    "sm_120": Multiprocessor(1536, 24, 100 * 1024),
    "sm_121": Multiprocessor(1536, 24, 100 * 1024),
}


def resident_blocks(architecture: str, *, registers: int, shared: int, threads: int) -> int:
    """Return how many blocks of a kernel a multiprocessor holds at a time.

    Parameters
    ----------
    registers
        Of a thread.
    shared
        Bytes of a block.
    threads
        Of a block.
    """
    limits = MULTIPROCESSORS[architecture]
    warps = _ceil_div(threads, WARP)
    of_warp = _ceil_div(registers * WARP, REGISTER_UNIT) * REGISTER_UNIT
    warps_held = REGISTERS // PARTS // of_warp * PARTS if of_warp else limits.threads // WARP
    of_block = _ceil_div(shared + limits.shared_reserved, limits.shared_unit) * limits.shared_unit
    blocks_sharing = limits.shared // of_block if of_block else limits.blocks
    return min(limits.blocks, limits.threads // WARP // warps, warps_held // warps, blocks_sharing)


def occupancy(architecture: str, *, registers: int, shared: int, threads: int) -> float:
    """Return the share of a multiprocessor's threads that can be resident, in [0, 1]."""
    blocks = resident_blocks(architecture, registers=registers, shared=shared, threads=threads)
    return blocks * threads / MULTIPROCESSORS[architecture].threads


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
