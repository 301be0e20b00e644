"""The project's kernels on one GPU: modules loaded from cubins, and launches of what is in them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from kernels.cubins import load_cubin
from kernels.errors import KernelError
from kernels.launch import Grid, Kernel
from kernels.nvrtc import Target
from runtime.errors import DeviceError

if TYPE_CHECKING:
    from runtime.cuda import CudaDevice
    from runtime.cuda_resources import Stream


class LoadedKernels:
    """The kernels that a device has loaded; part of `runtime.cuda.CudaDevice`, which owns it."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._modules: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}

    def load(self, module: str) -> None:
        """Load the kernels of one ``.cu`` file, see `runtime.cuda.CudaDevice.load`."""
        if module in self._modules:
            return
        device = self._device
        try:
            cubin = load_cubin(module, Target(device.gpu.architecture, device.driver_version))
            with device.active():
                self._modules[module] = device.call(device.driver.module_from_buffer, cubin)
        except KernelError as error:
            raise DeviceError(str(error)) from None
        except UnicodeDecodeError:  # pycuda reports the driver's log, which may be no text
            raise DeviceError(f"{device.gpu.name}: the driver refuses {module}.cu.") from None

    def launch(
        self, kernel: Kernel, grid: Grid, arguments: ctypes.Structure, *, stream: Stream
    ) -> None:
        """Enqueue a kernel; its module must be loaded."""
        call = self._device.call
        if kernel.name not in self._functions:
            function = call(self._modules[kernel.module].get_function, kernel.name)
            self._functions[kernel.name] = function.prepare([f"{ctypes.sizeof(arguments)}s"])
            del function  # a traceback would keep it past its owner, as any native object here
        self._device.activity.launches += 1
        call(
            self._functions[kernel.name].prepared_async_call,
            grid,
            (kernel.threads, 1, 1),
            stream.native,
            bytes(arguments),
        )

    def clear(self) -> None:
        """Drop them all, none of which may be running."""
        self._functions.clear()
        self._modules.clear()
