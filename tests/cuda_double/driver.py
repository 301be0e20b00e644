"""The functions of the doubled driver, as far as pycuda, cuda-bindings and the project call them.

Each has the name of the real one and takes its arguments as integers; it returns a CUresult. What has
no function here answers CUDA_ERROR_NOT_SUPPORTED.
"""

from __future__ import annotations

import ctypes
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.cuda_double import memory, structures
from tests.cuda_double.graphs import IF, SWITCH, Capture, Graph, Node, Replay
from tests.cuda_double.kernels import Kernels
from tests.cuda_double.memory import Memory, span
from tests.cuda_double.structures import Status, load, store
from tests.cuda_double.work import Operation, Queues, Touched

HOST_ALLOC_DEVICEMAP = 2
_PARAMETER_BUFFER, _PARAMETER_SIZE = 1, 2  # CU_LAUNCH_PARAM_...
_CONTEXT = 0xC0


@dataclass
class Machine:
    """What the double is.

    Attributes
    ----------
    driver
        CUDA version of the driver: ``(12, 6)``.
    shares_memory
        Whether the device has the host's memory, as on Jetson.
    """

    driver: tuple[int, int] = (13, 0)
    name: str = "Orin (double)"
    capability: tuple[int, int] = (8, 7)
    memory: int = 2**30
    devices: int = 1
    shares_memory: bool = False


@dataclass
class Counts:
    """What the host has done since the last reset.

    Attributes
    ----------
    waits
        Times that the host waited for the device.
    calls
        Of each driver function.
    """

    waits: int = 0
    launches: int = 0
    graph_launches: int = 0
    allocations: int = 0
    calls: dict[str, int] = field(default_factory=dict)


@dataclass
class _Event:
    record: Operation | None = None


class _Stream:
    pass


@dataclass
class _Module:
    kernels: dict[str, str]


@dataclass
class _Executable:
    graph: Graph


