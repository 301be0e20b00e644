"""The driver's numbers and memory layouts that the double reads and writes (cuda.h)."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from typing import Any

from tests.cuda_double.graphs import IF, SWITCH


class Status(enum.IntEnum):
    """CUresult."""

    SUCCESS = 0
    INVALID_VALUE = 1
    OUT_OF_MEMORY = 2
    NOT_INITIALIZED = 3
    DEINITIALIZED = 4
    NO_DEVICE = 100
    INVALID_IMAGE = 200
    INVALID_DEVICE = 101
    INVALID_CONTEXT = 201
    SHARED_OBJECT_SYMBOL_NOT_FOUND = 302
    INVALID_HANDLE = 400
    ILLEGAL_STATE = 401
    NOT_FOUND = 500
    NOT_READY = 600
    ILLEGAL_ADDRESS = 700
    LAUNCH_FAILED = 719
    NOT_SUPPORTED = 801
    STREAM_CAPTURE_UNSUPPORTED = 900
    STREAM_CAPTURE_INVALIDATED = 901
    STREAM_CAPTURE_ISOLATION = 905
    UNKNOWN = 999


NODE_TYPES = {
    "KERNEL": 0,
    "MEMCPY": 1,
    "MEMSET": 2,
    "HOST": 3,
    "GRAPH": 4,
    "EMPTY": 5,
    "EVENT_RECORD": 7,
    "MEM_ALLOC": 10,
    "CONDITIONAL": 13,
}
"""CUgraphNodeType."""

_CONDITIONAL_KINDS = {0: IF, 2: SWITCH}
_HOST, _DEVICE = 1, 2  # CUmemorytype
_PARAMETER_BUFFER, _PARAMETER_SIZE = 1, 2  # CU_LAUNCH_PARAM_...
_LOG_BUFFERS = (3, 5)  # CU_JIT_INFO_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER
_SECTION_HEADERS = 0x28  # e_shoff of a 64-bit ELF header
_SECTION_COUNT = 0x3C  # e_shnum

# Functions whose meaning changed: since which CUDA version a name means which symbol.
_SYMBOLS = {
    "cuCtxPopCurrent": ((0, "_v2"),),
    "cuCtxPushCurrent": ((0, "_v2"),),
    "cuEventDestroy": ((0, "_v2"),),
    "cuEventElapsedTime": ((0, ""), (12080, "_v2")),
    "cuGraphAddNode": ((0, ""), (12030, "_v2")),
    "cuGraphInstantiate": ((0, "WithFlags"),),
    "cuMemAlloc": ((0, "_v2"),),
    "cuMemFree": ((0, "_v2"),),
    "cuMemGetInfo": ((0, "_v2"),),
    "cuMemcpyDtoDAsync": ((0, "_v2"),),
    "cuMemcpyDtoHAsync": ((0, "_v2"),),
    "cuMemcpyHtoDAsync": ((0, "_v2"),),
    "cuStreamBeginCapture": ((0, "_v2"),),
    "cuStreamDestroy": ((0, "_v2"),),
    "cuStreamGetCaptureInfo": ((0, "_v2"), (12030, "_v3")),
    "cuStreamUpdateCaptureDependencies": ((0, ""), (12030, "_v2")),
    "cuGetProcAddress": ((0, "_v2"),),
}


def symbol(name: str, version: int) -> str:
    """Return the symbol that a name means to code written for a CUDA version."""
    suffixes = [suffix for since, suffix in _SYMBOLS.get(name, ((0, ""),)) if since <= version]
    return name + suffixes[-1]


def status_name(status: int) -> str:
    """Return a status's name."""
    try:
        return Status(status & 0xFFFFFFFF).name
    except ValueError:
        return f"UNKNOWN_{status}"


def store(address: int, kind: Any, value: int | float) -> int:
    """Write a number, and return success."""
    kind.from_address(address).value = value
    return Status.SUCCESS


def load(address: int, kind: Any) -> int:
    """Return a number."""
    return int(kind.from_address(address).value)


def u32(value: int) -> int:
    """Return an argument of 32 bits, of which the upper half says nothing."""
    return value & 0xFFFFFFFF


def version_number(version: tuple[int, int]) -> int:
    """Return a version as CUDA writes it: 12060 for 12.6."""
    return 1000 * version[0] + 10 * version[1]


def pointer_array(values: Sequence[int]) -> Any:
    """Return an array of pointers, for the caller to keep."""
    return (ctypes.c_void_p * max(1, len(values)))(*values)


def pointers(address: int, count: int) -> list[int]:
    """Return an array of pointers."""
    return [load(address + 8 * place, ctypes.c_uint64) for place in range(count)]


def launch_arguments(parameters: int, extra: int) -> bytes:
    """Return the bytes of a kernel's one parameter, however they were given.

    Only the packed form (``extra``) tells their length; pycuda uses it.
    """
    assert extra and not parameters, "the project's kernels are launched with packed arguments"
    values = {}
    while (key := load(extra, ctypes.c_uint64)) != 0:
        values[key] = load(extra + 8, ctypes.c_uint64)
        extra += 16
    nbytes = load(values[_PARAMETER_SIZE], ctypes.c_size_t)
    return ctypes.string_at(values[_PARAMETER_BUFFER], nbytes)


def conditional_parameters(parameters: int) -> tuple[str, int, int, int]:
    """Read CUgraphNodeParams of a conditional node: kind, handle, size, where to put the bodies."""
    assert load(parameters, ctypes.c_int) == NODE_TYPES["CONDITIONAL"]
    handle = load(parameters + 16, ctypes.c_uint64)
    kind = _CONDITIONAL_KINDS.get(load(parameters + 24, ctypes.c_int), "WHILE")
    return kind, handle, load(parameters + 28, ctypes.c_uint32), parameters + 32


def store_copy(parameters: int, ends: Sequence[tuple[int, bool]]) -> None:
    """Write CUDA_MEMCPY3D from the addresses of source and target, and whether on the device."""
    ctypes.memset(parameters, 0, 200)
    for place, (address, on_device) in zip((32, 120), ends, strict=True):
        store(parameters + place, ctypes.c_int, _DEVICE if on_device else _HOST)
        store(parameters + place + (16 if on_device else 8), ctypes.c_uint64, address)


def elf_image(address: int) -> bytes:
    """Return a whole ELF file; section headers are its end, as compilers write it."""
    if ctypes.string_at(address, 4) != b"\x7fELF":
        return b""
    headers = load(address + _SECTION_HEADERS, ctypes.c_uint64)
    count = load(address + _SECTION_COUNT, ctypes.c_uint16)
    return ctypes.string_at(address, headers + 64 * count)


def end_logs(count: int, options: int, values: int) -> None:
    """Write nothing to the logs of cuModuleLoadDataEx, which pycuda reads when it fails."""
    for place in range(count & 0xFFFFFFFF):
        if load(options + 4 * place, ctypes.c_int) in _LOG_BUFFERS:
            store(load(values + 8 * place, ctypes.c_uint64), ctypes.c_char, b"\0")
