"""One NVIDIA GPU through pycuda: its context, memory, streams, events and kernels.

The only module that imports pycuda, and only when a device is opened. It uses the device's primary
context, which TensorRT and PyTorch share, and holds it current only inside `CudaDevice.active`.
Nothing runs on the default stream.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np

from kernels.launch import Grid, Kernel
from runtime.cuda_kernels import LoadedKernels
from runtime.cuda_resources import Activity, DeviceMemory, Event, PinnedMemory, Resource, Stream
from runtime.driver import DriverError, ask_driver, pop_context
from runtime.errors import ClosedError, DeviceError, DeviceMemoryError

OLDEST_DRIVER = (12, 0)

_T = TypeVar("_T")
_MIB = 2**20
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no implicit order with the default stream


class CudaDevice:
    """One GPU. Owns everything made through it; any thread may use it, one at a time.

    Parameters
    ----------
    index
        Which GPU, as the driver counts them.

    Raises
    ------
    DeviceError
        When there is no driver, no such GPU, the driver is too old, or pycuda is missing.

    Attributes
    ----------
    gpu
        Name, architecture and memory.
    driver_version
        CUDA version of the driver, major and minor.
    shares_memory
        Whether it has no memory of its own but the host's, as on Jetson.
    activity
        What the host has asked of it so far.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.gpu, self.driver_version = _ask(index)
        self.driver = _import_pycuda()
        self.activity = Activity()
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._depth = 0
        self._capturing = False
        self._dead = ""
        self._owned: dict[int, Resource] = {}
        self._lost: list[Any] = []
        self._streams: dict[int, Stream] = {}
        self._kernels = LoadedKernels(self)
        self.call(self.driver.init)
        native = self.call(self.driver.Device, index)
        attribute = self.driver.device_attribute.INTEGRATED
        self.shares_memory = bool(self.call(native.get_attribute, attribute))
        self._context: Any = self.call(native.retain_primary_context)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hold the device for this thread, its context current.

        Raises
        ------
        ClosedError
            When the device is closed.
        DeviceError
            In a forked child, which has no context.
        """
        if self.is_forked:
            raise DeviceError(
                "This process was forked after the GPU was opened, and has no context on it. "
                "Load the cascade in the child, or start it with multiprocessing's 'spawn'."
            )
        with self._lock:
            if self._context is None:
                raise ClosedError("This GPU device is closed. Load the cascade again.")
            if self._depth == 0:
                self.call(self._context.push)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.call(self.driver.Context.pop)

    @property
    def is_forked(self) -> bool:
        """Whether this is a forked child of the process that opened it."""
        return os.getpid() != self._process

    @property
    def is_usable(self) -> bool:
        """Whether work can be enqueued: not closed, not failed, not in a forked child."""
        return self._context is not None and not self._dead and not self.is_forked

    def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call the driver: the one place where its errors become ours.

        Raises
        ------
        DeviceMemoryError
            When memory ran out.
        DeviceError
            For any other error. Some end the context: then everything fails until the process ends.
        """
        try:
            return function(*arguments)
        except self.driver.MemoryError as error:
            problem: DeviceError = DeviceMemoryError(f"{self.gpu.name}: out of memory: {error}.")
        except self.driver.Error as error:
            problem = self.failure(str(error))
        del function, arguments  # what they refer to must not live as long as the exception
        raise problem

    def failure(self, text: str) -> DeviceError:
        """Return the exception for a call that failed; look whether the context has ended."""
        if not self._capturing:
            self._look(text)
        return DeviceError(self._dead or f"{self.gpu.name}: {text}.")

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Hold while a stream captures: calls that a capture may not contain are then not made."""
        self._capturing = True
        try:
            yield
        except DeviceError as error:
            self._look(str(error))
            raise
        finally:
            self._capturing = False

    def allocate(self, nbytes: int, purpose: str = "") -> DeviceMemory:
        """Return memory of the device, aligned to 256 bytes, its content undefined.

        Raises
        ------
        DeviceMemoryError
            When there is not enough: says how much was asked for, what for, and how much is free.
        """
        try:
            native = self.call(self.driver.mem_alloc, max(1, nbytes))
        except DeviceMemoryError:
            free, total = self.call(self.driver.mem_get_info)
            raise DeviceMemoryError(
                f"{self.gpu.name}: out of memory: asked for {nbytes / _MIB:.1f} MiB"
                f"{' for ' + purpose if purpose else ''}, {free / _MIB:.1f} of "
                f"{total / _MIB:.1f} MiB are free. Use a smaller batch, or end other processes."
            ) from None
        memory = DeviceMemory(self, native, nbytes)
        memory.address = int(native)
        return memory

    def pin(self, nbytes: int, *, mapped: bool = False) -> PinnedMemory:
        """Return pinned memory of the host, zeroed; ``mapped`` lets the device see it too."""
        flags = self.driver.host_alloc_flags.DEVICEMAP if mapped else 0
        host = self.call(self.driver.pagelocked_empty, max(1, nbytes), np.uint8, "C", flags)
        host.fill(0)
        memory = PinnedMemory(self, host, nbytes)
        if mapped:
            memory.address = int(self.call(host.base.get_device_pointer))
        return memory

    def stream(self) -> Stream:
        """Return a new stream, in no implicit order with any other."""
        stream = Stream(self, self.call(self.driver.Stream, _NON_BLOCKING))
        self._streams[stream.handle] = stream
        return stream

    def event(self, *, timed: bool = False) -> Event:
        """Return a new event; only a ``timed`` one can tell milliseconds."""
        flags = 0 if timed else self.driver.event_flags.DISABLE_TIMING
        return Event(self, self.call(self.driver.Event, flags))

    def load(self, module: str) -> None:
        """Load the kernels of one ``.cu`` file, from a cubin for this GPU.

        Raises
        ------
        DeviceError
            When it cannot be compiled, or the driver refuses it.
        """
        self._kernels.load(module)

    def launch(
        self, kernel: Kernel, grid: Grid, arguments: ctypes.Structure, *, stream: int
    ) -> None:
        """Enqueue a kernel; its module must be loaded."""
        self._kernels.launch(kernel, grid, arguments, stream=self._streams[stream])

    def adopt(self, resource: Resource) -> None:
        """Own what was made."""
        self._owned[id(resource)] = resource

    def release(self, resource: Resource, native: Any) -> None:
        """Free what a resource held; with a dead context it is gone already."""
        self._owned.pop(id(resource), None)
        if not self.is_usable:
            self._lost.append(native)
            return
        with self.active():
            if isinstance(resource, DeviceMemory):
                self.call(native.free)
            elif isinstance(resource, Stream):
                self._streams.pop(resource.handle, None)
            del native  # pycuda frees streams and events with the last reference

    @property
    def owned_bytes(self) -> int:
        """Memory of device and host that is allocated through it."""
        return sum(resource.nbytes for resource in self._owned.values())

    def close(self) -> None:
        """Wait for work in flight and free everything; a second call does nothing.

        Raises
        ------
        DeviceError
            When work in flight fails; everything is freed all the same.
        """
        if self._context is None or self.is_forked:
            return
        with self._lock:
            try:
                if self.is_usable:
                    self._free_all()
            finally:
                self._detach()

    def _look(self, text: str) -> None:
        """Find out whether the context has ended: then any call says so."""
        try:
            if self._depth and not self._dead:
                self.driver.mem_get_info()
        except self.driver.Error:
            self._dead = (
                f"{self.gpu.name}: {text}. Work on the GPU has failed, and with it the context of "
                "this process: start the process anew. To find the cause: "
                "python -m runtime.verify BUNDLE --device cuda"
            )

    def _free_all(self) -> None:
        with self.active():
            try:
                self.call(self.driver.Context.synchronize)
            finally:
                if self.is_usable:
                    for resource in list(self._owned.values()):
                        resource.free()
                    self._kernels.clear()

    def _detach(self) -> None:
        """Release the context. What still refers to it is then dropped without a driver call."""
        context, self._context = self._context, None
        with ExitStack() as stack:
            for held in (self._owned, self._lost, self._streams, self._kernels):
                stack.callback(held.clear)
            stack.callback(context.detach)
            self.call(context.push)  # pycuda releases only the context that is current
            pop_context()  # which it then takes from its own stack, not from the driver's


def _ask(index: int) -> tuple[Any, tuple[int, int]]:
    driver = ask_driver()
    major, minor = (int(part) for part in driver.cuda.split("."))
    if (major, minor) < OLDEST_DRIVER:
        raise DriverError(
            f"the NVIDIA driver is too old: expected CUDA {OLDEST_DRIVER[0]}.{OLDEST_DRIVER[1]} or "
            f"newer, it has {driver.cuda}. Update the driver (on Jetson: JetPack 6 or newer)."
        )
    return driver.gpu(index), (major, minor)


def _import_pycuda() -> Any:
    try:
        import pycuda.driver
    except ImportError as error:
        raise DeviceError(
            f"pycuda cannot be imported ({error}). Install it: pip install "
            "'tinysaver-runtime[cuda]' (it compiles, and needs the CUDA toolkit's headers; "
            "see docs/jetson.md)"
        ) from None
    return pycuda.driver
