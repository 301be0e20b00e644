"""Memory of the device, pinned memory of the host, and copies."""

from __future__ import annotations

import ctypes

from tests.cuda_double import memory
from tests.cuda_double.driver import Driver
from tests.cuda_double.memory import span
from tests.cuda_double.structures import Status, store, u32
from tests.cuda_double.work import Touched, overlap

_DEVICEMAP = 2  # CU_MEMHOSTALLOC_DEVICEMAP


class DeviceMemory:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._memory = driver.memory
        self._sources: list[tuple[int, int]] = []

    def cuMemGetInfo_v2(self, free: int, total: int) -> int:
        store(free, ctypes.c_size_t, self._driver.machine.memory - self._memory.used)
        return store(total, ctypes.c_size_t, self._driver.machine.memory)

    def cuMemAlloc_v2(self, address: int, nbytes: int) -> int:
        self._driver.counts.allocations += 1
        if not nbytes:
            return Status.INVALID_VALUE
        if self._memory.used + nbytes > self._driver.machine.memory:
            return Status.OUT_OF_MEMORY
        return store(address, ctypes.c_uint64, self._memory.allocate(nbytes, "device").start)

    def cuMemFree_v2(self, address: int) -> int:
        return self._free(address, "device")

    def cuMemHostAlloc(self, address: int, nbytes: int, flags: int) -> int:
        self._driver.counts.allocations += 1
        kind = "mapped" if u32(flags) & _DEVICEMAP else "pinned"
        return store(address, ctypes.c_void_p, self._memory.allocate(nbytes, kind).start)

    def cuMemFreeHost(self, address: int) -> int:
        return self._free(address, "pinned", "mapped")

    def cuMemHostGetDevicePointer_v2(self, device_address: int, address: int, flags: int) -> int:
        if self._memory.find(address, 1, "mapped") is None:
            return Status.INVALID_VALUE
        return store(device_address, ctypes.c_uint64, address)

    def cuPointerGetAttribute(self, value: int, attribute: int, address: int) -> int:
        if self._memory.find(address, 1, "device", "mapped") is None:
            return Status.INVALID_VALUE
        return store(value, ctypes.c_uint64, address)

    def cuMemcpyHtoDAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        self._require_pinned(source, nbytes, "cuMemcpyHtoDAsync reads")
        if self._memory.find(target, nbytes, "device") is None:
            return Status.INVALID_VALUE
        before, pending = memory.checksum(source, nbytes), (source, nbytes)
        self._sources.append(pending)

        def learnt() -> None:
            self._sources.remove(pending)
            if memory.checksum(source, nbytes) != before:
                self._driver.problems.append(
                    "pinned memory changed while it was to be copied to the device"
                )

        return self._copy("copy in", (source, target, nbytes), stream, learnt=learnt)

    def cuMemcpyDtoHAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        self._require_pinned(target, nbytes, "cuMemcpyDtoHAsync writes")
        if self._memory.find(source, nbytes, "device") is None:
            return Status.INVALID_VALUE
        place = span(target, nbytes)
        if not any(overlap([place], [span(*pending)]) for pending in self._sources):
            # Who reads the target too early must not find what an earlier batch left there.
            ctypes.memset(target, memory.POISON, nbytes)
        arrived: list[bytes] = []

        def run() -> Touched:
            arrived.append(memory.read(source, nbytes))
            return Touched([span(source, nbytes)], [place])

        copy = (source, target, nbytes)
        return self._driver.enqueue(
            stream,
            "copy out",
            run,
            kind="MEMCPY",
            copy=copy,
            learnt=lambda: memory.write(target, arrived.pop()),
        )

    def cuMemcpyDtoDAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        for address in (source, target):
            if self._memory.find(address, nbytes, "device", "mapped") is None:
                return Status.INVALID_VALUE
        return self._copy("copy", (source, target, nbytes), stream)

    def cuMemsetD8Async(self, target: int, value: int, nbytes: int, stream: int) -> int:
        if self._memory.find(target, nbytes, "device") is None:
            return Status.INVALID_VALUE

        def run() -> Touched:
            ctypes.memset(target, value & 0xFF, nbytes)
            return Touched([], [span(target, nbytes)])

        return self._driver.enqueue(stream, "set", run, kind="MEMSET")

    def _copy(self, name: str, copy: tuple[int, int, int], stream: int, *, learnt=None) -> int:
        source, target, nbytes = copy

        def run() -> Touched:
            memory.write(target, memory.read(source, nbytes))
            return Touched([span(source, nbytes)], [span(target, nbytes)])

        return self._driver.enqueue(stream, name, run, kind="MEMCPY", copy=copy, learnt=learnt)

    def _free(self, address: int, *kinds: str) -> int:
        if self._memory.find(address, 1, *kinds) is None:
            return Status.INVALID_VALUE
        if self._driver.machine.frees_wait:
            self._driver.queues.wait_for_all()
        self._memory.free(address, *kinds)
        return Status.SUCCESS

    def _require_pinned(self, address: int, nbytes: int, what: str) -> None:
        if self._memory.find(address, nbytes, "pinned", "mapped") is None:
            self._driver.problems.append(f"{what} {nbytes} bytes of pageable memory")
