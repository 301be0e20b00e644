"""CUDA graphs with conditional nodes, through cuda-bindings: pycuda has neither.

Optional: without cuda-bindings, or with a driver before CUDA 12.4, `Graphs` says why, and the
cascade launches its work itself. Streams are those of `runtime.cuda`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from runtime.cuda import CudaDevice
from runtime.cuda_resources import Stream
from runtime.errors import GraphError

Body = Callable[[Stream], None]
"""Enqueues the work of one branch on the stream it is given."""

_IF_SINCE = (12, 4)
_SWITCH_SINCE = (12, 8)
_ASSIGN_DEFAULT = 1  # CU_GRAPH_COND_ASSIGN_DEFAULT: the default value holds again in each launch
_SET_DEPENDENCIES = 1  # CU_STREAM_SET_CAPTURE_DEPENDENCIES

_IN_A_BODY = ("KERNEL", "EMPTY", "GRAPH", "MEMCPY", "MEMSET", "CONDITIONAL")


class Graph:
    """A captured graph, ready to be launched any number of times. Owns it until `close`."""

    def __init__(self, graphs: Graphs, executable: Any) -> None:
        self._graphs = graphs
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        """Enqueue the whole graph; neither allocates nor waits."""
        self._graphs.device.activity.launches += 1
        self._graphs.call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Free it, after its last launch has ended; a second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._graphs.free("cuGraphExecDestroy", executable)


class Graphs:
    """The graph calls of cuda-bindings for a device, which it borrows.

    Raises
    ------
    GraphError
        When cuda-bindings is missing or the driver is too old; the message is one line.

    Attributes
    ----------
    device
        See above.
    uses_switch
        Whether a branch is one SWITCH node, or, before CUDA 12.8, a chain of IF nodes.
    """

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        major, minor = device.driver_version
        if (major, minor) < _IF_SINCE:
            raise GraphError(
                f"conditional nodes need a driver of CUDA 12.4, it has {major}.{minor}"
            )
        self.uses_switch = (major, minor) >= _SWITCH_SINCE
        self.api = _import_bindings()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the driver, and return what it gives beside the status: one thing, or a tuple.

        Raises
        ------
        GraphError
            With the name of the call and of its error.
        DeviceError
            When the context has ended.
        """
        status, *rest = self._function(name)(*arguments)
        if int(status) != 0:
            error = self.device.failure(f"{name}: {status.name}")
            raise GraphError(f"{name}: {status.name}") if self.device.is_usable else error
        return rest[0] if len(rest) == 1 else tuple(rest)

    def free(self, name: str, graph: Any) -> None:
        """Call what frees a graph; with a dead context it is gone already."""
        if self.device.is_usable:
            with self.device.active():
                self.call(name, graph)

    def capture(
        self, stream: Stream, body_stream: Stream, work: Callable[[Capture], None]
    ) -> Graph:
        """Capture what ``work`` enqueues on ``stream``, and return it as a graph.

        Parameters
        ----------
        body_stream
            Another stream, on which bodies of branches are captured.
        work
            Everything it runs must have run once before, so that nothing is loaded or allocated.

        Raises
        ------
        GraphError
            When something was enqueued that a graph, or a body, must not contain; says what.
        """
        capture = Capture(self, stream, body_stream)
        with self.device.capturing():
            graph = self._capture(capture, work)
        try:
            self._check_bodies(capture.bodies)
            return Graph(self, self.call("cuGraphInstantiate", graph, 0))
        finally:
            self.free("cuGraphDestroy", graph)

    def _capture(self, capture: Capture, work: Callable[[Capture], None]) -> Any:
        stream = capture.stream
        mode = self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", stream.handle, mode)
        try:
            work(capture)
            return self.call("cuStreamEndCapture", stream.handle)
        except BaseException:
            self._abandon(stream, owns_graph=True)
            raise

    def position(self, stream: Stream) -> tuple[Any, list[Any]]:
        """Return the graph that a stream captures into, and what its next node depends on."""
        _, _, graph, nodes, *_ = self.call("cuStreamGetCaptureInfo", stream.handle)
        return graph, list(nodes)

    def capture_body(self, stream: Stream, graph: Any, body: Body) -> None:
        """Capture one body into its graph."""
        mode = self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCaptureToGraph", stream.handle, graph, None, None, 0, mode)
        try:
            body(stream)
            self.call("cuStreamEndCapture", stream.handle)
        except BaseException:
            self._abandon(stream, owns_graph=False)
            raise

    def _abandon(self, stream: Stream, *, owns_graph: bool) -> None:
        """End a capture that failed; what it captured so far may be invalid, or nothing."""
        status, graph = self._function("cuStreamEndCapture")(stream.handle)
        if owns_graph and int(status) == 0 and int(graph):
            self.free("cuGraphDestroy", graph)

    def _check_bodies(self, bodies: Sequence[Any]) -> None:
        for node in (node for body in bodies for node in self._nodes(body)):
            kind = self.call("cuGraphNodeGetType", node).name.removeprefix("CU_GRAPH_NODE_TYPE_")
            if kind not in _IN_A_BODY:
                raise GraphError(f"a conditional body must not contain a {kind} node")
            if kind == "MEMCPY":
                self._check_copy(node)

    def _nodes(self, graph: Any) -> Iterator[Any]:
        """Yield the nodes of a graph and, after each child graph, those in it."""
        _, count = self.call("cuGraphGetNodes", graph)
        nodes, _ = self.call("cuGraphGetNodes", graph, count)
        for node in nodes[:count]:
            yield node
            if (
                self.call("cuGraphNodeGetType", node)
                == self.api.CUgraphNodeType.CU_GRAPH_NODE_TYPE_GRAPH
            ):
                yield from self._nodes(self.call("cuGraphChildGraphNodeGetGraph", node))

    def _check_copy(self, node: Any) -> None:
        copy, kinds = self.call("cuGraphMemcpyNodeGetParams", node), self.api.CUmemorytype
        for kind, host, either in (
            (copy.srcMemoryType, copy.srcHost, copy.srcDevice),
            (copy.dstMemoryType, copy.dstHost, copy.dstDevice),
        ):
            if kind == kinds.CU_MEMORYTYPE_DEVICE:
                continue
            address = host if kind == kinds.CU_MEMORYTYPE_HOST else int(either)
            if not self._is_mapped(address):
                raise GraphError("a conditional body copies host memory that is not mapped")

    def _is_mapped(self, address: int) -> bool:
        """Return whether host memory is pinned and mapped."""
        attribute = self.api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_POINTER
        status, _ = self._function("cuPointerGetAttribute")(attribute, address)
        return int(status) == 0

    def _function(self, name: str) -> Callable[..., Any]:
        """Return a call of cuda-bindings; 12 has those with edge data under other names."""
        later = _LATER_NAMES.get(name, name)
        function: Callable[..., Any] = getattr(self.api, later, None) or getattr(self.api, name)
        return function


