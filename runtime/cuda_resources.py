"""What a GPU device owns: memory, pinned memory of the host, streams and events.

`runtime.cuda.CudaDevice` makes them; each is freed by whoever asked for it, or with the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from kernels.launch import DeviceArray

if TYPE_CHECKING:
    from runtime.cuda import CudaDevice

_R = TypeVar("_R", bound="Resource")


@dataclass
class Activity:
    """What the host has asked of a device since it was opened.

    Attributes
    ----------
    launches
        Kernels, engines and graphs.
    copies
        Enqueued ones, those that graphs hold not among them.
    waits
        How often the host waited for the device.
    """

    launches: int = 0
    copies: int = 0
    waits: int = 0


class Resource:
    """Something of a device: freed once, by whoever made it or with the device."""

    def __init__(self, device: CudaDevice, native: Any, nbytes: int = 0) -> None:
        self.device = device
        self.native = native
        self.nbytes = nbytes
        device.adopt(self)

    def free(self) -> None:
        """Free it; a second call does nothing. Work that uses it must have ended."""
        native, self.native = self.native, None
        if native is not None:
            self.device.release(self, native)


class DeviceMemory(Resource):
    """Owns memory of the device.

    Attributes
    ----------
    address
        Aligned to 256 bytes.
    """

    address = 0

    def array(
        self, dtype: npt.DTypeLike, shape: tuple[int, ...], *, offset: int = 0
    ) -> DeviceArray:
        """Return a part of it as the kernels' launches take it; ``offset`` in bytes."""
        return DeviceArray(self.address + offset, np.dtype(dtype), shape)


class PinnedMemory(DeviceMemory):
    """Owns pinned memory of the host, which the device copies from and to while the host goes on.

    Attributes
    ----------
    address
        As the device sees it where it is mapped, else 0.
    host
        u8 [nbytes], valid until it is freed.
    """

    def __init__(self, device: CudaDevice, host: npt.NDArray[np.uint8], nbytes: int) -> None:
        super().__init__(device, host.base, nbytes)
        self.host = host[:nbytes]

    def view(
        self, dtype: npt.DTypeLike, shape: tuple[int, ...], *, offset: int = 0
    ) -> npt.NDArray[Any]:
        """Return a part of it as the host sees it; valid until it is freed."""
        nbytes = DeviceArray(0, np.dtype(dtype), shape).nbytes
        return self.host[offset : offset + nbytes].view(dtype).reshape(shape)


class Event(Resource):
    """Owns a point in a stream."""

    def record(self, stream: Stream) -> None:
        """Place it behind all that was enqueued on the stream."""
        self.device.call(self.native.record, stream.native)

    def is_done(self) -> bool:
        """Return whether everything before it has ended."""
        return bool(self.device.call(self.native.query))

    def sync(self) -> None:
        """Wait until everything before it has ended."""
        self.device.activity.waits += 1
        self.device.call(self.native.synchronize)

    def milliseconds_since(self, earlier: Event) -> float:
        """Return the time between two events that have ended and keep time."""
        return float(self.device.call(self.native.time_since, earlier.native))


class Stream(Resource):
    """Owns a queue of work on the device.

    Attributes
    ----------
    handle
        The ``CUstream``, as TensorRT and cuda-bindings take it.
    """

    def __init__(self, device: CudaDevice, stream: Any) -> None:
        super().__init__(device, stream)
        self.handle = int(stream.handle)

    def upload(self, target: DeviceArray, values: npt.NDArray[Any]) -> None:
        """Copy any values, and wait for it: for what is uploaded once."""
        with self._pinned(values.nbytes) as pinned:
            pinned.view(values.dtype, values.shape)[...] = values
            self.copy_in(target.address, pinned.host)
            self.sync()

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        """Return a copy of an array, after waiting for all that is enqueued."""
        with self._pinned(array.nbytes) as pinned:
            self.copy_out(pinned.host, array.address)
            self.sync()
            values: npt.NDArray[Any] = pinned.view(array.dtype, array.shape).copy()
            return values

    def copy_in(self, target: int, source: npt.NDArray[Any]) -> None:
        """Enqueue a copy from pinned memory, which must stay as it is until the copy has ended."""
        self.device.activity.copies += 1
        self.device.call(self.device.driver.memcpy_htod_async, target, source, self.native)

    def copy_out(self, target: npt.NDArray[Any], source: int) -> None:
        """Enqueue a copy to pinned memory."""
        self.device.activity.copies += 1
        self.device.call(self.device.driver.memcpy_dtoh_async, target, source, self.native)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within the device's memory."""
        self.device.activity.copies += 1
        self.device.call(self.device.driver.memcpy_dtod_async, target, source, nbytes, self.native)

    def fill(self, target: DeviceArray, value: int = 0) -> None:
        """Enqueue setting every byte of an array."""
        self.device.call(
            self.device.driver.memset_d8_async, target.address, value, target.nbytes, self.native
        )

    def sync(self) -> None:
        """Wait until everything enqueued has ended."""
        self.device.activity.waits += 1
        self.device.call(self.native.synchronize)

    @contextmanager
    def _pinned(self, nbytes: int) -> Iterator[PinnedMemory]:
        memory = self.device.pin(nbytes)
        yield memory
        memory.free()  # after an error a copy may be under way: then its device frees it


class Resources:
    """Makes resources of a device, and frees them together."""

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self._made: list[Resource] = []

    @property
    def nbytes(self) -> int:
        """Memory of device and host that is held."""
        return sum(resource.nbytes for resource in self._made if resource.native is not None)

    def allocate(self, nbytes: int, purpose: str) -> DeviceMemory:
        """Return memory of the device, see `CudaDevice.allocate`."""
        return self._keep(self.device.allocate(nbytes, purpose))

    def pin(self, nbytes: int, *, mapped: bool = False) -> PinnedMemory:
        """Return pinned memory, see `CudaDevice.pin`."""
        return self._keep(self.device.pin(nbytes, mapped=mapped))

    def stream(self) -> Stream:
        """Return a new stream."""
        return self._keep(self.device.stream())

    def event(self, *, timed: bool = False) -> Event:
        """Return a new event, see `CudaDevice.event`."""
        return self._keep(self.device.event(timed=timed))

    def close(self) -> None:
        """Free everything, the latest first; a second call does nothing."""
        with ExitStack() as stack:
            for resource in self._made:
                stack.callback(resource.free)
            self._made.clear()

    def _keep(self, resource: _R) -> _R:
        self._made.append(resource)
        return resource
