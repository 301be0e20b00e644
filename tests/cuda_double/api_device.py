"""Versions, devices, error texts, contexts and the addresses of functions."""

from __future__ import annotations

import ctypes

from tests.cuda_double import memory, structures
from tests.cuda_double.driver import Driver
from tests.cuda_double.structures import Status, store, u32

_CONTEXT = 0xC0000000  # of device 0; the next device's is one higher


class Device:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._texts: dict[str, ctypes.Array] = {}

    def cuInit(self, flags: int) -> int:
        self._driver.initialised = True
        return Status.SUCCESS if self._driver.machine.devices else Status.NO_DEVICE

    def cuDriverGetVersion(self, version: int) -> int:
        return store(version, ctypes.c_int, structures.version_number(self._driver.machine.driver))

    def cuDeviceGetCount(self, count: int) -> int:
        return store(count, ctypes.c_int, self._driver.machine.devices)

    def cuDeviceGet(self, device: int, ordinal: int) -> int:
        if not 0 <= u32(ordinal) < self._driver.machine.devices:
            return Status.INVALID_DEVICE
        return store(device, ctypes.c_int, u32(ordinal))

    def cuDeviceGetName(self, name: int, length: int, device: int) -> int:
        memory.write(name, self._driver.machine.name.encode()[: u32(length) - 1] + b"\0")
        return Status.SUCCESS

    def cuDeviceTotalMem_v2(self, nbytes: int, device: int) -> int:
        return store(nbytes, ctypes.c_size_t, self._driver.machine.memory)

    def cuDeviceGetAttribute(self, value: int, attribute: int, device: int) -> int:
        machine = self._driver.machine
        major, minor = machine.capability
        known = {18: int(machine.shares_memory), 75: major, 76: minor}
        return store(value, ctypes.c_int, known.get(u32(attribute), 0))

    def cuGetErrorName(self, status: int, text: int) -> int:
        return self._store_text(text, f"CUDA_ERROR_{structures.status_name(status)}")

    def cuGetErrorString(self, status: int, text: int) -> int:
        return self._store_text(text, structures.status_name(status).lower().replace("_", " "))

    def cuDevicePrimaryCtxRetain(self, context: int, device: int) -> int:
        self._driver.retained += 1
        return store(context, ctypes.c_void_p, _CONTEXT + u32(device))

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        driver = self._driver
        if not driver.retained:
            return Status.INVALID_CONTEXT
        driver.retained -= 1
        if not driver.retained:
            driver.end_context()
        return Status.SUCCESS

    def cuCtxPushCurrent_v2(self, context: int) -> int:
        if not self._driver.retained:
            return Status.INVALID_CONTEXT
        self._driver.contexts.append(context)
        return Status.SUCCESS

    def cuCtxPopCurrent_v2(self, context: int) -> int:
        if not self._driver.contexts:
            return Status.INVALID_CONTEXT
        popped = self._driver.contexts.pop()
        return store(context, ctypes.c_void_p, popped) if context else Status.SUCCESS

    def cuCtxGetCurrent(self, context: int) -> int:
        stack = self._driver.contexts
        return store(context, ctypes.c_void_p, stack[-1] if stack else 0)

    def cuCtxGetDevice(self, device: int) -> int:
        return store(device, ctypes.c_int, self._driver.contexts[-1] - _CONTEXT)

    def cuCtxSynchronize(self) -> int:
        return self._driver.wait(self._driver.queues.wait_for_all)

    def cuGetProcAddress_v2(
        self, name: int, address: int, version: int, flags: int, found: int
    ) -> int:
        text = structures.symbol(ctypes.string_at(name).decode(), u32(version))
        known = u32(version) <= structures.version_number(self._driver.machine.driver)
        place = self._driver.address_of(text) if known else None
        if found:
            store(found, ctypes.c_int, 0 if place else 1)
        store(address, ctypes.c_void_p, place or 0)
        return Status.SUCCESS if place else Status.NOT_FOUND

    def _store_text(self, place: int, text: str) -> int:
        buffer = self._texts.setdefault(text, ctypes.create_string_buffer(text.encode()))
        return store(place, ctypes.c_void_p, ctypes.addressof(buffer))