_LATER_NAMES = {
    "cuStreamGetCaptureInfo": "cuStreamGetCaptureInfo_v3",
    "cuGraphAddNode": "cuGraphAddNode_v2",
    "cuStreamUpdateCaptureDependencies": "cuStreamUpdateCaptureDependencies_v2",
}


class Capture:
    """A capture under way.

    Attributes
    ----------
    stream
        Work enqueued on it is captured.
    bodies
        The graphs of all branches so far.
    """

    def __init__(self, graphs: Graphs, stream: Stream, body_stream: Stream) -> None:
        self._graphs = graphs
        self.stream = stream
        self._body_stream = body_stream
        self.bodies: list[Any] = []

    def branch(self, bodies: Sequence[Body], select: Callable[[Sequence[int], bool], None]) -> None:
        """Capture several bodies, of which the device runs one, or none.

        Parameters
        ----------
        bodies
            In the order of the index that selects.
        select
            Enqueues on ``stream`` the kernel that sets the handles, given these and whether they
            are of a SWITCH.
        """
        switch = self._graphs.uses_switch
        groups = [list(bodies)] if switch else [[body] for body in bodies]
        handles = [self._handle(no_body=len(group) if switch else 0) for group in groups]
        select([int(handle) for handle in handles], switch)
        for handle, group in zip(handles, groups, strict=True):
            for graph, body in zip(self._node(handle, len(group)), group, strict=True):
                self.bodies.append(graph)
                self._graphs.capture_body(self._body_stream, graph, body)

    def _handle(self, *, no_body: int) -> Any:
        graph, _ = self._graphs.position(self.stream)
        context = self._graphs.call("cuCtxGetCurrent")
        return self._graphs.call(
            "cuGraphConditionalHandleCreate", graph, context, no_body, _ASSIGN_DEFAULT
        )

    def _node(self, handle: Any, size: int) -> list[Any]:
        """Add a conditional node behind what was captured, and return the graphs of its bodies."""
        api, graphs = self._graphs.api, self._graphs
        kinds = api.CUgraphConditionalNodeType
        parameters = api.CUgraphNodeParams()
        parameters.type = api.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
        parameters.conditional.handle = handle
        parameters.conditional.type = (
            kinds.CU_GRAPH_COND_TYPE_SWITCH if graphs.uses_switch else kinds.CU_GRAPH_COND_TYPE_IF
        )
        parameters.conditional.size = size
        parameters.conditional.ctx = graphs.call("cuCtxGetCurrent")
        graph, before = graphs.position(self.stream)
        # Of cuda-bindings 12 and 13 only the latter takes None for plain edges.
        edges = [api.CUgraphEdgeData() for _ in before]
        node = graphs.call("cuGraphAddNode", graph, before, edges, len(before), parameters)
        graphs.call(
            "cuStreamUpdateCaptureDependencies",
            self.stream.handle,
            [node],
            [api.CUgraphEdgeData()],
            1,
            _SET_DEPENDENCIES,
        )
        return list(parameters.conditional.phGraph_out)


def _import_bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise GraphError(
            f"cuda-bindings cannot be imported ({error}); pip install 'cuda-bindings'"
        ) from None
    return driver
