"""Frames that already lie in the memory of a GPU: borrowed, not copied.

Any object with ``__cuda_array_interface__`` (version 3) or ``__dlpack__`` will do: arrays of CuPy,
PyTorch, Numba, pycuda.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from kernels.launch import DeviceArray
from runtime.cuda import CudaDevice
from runtime.cuda_resources import Stream
from runtime.driver import wait_for_stream
from runtime.errors import InputError

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType
_UNSIGNED = 1  # DLDataTypeCode


class DeviceFrames:
    """Frames u8 [N, H, W, C] on a GPU, dense in C order; keeps their owner alive.

    Attributes
    ----------
    address
        Of the first pixel.
    shape
        ``(N, H, W, C)``.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, address: int, shape: tuple[int, ...], *, owner: Any, ready: int | None
    ) -> None:
        self.address = address
        self.shape = shape
        self._owner = owner
        self._ready = ready

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.shape[0]

    def __getitem__(self, part: slice) -> DeviceFrames:
        """Return frames that follow each other."""
        start, stop, _ = part.indices(len(self))
        address = self.address + start * math.prod(self.shape[1:])
        shape = (stop - start, *self.shape[1:])
        return DeviceFrames(address, shape, owner=self._owner, ready=self._ready)

    @property
    def array(self) -> DeviceArray:
        """The same as the kernels' launches take it."""
        return DeviceArray(self.address, self.dtype, self.shape)

    def order(self, stream: Stream) -> None:
        """Let a stream's further work start after what fills the frames."""
        if self._ready not in (None, stream.handle):
            wait_for_stream(stream.handle, self._ready)


def is_on_device(frames: Any) -> bool:
    """Return whether an object says that it lies in device memory."""
    if hasattr(frames, "__cuda_array_interface__"):
        return True
    location = getattr(frames, "__dlpack_device__", None)
    return location is not None and location()[0] in (_CUDA, _CUDA_MANAGED)


def borrow(frames: Any, stream: Stream) -> DeviceFrames:
    """Return the frames of an object that `is_on_device`.

    Parameters
    ----------
    stream
        On which a DLPack producer makes them ready.

    Raises
    ------
    InputError
        When they are not u8 [N, H, W, C], dense in C order, or lie on another GPU.
    """
    if hasattr(frames, "__cuda_array_interface__"):
        return _from_interface(frames)
    return _from_dlpack(frames, stream)


def _from_interface(frames: Any) -> DeviceFrames:
    described = frames.__cuda_array_interface__
    shape = tuple(described["shape"])
    _check_layout(described["typestr"] == "|u1", described["typestr"], shape)
    strides = described.get("strides")
    if strides is not None:
        _check_strides(tuple(strides), shape)
    address, _ = described["data"]
    return DeviceFrames(address, shape, owner=frames, ready=described.get("stream"))


class _DlTensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h, which `DLManagedTensor` begins with."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(frames: Any, stream: Stream) -> DeviceFrames:
    # The capsule is not marked as used, so it frees the tensor itself when it goes.
    capsule = frames.__dlpack__(stream=stream.handle)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DlTensor.from_address(pointer(capsule, b"dltensor"))
    _check_device(tensor.device_id, stream.device)
    shape = tuple(tensor.shape[: tensor.rank])
    kind = f"code {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes"
    _check_layout((tensor.code, tensor.bits, tensor.lanes) == (_UNSIGNED, 8, 1), kind, shape)
    if tensor.strides:
        _check_strides(tuple(tensor.strides[: tensor.rank]), shape)
    address = tensor.data + tensor.byte_offset
    return DeviceFrames(address, shape, owner=capsule, ready=stream.handle)


def _check_device(index: int, device: CudaDevice) -> None:
    if index != device.index:
        raise InputError(
            f"frames: expected on GPU {device.index}, where the cascade runs, got on GPU {index}."
        )


def _check_layout(is_u8: bool, kind: str, shape: tuple[int, ...]) -> None:
    if not is_u8 or len(shape) != 4:
        raise InputError(f"frames: expected u8 [N, H, W, C] on the GPU, got {kind} {list(shape)}.")


def _check_strides(strides: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse what is not dense; a length of 1 may have any stride."""
    expected = 1
    for stride, length in zip(reversed(strides), reversed(shape), strict=True):
        if length > 1 and stride != expected:
            raise InputError(
                f"frames: expected dense rows in C order, got strides {list(strides)} for shape "
                f"{list(shape)}. Make a contiguous copy."
            )
        expected *= length
