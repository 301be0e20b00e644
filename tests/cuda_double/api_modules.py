"""Modules, kernels, and what else runs as one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.launch import Kernel
from tests.cuda_double import structures
from tests.cuda_double.driver import Driver
from tests.cuda_double.structures import Status, store, u32
from tests.cuda_double.work import NOTHING, Touched

PAGEABLE = 0x1000
"""An address of the host that is not pinned."""

_SELECT_SINCE = (12, 3)  # the driver resolves cudaGraphSetConditional from then on


@dataclass
class Module:
    """A loaded cubin."""

    kernels: dict[str, Kernel]


class Modules:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._functions: dict[int, tuple[int, Kernel]] = {}

    def cuModuleLoadDataEx(
        self, module: int, image: int, count: int, options: int, values: int
    ) -> int:
        structures.end_logs(count, options, values)
        kernels = self._driver.kernels.of(structures.elf_image(image))
        if not kernels:
            return Status.INVALID_IMAGE
        if "select_bucket" in kernels and self._driver.machine.driver < _SELECT_SINCE:
            return Status.SHARED_OBJECT_SYMBOL_NOT_FOUND
        return store(module, ctypes.c_void_p, self._driver.new(Module(kernels)))

    def cuModuleLoadData(self, module: int, image: int) -> int:
        return self.cuModuleLoadDataEx(module, image, 0, 0, 0)

    def cuModuleUnload(self, module: int) -> int:
        for handle, (owner, _) in list(self._functions.items()):
            if owner == module:
                del self._functions[handle]
        return self._driver.remove(module, Module)

    def cuModuleGetFunction(self, function: int, module: int, name: int) -> int:
        found = self._driver.objects.get(module)
        kernel = found.kernels.get(ctypes.string_at(name).decode()) if found else None
        if kernel is None:
            return Status.NOT_FOUND
        handle = next(self._driver.handles)
        self._functions[handle] = (module, kernel)
        return store(function, ctypes.c_void_p, handle)

    def cuFuncSetBlockShape(self, function: int, x: int, y: int, z: int) -> int:
        """Do nothing: pycuda calls it before a launch that has the shape too."""
        return Status.SUCCESS

    def cuLaunchKernel(
        self,
        function: int,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        block_x: int,
        block_y: int,
        block_z: int,
        shared: int,
        stream: int,
        parameters: int,
        extra: int,
    ) -> int:
        if function not in self._functions:
            return Status.INVALID_HANDLE
        _, kernel = self._functions[function]
        if (u32(block_y), u32(block_z), u32(shared)) != (1, 1, 0):
            return Status.NOT_SUPPORTED
        arguments = structures.launch_arguments(parameters, extra)
        grid = (u32(grid_x), u32(grid_y), u32(grid_z))
        return self.launch(kernel._replace(threads=u32(block_x)), grid, arguments, stream)

    def launch(
        self, kernel: Kernel, grid: tuple[int, int, int], arguments: bytes, stream: int
    ) -> int:
        """Enqueue a kernel."""
        driver = self._driver
        driver.counts.launches += 1

        def run() -> Touched:
            touched, values = driver.kernels.launch(kernel, grid, arguments)
            if not values:
                return touched
            assert driver.replay is not None, f"{kernel.name} runs outside of a graph"
            set_ = [driver.replay.set(call.handle, call.value) for call in values]
            return Touched(touched.reads, [*touched.writes, *set_])

        return driver.enqueue(stream, kernel.name, run)


def enqueue_engine(
    driver: Driver,
    stream: int,
    name: str,
    run: Callable[[], Touched],
    *,
    captured_as: Sequence[str] = ("KERNEL",),
) -> int:
    """Enqueue what the doubled TensorRT runs, as one kernel; a graph gets nodes of these kinds."""
    driver.counts.launches += 1
    if stream in driver.captures:
        for kind in captured_as[1:]:
            copy = (PAGEABLE, PAGEABLE, 1) if kind == "MEMCPY" else None
            driver.enqueue(stream, f"{kind} of {name}", lambda: NOTHING, kind=kind, copy=copy)
    return driver.enqueue(stream, name, run, kind=captured_as[0])
