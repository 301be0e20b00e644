"""Capture, graphs and conditional nodes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from tests.cuda_double import structures
from tests.cuda_double.driver import Driver
from tests.cuda_double.graphs import IF, SWITCH, Capture, Graph, Node, Replay
from tests.cuda_double.structures import Status, load, store, u32
from tests.cuda_double.work import NOTHING, Touched

_SINCE = {IF: (12, 4), SWITCH: (12, 8)}


@dataclass(eq=False)
class Executable:
    """An instantiated graph."""

    graph: Graph


class Graphs:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._last_nodes = self._no_edge_data = structures.pointer_array([])

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        return self._begin(stream, Graph())

    def cuStreamBeginCaptureToGraph(
        self, stream: int, graph: int, nodes: int, data: int, count: int, mode: int
    ) -> int:
        found = self._graph(graph)
        return Status.INVALID_VALUE if found is None else self._begin(stream, found)

    def cuStreamEndCapture(self, stream: int, graph: int) -> int:
        capture = self._driver.captures.pop(stream, None)
        if capture is None:
            return Status.ILLEGAL_STATE
        if not capture.valid:
            self._forget(capture.graph)
            store(graph, ctypes.c_void_p, 0)
            return Status.STREAM_CAPTURE_INVALIDATED
        return store(graph, ctypes.c_void_p, self._driver.handle_of(capture.graph))

    def cuStreamGetCaptureInfo_v3(
        self, stream: int, status: int, number: int, graph: int, nodes: int, data: int, count: int
    ) -> int:
        capture = self._driver.captures.get(stream)
        store(status, ctypes.c_int, 0 if capture is None else 1 if capture.valid else 2)
        if capture is None:
            return Status.SUCCESS
        if graph:
            store(graph, ctypes.c_void_p, self._driver.handle_of(capture.graph))
        last = [self._driver.handle_of(node) for node in capture.last]
        self._last_nodes = structures.pointer_array(last)
        self._no_edge_data = structures.pointer_array([0] * len(last))
        if nodes:
            store(nodes, ctypes.c_void_p, ctypes.addressof(self._last_nodes))
        if data:
            store(data, ctypes.c_void_p, ctypes.addressof(self._no_edge_data))
        return store(count, ctypes.c_size_t, len(last)) if count else Status.SUCCESS

    def cuStreamUpdateCaptureDependencies_v2(
        self, stream: int, nodes: int, data: int, count: int, flags: int
    ) -> int:
        capture = self._driver.captures.get(stream)
        if capture is None:
            return Status.ILLEGAL_STATE
        new = [self._driver.objects[handle] for handle in structures.pointers(nodes, count)]
        capture.last = new if u32(flags) else capture.last + new
        return Status.SUCCESS

    def cuGraphConditionalHandleCreate(
        self, handle: int, graph: int, context: int, default: int, flags: int
    ) -> int:
        found = self._graph(graph)
        if found is None:
            return Status.INVALID_VALUE
        number = next(self._driver.handles)
        found.conditionals[number] = u32(default) if u32(flags) else None
        return store(handle, ctypes.c_uint64, number)

    def cuGraphAddNode_v2(
        self, node: int, graph: int, after: int, data: int, count: int, parameters: int
    ) -> int:
        found = self._graph(graph)
        kind, handle, size, bodies_out = structures.conditional_parameters(parameters)
        if kind not in _SINCE or self._driver.machine.driver < _SINCE[kind]:
            return Status.NOT_SUPPORTED
        if found is None or handle not in found.conditionals or (kind == IF and size != 1):
            return Status.INVALID_VALUE
        bodies = [Graph() for _ in range(size)]
        pointers = structures.pointer_array([self._driver.new(body) for body in bodies])
        made = Node(
            "CONDITIONAL",
            f"{kind} node",
            lambda: NOTHING,
            [self._driver.objects[item] for item in structures.pointers(after, count)],
            handle=handle,
            bodies=bodies,
            keeps=pointers,
        )
        found.nodes.append(made)
        store(bodies_out, ctypes.c_void_p, ctypes.addressof(pointers))
        return store(node, ctypes.c_void_p, self._driver.handle_of(made))

    def cuGraphGetNodes(self, graph: int, nodes: int, count: int) -> int:
        found = self._graph(graph)
        if found is None:
            return Status.INVALID_VALUE
        handles = [self._driver.handle_of(node) for node in found.nodes]
        if nodes:
            room = load(count, ctypes.c_size_t)
            for place, handle in enumerate(handles[:room]):
                store(nodes + 8 * place, ctypes.c_void_p, handle)
        return store(count, ctypes.c_size_t, len(handles))

    def cuGraphNodeGetType(self, node: int, kind: int) -> int:
        found = self._driver.objects[node]
        return store(kind, ctypes.c_int, structures.NODE_TYPES[found.kind])

    def cuGraphChildGraphNodeGetGraph(self, node: int, graph: int) -> int:
        child = self._driver.objects[node].child
        return store(graph, ctypes.c_void_p, self._driver.handle_of(child))

    def cuGraphMemcpyNodeGetParams(self, node: int, parameters: int) -> int:
        source, target, _ = self._driver.objects[node].copy
        find = self._driver.memory.find
        ends = [(address, find(address, 1, "device") is not None) for address in (source, target)]
        structures.store_copy(parameters, ends)
        return Status.SUCCESS

    def cuGraphInstantiateWithFlags(self, executable: int, graph: int, flags: int) -> int:
        found = self._graph(graph)
        fault = "no graph" if found is None else found.fault()
        if found is None or fault:
            return Status.INVALID_VALUE
        return store(executable, ctypes.c_void_p, self._driver.new(Executable(found)))

    def cuGraphLaunch(self, executable: int, stream: int) -> int:
        found = self._driver.objects.get(executable)
        if not isinstance(found, Executable):
            return Status.INVALID_VALUE
        self._driver.counts.graph_launches += 1
        return self._driver.enqueue(
            stream, "graph", lambda: self._replay(found.graph), kind="GRAPH"
        )

    def cuGraphExecDestroy(self, executable: int) -> int:
        return self._driver.remove(executable, Executable)

    def cuGraphDestroy(self, graph: int) -> int:
        found = self._graph(graph)
        if found is None:
            return Status.INVALID_VALUE
        self._forget(found)
        return Status.SUCCESS

    def _begin(self, stream: int, graph: Graph) -> int:
        if stream not in self._driver.queues or stream in self._driver.captures:
            return Status.ILLEGAL_STATE
        self._driver.captures[stream] = Capture(graph)
        return Status.SUCCESS

    def _replay(self, graph: Graph) -> Touched:
        driver = self._driver
        driver.replay = Replay(graph, driver.values, driver.queues.chooser)
        try:
            touched = driver.replay.run()
        finally:
            driver.history += [f"replayed {name}" for name in driver.replay.names]
            driver.problems += driver.replay.races
            driver.replay = None
        return touched

    def _graph(self, handle: int) -> Graph | None:
        found = self._driver.objects.get(handle)
        return found if isinstance(found, Graph) else None

    def _forget(self, graph: Graph) -> None:
        """Drop the handles of a graph, its nodes and bodies, which live as long as it does."""
        objects = self._driver.objects
        for handle, item in list(objects.items()):
            if item is graph or item in graph.nodes:
                del objects[handle]
        for body in (body for node in graph.nodes for body in node.bodies):
            self._forget(body)
