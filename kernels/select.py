"""The launch of select.cu."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from kernels.launch import Arguments, DeviceArray, Kernel, Launch

MOST_HANDLES = 32
"""Conditional nodes of one select (select.cu)."""


class _SelectArguments(ctypes.Structure):
    _fields_ = (
        ("bucket_index", ctypes.c_void_p),
        ("handles", ctypes.c_ulonglong * MOST_HANDLES),
        ("handle_count", ctypes.c_int),
        ("is_switch", ctypes.c_int),
    )


def select(bucket_index: DeviceArray, handles: Sequence[int], *, is_switch: bool) -> Launch:
    """Return the launch that tells a CUDA graph which bucket's body to run.

    Parameters
    ----------
    bucket_index
        i32 [1], of one round.
    handles
        Conditional handles: one of a SWITCH node, or an IF node's for each bucket.

    Raises
    ------
    ValueError
        For no handle, more than 32, or more than one of a SWITCH.
    """
    Arguments().read("bucket_index", bucket_index, "i32", (1,))
    most = 1 if is_switch else MOST_HANDLES
    if not 1 <= len(handles) <= most:
        raise ValueError(f"handles: expected 1 to {most}, got {len(handles)}")
    padded = (*handles, *[0] * (MOST_HANDLES - len(handles)))
    arguments = _SelectArguments(
        bucket_index.address,
        (ctypes.c_ulonglong * MOST_HANDLES)(*padded),
        len(handles),
        int(is_switch),
    )
    return Launch(Kernel("select", "select_bucket", threads=1), (1, 1, 1), arguments)
