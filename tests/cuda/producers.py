"""Other libraries' arrays in device memory, as far as the cascade sees them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.cuda_double import memory
from tests.cuda_double.api_streams import Stream
from tests.cuda_double.driver import Driver
from tests.cuda_double.memory import span
from tests.cuda_double.work import Touched

CUDA = 2  # DLDeviceType
_UNSIGNED, _FLOAT = 1, 2  # DLDataTypeCode


class DeviceArray:
    """An array of a library that works on a stream of its own.

    Its values are written there, late: who reads it must come after.

    Parameters
    ----------
    stream
        ``False`` waits for the values at once, as a library does that names no stream.
    """

    def __init__(self, driver: Driver, values: np.ndarray, *, stream: bool = True) -> None:
        self._driver = driver
        self.block = driver.memory.allocate(values.nbytes, "device")
        self.shape, self.dtype = values.shape, values.dtype
        self.strides: Sequence[int] | None = None
        self.stream = driver.new(Stream())
        driver.queues.open(self.stream)
        content, place = values.tobytes(), span(self.block.start, values.nbytes)

        def run() -> Touched:
            memory.write(self.block.start, content)
            return Touched([], [place])

        driver.queues.enqueue(self.stream, "producer", run)
        if not stream:
            driver.queues.wait_for_stream(self.stream)
        self._named = self.stream if stream else None

    def free(self) -> None:
        """Give the memory back."""
        self._driver.queues.wait_for_all()
        self._driver.queues.close(self.stream)
        self._driver.remove(self.stream, Stream)
        self._driver.memory.free(self.block.start, "device")


class Interface(DeviceArray):
    """An array with ``__cuda_array_interface__``."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.block.start, True),
            "strides": self.strides,
            "stream": self._named,
        }


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DlPack(DeviceArray):
    """An array with ``__dlpack__``.

    Attributes
    ----------
    device
        Index of the GPU that it says it is on.
    asked
        The streams that consumers have named.
    released
        How many of the tensors that were handed out are given back.
    """

    device = 0

    def __init__(self, driver: Driver, values: np.ndarray) -> None:
        super().__init__(driver, values)
        self.asked: list[int] = []
        self.released = 0
        self._kept: list[Any] = [_Destructor(self._release)]

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, *, stream: int) -> Any:
        self.asked.append(stream)
        queues = self._driver.queues
        queues.enqueue(stream, "wait", Touched, needs=[queues.last(self.stream)])
        lengths = (ctypes.c_int64 * len(self.shape))(*self.shape)
        strides = self.strides and (ctypes.c_int64 * len(self.shape))(*self.strides)
        tensor = _Tensor(
            self.block.start - 16,
            CUDA,
            self.device,
            len(self.shape),
            _UNSIGNED if self.dtype.kind == "u" else _FLOAT,
            8 * self.dtype.itemsize,
            1,
            lengths,
            strides or None,
            16,
        )
        self._kept += [lengths, strides, tensor]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
        return new(ctypes.addressof(tensor), b"dltensor", self._kept[0])

    def _release(self, capsule: int) -> None:
        self.released += 1


KINDS = (Interface, DlPack)