class Driver:
    """One process's view of the driver.

    Attributes
    ----------
    errors
        What a real GPU would do wrong without saying so: races, pageable copies, memory that
        changed while it was copied. Tests require that there are none.
    """

    def __init__(self, kernels: Kernels, machine: Machine, *, seed: int = 0) -> None:
        self.machine = machine
        self.queues = Queues(seed)
        self.memory = Memory(machine.memory)
        self.counts = Counts()
        self.failures: dict[str, tuple[int, int]] = {}
        self._errors: list[str] = []
        self._dead = 0
        self._kernels = kernels
        self._handles = itertools.count(0x1000, 16)
        self._objects: dict[int, Any] = {}
        self._captures: dict[int, Capture] = {}
        self._values: dict[int, int] = {}
        self._replay: Replay | None = None
        self._retained = 0
        self._contexts: list[int] = []
        self._functions: dict[int, tuple[str, str]] = {}
        self._texts: dict[str, Any] = {}

    @property
    def errors(self) -> list[str]:
        """All that went wrong so far."""
        return [*self._errors, *self.queues.races.found]

    def live(self) -> dict[str, int]:
        """Return how much of everything has not been freed."""
        counts: dict[str, int] = {}
        for item in [*self._objects.values(), *self.memory.live]:
            name = type(item).__name__.strip("_")
            counts[name] = counts.get(name, 0) + 1
        return counts

    def call(self, name: str, arguments: Callable[[int], list[int]]) -> int:
        """Run a function by its name."""
        self.counts.calls[name] = self.counts.calls.get(name, 0) + 1
        if name in self.failures:
            remaining, status = self.failures[name]
            self.failures[name] = (remaining - 1, status)
            if remaining == 0:
                return status
        function = getattr(self, name, None)
        if function is None:
            return Status.NOT_SUPPORTED
        if self._dead and name not in _WITHOUT_CONTEXT:
            return self._dead
        return int(function(*arguments(structures.parameter_count(function))))

    # Versions, devices, errors

    def cuInit(self, flags: int) -> int:
        return Status.SUCCESS

    def cuDriverGetVersion(self, version: int) -> int:
        major, minor = self.machine.driver
        return store(version, ctypes.c_int, 1000 * major + 10 * minor)

    def cuDeviceGetCount(self, count: int) -> int:
        return store(count, ctypes.c_int, self.machine.devices)

    def cuDeviceGet(self, device: int, ordinal: int) -> int:
        if ordinal & 0xFFFFFFFF >= self.machine.devices:
            return Status.INVALID_DEVICE
        return store(device, ctypes.c_int, ordinal)

    def cuDeviceGetName(self, name: int, length: int, device: int) -> int:
        memory.write(name, self.machine.name.encode()[: (length & 0xFFFFFFFF) - 1] + b"\0")
        return Status.SUCCESS

    def cuDeviceTotalMem_v2(self, nbytes: int, device: int) -> int:
        return store(nbytes, ctypes.c_size_t, self.machine.memory)

    def cuDeviceGetAttribute(self, value: int, attribute: int, device: int) -> int:
        major, minor = self.machine.capability
        known = {18: int(self.machine.shares_memory), 75: major, 76: minor}
        return store(value, ctypes.c_int, known.get(attribute & 0xFFFFFFFF, 0))

    def cuGetErrorName(self, status: int, text: int) -> int:
        return store(
            text, ctypes.c_void_p, self._text(f"CUDA_ERROR_{structures.status_name(status)}")
        )

    def cuGetErrorString(self, status: int, text: int) -> int:
        name = structures.status_name(status).lower().replace("_", " ")
        return store(text, ctypes.c_void_p, self._text(name))

    # The primary context

    def cuDevicePrimaryCtxRetain(self, context: int, device: int) -> int:
        self._retained += 1
        return store(context, ctypes.c_void_p, _CONTEXT)

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        self._retained -= 1
        return Status.SUCCESS

    def cuCtxPushCurrent_v2(self, context: int) -> int:
        self._contexts.append(context)
        return Status.SUCCESS

    def cuCtxPopCurrent_v2(self, context: int) -> int:
        if not self._contexts:
            return Status.INVALID_CONTEXT
        popped = self._contexts.pop()
        return store(context, ctypes.c_void_p, popped) if context else Status.SUCCESS

    def cuCtxGetCurrent(self, context: int) -> int:
        return store(context, ctypes.c_void_p, self._contexts[-1] if self._contexts else 0)

    def cuCtxGetDevice(self, device: int) -> int:
        if not self._contexts:
            return Status.INVALID_CONTEXT
        return store(device, ctypes.c_int, 0)

    def cuCtxSynchronize(self) -> int:
        self.counts.waits += 1
        return self._wait(self.queues.drain_all)

    # Memory

    def cuMemGetInfo_v2(self, free: int, total: int) -> int:
        store(free, ctypes.c_size_t, self.machine.memory - self.memory.used)
        return store(total, ctypes.c_size_t, self.machine.memory)

    def cuMemAlloc_v2(self, address: int, nbytes: int) -> int:
        self.counts.allocations += 1
        if self.memory.used + nbytes > self.machine.memory:
            return Status.OUT_OF_MEMORY
        return store(address, ctypes.c_uint64, self.memory.allocate(nbytes, "device").start)

    def cuMemFree_v2(self, address: int) -> int:
        self.queues.drain_all()  # it waits for all work, as the real one does
        return self._done(self.memory.free(address, "device"))

    def cuMemHostAlloc(self, address: int, nbytes: int, flags: int) -> int:
        self.counts.allocations += 1
        kind = "mapped" if flags & HOST_ALLOC_DEVICEMAP else "pinned"
        return store(address, ctypes.c_void_p, self.memory.allocate(nbytes, kind).start)

    def cuMemFreeHost(self, address: int) -> int:
        self.queues.drain_all()
        return self._done(self.memory.free(address, "pinned", "mapped"))

    def cuMemHostGetDevicePointer_v2(self, device_address: int, address: int, flags: int) -> int:
        if self.memory.find(address, 1, "mapped") is None:
            return Status.INVALID_VALUE
        return store(device_address, ctypes.c_uint64, address)

    def cuPointerGetAttribute(self, value: int, attribute: int, address: int) -> int:
        if self.memory.find(address, 1, "device", "mapped") is None:
            return Status.INVALID_VALUE
        return store(value, ctypes.c_uint64, address)

    def cuMemcpyHtoDAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        self._require_pinned(source, nbytes, "cuMemcpyHtoDAsync reads")
        if self.memory.find(target, nbytes, "device") is None:
            return Status.INVALID_VALUE
        before = zlib.crc32(memory.read(source, nbytes))

        def run() -> Touched:
            content = memory.read(source, nbytes)
            if zlib.crc32(content) != before and stream not in self._captures:
                self._errors.append("pinned memory changed while a copy to the device was pending")
            memory.write(target, content)
            return Touched([span(source, nbytes)], [span(target, nbytes)])

        return self._enqueue(stream, "copy in", run, "MEMCPY", (source, target, nbytes))

    def cuMemcpyDtoHAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        self._require_pinned(target, nbytes, "cuMemcpyDtoHAsync writes")
        if self.memory.find(source, nbytes, "device") is None:
            return Status.INVALID_VALUE
        # Who reads the target too early must not find what an earlier batch left there.
        ctypes.memset(target, memory.POISON, nbytes)
        return self._copy(stream, "copy out", source, target, nbytes)

    def cuMemcpyDtoDAsync_v2(self, target: int, source: int, nbytes: int, stream: int) -> int:
        for address in (source, target):
            if self.memory.find(address, nbytes, "device", "mapped") is None:
                return Status.INVALID_VALUE
        return self._copy(stream, "copy", source, target, nbytes)

    def cuMemsetD8Async(self, target: int, value: int, nbytes: int, stream: int) -> int:
        if self.memory.find(target, nbytes, "device") is None:
            return Status.INVALID_VALUE

        def run() -> Touched:
            ctypes.memset(target, value & 0xFF, nbytes)
            return Touched([], [span(target, nbytes)])

        return self._enqueue(stream, "set", run, "MEMSET")

    # Streams and events

    def cuStreamCreate(self, stream: int, flags: int) -> int:
        handle = self._new(_Stream())
        self.queues.open(handle)
        return store(stream, ctypes.c_void_p, handle)

    def cuStreamDestroy_v2(self, stream: int) -> int:
        self.queues.close(stream)
        return self._done(self._objects.pop(stream, None) is not None)

    def cuStreamSynchronize(self, stream: int) -> int:
        if stream not in self.queues:
            return Status.INVALID_HANDLE
        if stream in self._captures:
            return Status.STREAM_CAPTURE_UNSUPPORTED
        self.counts.waits += 1
        return self._wait(lambda: self.queues.drain(stream))

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> int:
        record = self._objects[event].record
        if record is None:  # an event never recorded holds nobody up
            return Status.SUCCESS
        self.queues.enqueue(stream, "wait", Touched, needs=[record])
        return Status.SUCCESS

    def cuEventCreate(self, event: int, flags: int) -> int:
        return store(event, ctypes.c_void_p, self._new(_Event()))

    def cuEventDestroy_v2(self, event: int) -> int:
        return self._done(self._objects.pop(event, None) is not None)

    def cuEventRecord(self, event: int, stream: int) -> int:
        if stream not in self.queues:
            return Status.INVALID_HANDLE
        self._objects[event].record = self.queues.enqueue(stream, "record", Touched)
        return Status.SUCCESS

    def cuEventQuery(self, event: int) -> int:
        record = self._objects[event].record
        if record is not None and not record.done:
            self.queues.progress()
        return Status.SUCCESS if record is None or record.done else Status.NOT_READY

    def cuEventSynchronize(self, event: int) -> int:
        record = self._objects[event].record
        if record is None:
            return Status.SUCCESS
        self.counts.waits += 1
        return self._wait(lambda: self.queues.wait(record))

    def cuEventElapsedTime_v2(self, milliseconds: int, start: int, end: int) -> int:
        """No time passes on the double."""
        return store(milliseconds, ctypes.c_float, 0.0)

    cuEventElapsedTime = cuEventElapsedTime_v2

    # Modules and launches

    def cuModuleLoadDataEx(
        self, module: int, image: int, count: int, options: int, values: int
    ) -> int:
        kernels = self._kernels.of(structures.elf_image(image))
        if not kernels:
            return Status.INVALID_IMAGE
        if "select_bucket" in kernels and self.machine.driver < (12, 3):
            return Status.SHARED_OBJECT_SYMBOL_NOT_FOUND
        return store(module, ctypes.c_void_p, self._new(_Module(kernels)))

    def cuModuleLoadData(self, module: int, image: int) -> int:
        return self.cuModuleLoadDataEx(module, image, 0, 0, 0)

    def cuModuleUnload(self, module: int) -> int:
        return self._done(self._objects.pop(module, None) is not None)

    def cuModuleGetFunction(self, function: int, module: int, name: int) -> int:
        text = ctypes.string_at(name).decode()
        kernels = self._objects[module].kernels
        if text not in kernels:
            return Status.NOT_FOUND
        handle = next(self._handles)
        self._functions[handle] = (text, kernels[text])
        return store(function, ctypes.c_void_p, handle)

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
        name, module = self._functions[function]
        arguments = structures.launch_arguments(parameters, extra)
        grid = (grid_x & 0xFFFFFFFF, grid_y & 0xFFFFFFFF, grid_z & 0xFFFFFFFF)
        shape = (grid, block_x & 0xFFFFFFFF)
        self.counts.launches += 1

        def run() -> Touched:
            touched, values = self._kernels.launch(name, module, shape, arguments)
            self._values.update(values)
            return self._inside(name, touched)

        return self._enqueue(stream, name, run, "KERNEL")

    def enqueue_engine(self, stream: int, name: str, run: Callable[[], Touched]) -> int:
        """Enqueue what the doubled TensorRT runs, as one kernel."""
        self.counts.launches += 1
        return self._enqueue(stream, name, run, "KERNEL")

    # Graphs

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        self._captures[stream] = Capture(Graph(), owns_graph=True)
        return Status.SUCCESS

    def cuStreamBeginCaptureToGraph(
        self, stream: int, graph: int, nodes: int, data: int, count: int, mode: int
    ) -> int:
        self._captures[stream] = Capture(self._objects[graph], owns_graph=False)
        return Status.SUCCESS

    def cuStreamEndCapture(self, stream: int, graph: int) -> int:
        capture = self._captures.pop(stream, None)
        if capture is None:
            return Status.ILLEGAL_STATE
        handle = self._handle_of(capture.graph)
        if handle is None:
            handle = self._new(capture.graph)
        return store(graph, ctypes.c_void_p, handle)

    def cuStreamGetCaptureInfo_v3(
        self, stream: int, status: int, number: int, graph: int, nodes: int, data: int, count: int
    ) -> int:
        capture = self._captures.get(stream)
        store(status, ctypes.c_int, 1 if capture else 0)
        if capture is None:
            return Status.SUCCESS
        handle = self._handle_of(capture.graph)
        if handle is None:
            handle = self._new(capture.graph)
        store(graph, ctypes.c_void_p, handle)
        self._last_nodes = structures.pointer_array([self._node_handle(n) for n in capture.last])
        store(nodes, ctypes.c_void_p, ctypes.addressof(self._last_nodes))
        if data:
            store(data, ctypes.c_void_p, 0)
        return store(count, ctypes.c_size_t, len(capture.last))

    def cuStreamUpdateCaptureDependencies_v2(
        self, stream: int, nodes: int, data: int, count: int, flags: int
    ) -> int:
        capture = self._captures[stream]
        new = [self._objects[handle] for handle in structures.pointers(nodes, count)]
        capture.last = new if flags & 0xFFFFFFFF else capture.last + new
        return Status.SUCCESS

    def cuGraphConditionalHandleCreate(
        self, handle: int, graph: int, context: int, default: int, flags: int
    ) -> int:
        number = next(self._handles)
        if flags & 0xFFFFFFFF:
            self._objects[graph].conditionals[number] = default & 0xFFFFFFFF
        return store(handle, ctypes.c_uint64, number)

    def cuGraphAddNode_v2(
        self, node: int, graph: int, after: int, data: int, count: int, parameters: int
    ) -> int:
        kind, handle, size, bodies_out = structures.conditional_parameters(parameters)
        allowed = {IF: (12, 4), SWITCH: (12, 8)}
        if kind not in allowed or self.machine.driver < allowed[kind]:
            return Status.NOT_SUPPORTED
        bodies = [Graph() for _ in range(size)]
        made = Node(
            "CONDITIONAL",
            f"{kind.lower()} node",
            lambda: self._branch(kind, handle, bodies),
            [self._objects[item] for item in structures.pointers(after, count)],
            bodies=bodies,
        )
        self._objects[graph].nodes.append(made)
        made.bodies_array = structures.pointer_array([self._new(body) for body in bodies])
        store(bodies_out, ctypes.c_void_p, ctypes.addressof(made.bodies_array))
        return store(node, ctypes.c_void_p, self._node_handle(made))

    def cuGraphGetNodes(self, graph: int, nodes: int, count: int) -> int:
        handles = [self._node_handle(node) for node in self._objects[graph].nodes]
        if nodes:
            room = load(count, ctypes.c_size_t)
            for place, handle in enumerate(handles[:room]):
                store(nodes + 8 * place, ctypes.c_void_p, handle)
        return store(count, ctypes.c_size_t, len(handles))

    def cuGraphNodeGetType(self, node: int, kind: int) -> int:
        return store(kind, ctypes.c_int, structures.NODE_TYPES[self._objects[node].kind])

    def cuGraphChildGraphNodeGetGraph(self, node: int, graph: int) -> int:
        return store(graph, ctypes.c_void_p, self._handle_of(self._objects[node].child))

    def cuGraphMemcpyNodeGetParams(self, node: int, parameters: int) -> int:
        source, target, _ = self._objects[node].copy
        ends = []
        for address in (source, target):
            ends.append((address, self.memory.find(address, 1, "device") is not None))
        structures.store_copy(parameters, ends)
        return Status.SUCCESS

    def cuGraphInstantiateWithFlags(self, executable: int, graph: int, flags: int) -> int:
        return store(executable, ctypes.c_void_p, self._new(_Executable(self._objects[graph])))

    def cuGraphLaunch(self, executable: int, stream: int) -> int:
        graph = self._objects[executable].graph
        self.counts.graph_launches += 1

        def run() -> Touched:
            self._replay = Replay(self._values, self.queues.random)
            return self._replay.run(graph)

        return self._enqueue(stream, "graph", run, "GRAPH")

    def cuGraphExecDestroy(self, executable: int) -> int:
        return self._done(self._objects.pop(executable, None) is not None)

    def cuGraphDestroy(self, graph: int) -> int:
        found = self._objects.pop(graph, None)
        if found is not None:
            self._forget(found)
        return self._done(found is not None)

    def cuGetProcAddress_v2(
        self, name: int, address: int, version: int, flags: int, found: int
    ) -> int:
        text = structures.symbol(ctypes.string_at(name).decode(), version & 0xFFFFFFFF)
        place = self.address_of(text) if self._is_known(text, version & 0xFFFFFFFF) else None
        if found:
            store(found, ctypes.c_int, 0 if place else 1)
        store(address, ctypes.c_void_p, place or 0)
        return Status.SUCCESS if place else Status.NOT_FOUND

    # What the functions share

    def _enqueue(
        self,
        stream: int,
        name: str,
        run: Callable[[], Touched],
        kind: str,
        copy: tuple[int, int, int] | None = None,
    ) -> int:
        capture = self._captures.get(stream)
        if capture is not None:
            node = Node(kind, name, run, capture.last, copy=copy)
            capture.graph.nodes.append(node)
            capture.last = [node]
            return Status.SUCCESS
        if stream not in self.queues:
            return Status.INVALID_HANDLE
        self.queues.enqueue(stream, name, run)
        return Status.SUCCESS

    def _copy(self, stream: int, name: str, source: int, target: int, nbytes: int) -> int:
        def run() -> Touched:
            memory.write(target, memory.read(source, nbytes))
            return Touched([span(source, nbytes)], [span(target, nbytes)])

        return self._enqueue(stream, name, run, "MEMCPY", (source, target, nbytes))

    def _branch(self, kind: str, handle: int, bodies: list[Graph]) -> Touched:
        assert self._replay is not None
        return self._replay.branch(kind, handle, bodies)

    def _wait(self, wait: Callable[[], None]) -> int:
        wait()
        return self._dead or Status.SUCCESS

    def _inside(self, name: str, touched: Touched) -> Touched:
        """Hold a kernel's accesses against what is allocated."""
        for part in (*touched.reads, *touched.writes):
            if self.memory.find(part.start, part.stop - part.start, "device", "mapped") is None:
                self._errors.append(f"{name} touches {part.start:#x}, which is not allocated")
        return touched

    def _require_pinned(self, address: int, nbytes: int, what: str) -> None:
        if self.memory.find(address, nbytes, "pinned", "mapped") is None:
            self._errors.append(f"{what} {nbytes} bytes of pageable memory")

    def _new(self, item: Any) -> int:
        handle = next(self._handles)
        self._objects[handle] = item
        return handle

    def _handle_of(self, item: Any) -> int | None:
        return next((handle for handle, other in self._objects.items() if other is item), None)

    def _node_handle(self, node: Node) -> int:
        handle = self._handle_of(node)
        return self._new(node) if handle is None else handle

    def _forget(self, graph: Graph) -> None:
        """Drop the handles of a graph's nodes and bodies, which live as long as it does."""
        for node in graph.nodes:
            self._objects.pop(self._handle_of(node) or 0, None)
            for body in node.bodies:
                self._objects.pop(self._handle_of(body) or 0, None)
                self._forget(body)

    def _done(self, done: bool) -> int:
        return Status.SUCCESS if done else Status.INVALID_VALUE

    def _text(self, text: str) -> int:
        buffer = self._texts.setdefault(text, ctypes.create_string_buffer(text.encode()))
        return ctypes.addressof(buffer)

    def _is_known(self, symbol: str, version: int) -> bool:
        """Return whether a driver of this version has a function."""
        major, minor = self.machine.driver
        return version <= 1000 * major + 10 * minor

    def address_of(self, symbol: str) -> int | None:
        """Return the address of a function; set by whoever loads the library."""
        raise NotImplementedError


_WITHOUT_CONTEXT = frozenset(
    {
        "cuInit",
        "cuDriverGetVersion",
        "cuDeviceGet",
        "cuDeviceGetCount",
        "cuGetErrorName",
        "cuGetErrorString",
        "cuCtxPopCurrent_v2",
        "cuCtxPushCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
    }
)
