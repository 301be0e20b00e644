"""Cases of the kernel tests on a CUDA device, and how fast kernels move bytes there."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.launch import DeviceArray, Launch
from runtime.cuda import CudaDevice

Array = npt.NDArray[Any]

MODULES = ("gate", "gather", "scatter", "preprocess")
REPEATS = 50
_FLUSH_BYTES = 256 * 2**20  # more than any L2 cache, so that a kernel finds its input in DRAM


class Speed(NamedTuple):
    """Median of a kernel's time with a cold cache, and what that means.

    The peak is None where the driver does not tell clock and width of the memory.
    """

    microseconds: float
    gigabytes_per_second: float
    share_of_peak: float | None


class CudaMachine:
    """The `Machine` of a GPU. The device is borrowed, and owns the memory."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        with device.active():
            for module in MODULES:
                device.load(module)
            self._stream = device.stream()

    def upload(self, values: Array, *, offset: int = 0) -> DeviceArray:
        values = np.ascontiguousarray(values)
        with self._device.active():
            memory = self._device.allocate(values.nbytes + offset)
            array = memory.array(values.dtype, values.shape, offset=offset)
            if values.nbytes:
                self._stream.upload(array, values)
        return array

    def download(self, array: DeviceArray) -> Array:
        with self._device.active():
            return self._stream.download(array)

    def run(self, *launches: Launch) -> None:
        with self._device.active():
            for launch in launches:
                launch.enqueue(self._device, stream=self._stream.handle)
            self._stream.sync()

    def speed(self, launch: Launch, nbytes: int) -> Speed:
        """Time a launch that has to move ``nbytes``."""
        with self._device.active():
            flush = self._device.allocate(_FLUSH_BYTES)
            times = [
                self._time(launch, flush.array(np.uint8, (_FLUSH_BYTES,))) for _ in range(REPEATS)
            ]
            flush.free()
        seconds = float(np.median(times)) / 1e3
        rate, peak = nbytes / seconds / 1e9, self.peak()
        return Speed(seconds * 1e6, rate, rate / peak if peak else None)

    def peak(self) -> float:
        """Return the memory's bandwidth in GB/s, from its clock and width; 0 if not known."""
        driver = self._device.driver
        names = (
            driver.device_attribute.MEMORY_CLOCK_RATE,
            driver.device_attribute.GLOBAL_MEMORY_BUS_WIDTH,
        )
        with self._device.active():
            device = driver.Device(self._device.index)
            kilohertz, bits = (device.get_attribute(name) for name in names)
        return float(2 * kilohertz * 1e3 * bits / 8 / 1e9)

    def _time(self, launch: Launch, flush: DeviceArray) -> float:
        begin, end = (self._device.event(timed=True) for _ in range(2))
        self._stream.fill(flush)
        begin.record(self._stream)
        launch.enqueue(self._device, stream=self._stream.handle)
        end.record(self._stream)
        end.sync()
        return end.milliseconds_since(begin)
