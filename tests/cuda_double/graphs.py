"""Captured work: graphs, their nodes, and conditional nodes whose bodies the device chooses."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.cuda_double.work import Touched

SWITCH, IF = "SWITCH", "IF"


@dataclass(eq=False)
class Node:
    """One node.

    Attributes
    ----------
    kind
        As the driver names it: ``KERNEL``, ``MEMCPY``, ``MEMSET``, ``CONDITIONAL``, ...
    copy
        Of a MEMCPY node: source, target, bytes.
    """

    kind: str
    name: str
    run: Callable[[], Touched]
    after: list[Node]
    copy: tuple[int, int, int] | None = None
    bodies: list[Graph] = field(default_factory=list)
    child: Graph | None = None


@dataclass(eq=False)
class Graph:
    """A graph under construction, or ready to be instantiated."""

    nodes: list[Node] = field(default_factory=list)
    conditionals: dict[int, int] = field(default_factory=dict)
    """The value that each conditional handle has when the graph starts."""

    @property
    def has_conditionals(self) -> bool:
        """Whether it may not be a child, nor be cloned."""
        return any(node.kind == "CONDITIONAL" for node in self.nodes)


@dataclass
class Capture:
    """What a stream captures: the graph, and what its next node comes after."""

    graph: Graph
    owns_graph: bool
    last: list[Node] = field(default_factory=list)


class Replay:
    """One run of a graph: nodes in some order that its edges allow, unordered ones in any."""

    def __init__(self, values: dict[int, int], chooser: random.Random) -> None:
        self.values = values
        self._random = chooser

    def run(self, graph: Graph) -> Touched:
        """Run all nodes; return what they touched."""
        self.values.update(graph.conditionals)
        reads, writes = [], []
        waiting, done = list(graph.nodes), set()
        while waiting:
            ready = [node for node in waiting if all(id(other) in done for other in node.after)]
            node = self._random.choice(ready)
            waiting.remove(node)
            touched = node.run()
            done.add(id(node))
            reads += touched.reads
            writes += touched.writes
        return Touched(reads, writes)

    def branch(self, kind: str, handle: int, bodies: list[Graph]) -> Touched:
        """Run the body that a handle's value selects, or none."""
        value = self.values[handle]
        if kind == IF:
            return self.run(bodies[0]) if value else Touched()
        return self.run(bodies[value]) if value < len(bodies) else Touched()
