"""Captured work: graphs, their nodes, and conditional nodes whose bodies the device chooses."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.cuda_cpu.emulation import Span
from tests.cuda_double.work import NOTHING, Operation, Touched, collisions

SWITCH, IF = "SWITCH", "IF"
IN_A_BODY = frozenset({"KERNEL", "EMPTY", "GRAPH", "MEMCPY", "MEMSET", "CONDITIONAL"})
HANDLES = 1 << 62  # addresses that stand for conditional handles, to find races on them


@dataclass(eq=False)
class Node:
    """One node.

    Attributes
    ----------
    kind
        As the driver names it: ``KERNEL``, ``MEMCPY``, ``MEMSET``, ``CONDITIONAL``, ...
    after
        Those that have run when it does; `before` also has those before them.
    copy
        Of a MEMCPY node: source, target, bytes.
    handle, bodies
        Of a CONDITIONAL node.
    """

    kind: str
    name: str
    run: Callable[[], Touched]
    after: Sequence[Node]
    copy: tuple[int, int, int] | None = None
    handle: int = 0
    bodies: Sequence[Graph] = ()
    child: Graph | None = None
    keeps: Any = None

    def __post_init__(self) -> None:
        """Find everything that comes before."""
        self.before: set[int] = {id(other) for other in self.after}
        for other in self.after:
            self.before |= other.before


@dataclass(eq=False)
class Graph:
    """A graph under construction, or ready to be instantiated."""

    nodes: list[Node] = field(default_factory=list)
    conditionals: dict[int, int | None] = field(default_factory=dict)
    """The value that each conditional handle has when the graph starts; None: what it had."""

    def fault(self, *, in_a_body: bool = False) -> str | None:
        """Return what keeps the driver from instantiating it."""
        for node in self.nodes:
            if in_a_body and node.kind not in IN_A_BODY:
                return f"a {node.kind} node in a body"
            inner = [*node.bodies, *([node.child] if node.child else [])]
            faults = (graph.fault(in_a_body=in_a_body or bool(node.bodies)) for graph in inner)
            fault = next(filter(None, faults), None)
            if fault:
                return fault
        return None


@dataclass
class Capture:
    """What a stream captures: the graph, and what its next node comes after."""

    graph: Graph
    last: list[Node] = field(default_factory=list)
    valid: bool = True

    def add(self, node: Node) -> None:
        """Add a node behind what was captured."""
        self.graph.nodes.append(node)
        self.last = [node]


class Replay:
    """One run of a graph: nodes in some order that its edges allow, unordered ones in any.

    Attributes
    ----------
    races
        Nodes that touch the same bytes with no edge between them.
    """

    def __init__(self, graph: Graph, values: dict[int, int], chooser: random.Random) -> None:
        self._graph = graph
        self._values = values
        self._chooser = chooser
        self.races: list[str] = []
        self.names: list[str] = []
        for handle, value in graph.conditionals.items():
            if value is not None:
                values[handle] = value

    def run(self) -> Touched:
        """Run the graph; return what it touched."""
        return self._run(self._graph)

    def set(self, handle: int, value: int) -> Span:
        """Set a conditional handle, as a kernel does; return what stands for its memory."""
        if handle not in self._graph.conditionals:
            self.races.append(f"a kernel sets the conditional handle {handle} of another graph")
        self._values[handle] = value
        return _place(handle)

    def _run(self, graph: Graph) -> Touched:
        waiting, done = list(graph.nodes), list[tuple[Node, Operation]]()
        finished: set[int] = set()
        while waiting:
            ready = [node for node in waiting if all(id(other) in finished for other in node.after)]
            node = self._chooser.choice(ready)
            waiting.remove(node)
            operation = Operation(node.name, 0, node.run, touched=self._run_node(node))
            for other, earlier in done:
                if id(other) not in node.before:
                    self.races += collisions(operation, earlier)
            done.append((node, operation))
            finished.add(id(node))
        touched = [operation.touched for _, operation in done]
        return Touched(
            [span for part in touched for span in part.reads],
            [span for part in touched for span in part.writes],
        )

    def _run_node(self, node: Node) -> Touched:
        self.names.append(node.name)
        if node.kind == "GRAPH":
            assert node.child is not None
            return self._run(node.child)
        if node.kind != "CONDITIONAL":
            return node.run()
        value = self._values.get(node.handle, 0)
        index = value if node.name.startswith(SWITCH) else (0 if value else len(node.bodies))
        inner = self._run(node.bodies[index]) if index < len(node.bodies) else NOTHING
        return Touched([*inner.reads, _place(node.handle)], inner.writes)


def _place(handle: int) -> Span:
    return Span(HANDLES + handle, HANDLES + handle + 1)
