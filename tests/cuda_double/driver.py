"""One process's view of the doubled driver: what it is, what it holds, and how calls reach it.

The functions themselves stand in `api_device`, `api_memory`, `api_streams`, `api_modules` and
`api_graphs`: each has the name of the real one and takes its arguments as integers; it returns a
CUresult. What has no function there answers CUDA_ERROR_NOT_SUPPORTED.
"""

from __future__ import annotations

import inspect
import itertools
import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.cuda_double import structures
from tests.cuda_double.graphs import HANDLES, Capture, Node, Replay
from tests.cuda_double.kernels import Kernels
from tests.cuda_double.memory import Memory, checksum
from tests.cuda_double.structures import Status
from tests.cuda_double.work import Operation, Queues, Races, Touched

Arguments = Callable[[int], list[int]]
"""Returns the first so many arguments of a call."""


DEFAULT_STREAMS = (1, 2)
"""CU_STREAM_LEGACY and CU_STREAM_PER_THREAD; 0 is the first of them, and nobody may use it here."""


@dataclass
class Machine:
    """What the double is.

    Attributes
    ----------
    driver
        CUDA version of the driver: ``(12, 6)``.
    shares_memory
        Whether the device has the host's memory, as on Jetson.
    frees_wait
        Whether freeing memory waits for all work, as real drivers do but do not promise.
    """

    driver: tuple[int, int] = (13, 0)
    name: str = "Orin (double)"
    capability: tuple[int, int] = (8, 7)
    memory: int = 2**30
    devices: int = 1
    shares_memory: bool = False
    frees_wait: bool = False


@dataclass
class Failure:
    """A call that fails: the one of that number, counted from 0.

    Attributes
    ----------
    name
        Of the function whose calls are counted; None counts all.
    sticky
        From then on everything fails, as after a fault of a kernel.
    """

    status: int
    number: int = 0
    name: str | None = None
    sticky: bool = False


@dataclass
class Counts:
    """What the host has done since the last reset.

    Attributes
    ----------
    waits
        Times that the host waited for the device.
    calls
        Names of all calls, in order.
    """

    waits: int = 0
    launches: int = 0
    graph_launches: int = 0
    allocations: int = 0
    calls: list[str] = field(default_factory=list)


class Driver:
    """The state of the driver.

    Attributes
    ----------
    errors
        What a real GPU would do wrong without saying so: races, pageable copies, memory that
        changed while it was copied. Tests require that there are none.
    history
        ``enqueued NAME`` and ``ran NAME`` of all work, in order, since the last reset.
    leaked
        What a context had when it ended, by kind.
    failure
        What is to fail.
    """

    def __init__(
        self, kernels: Kernels, machine: Machine | None = None, *, seed: int | None = 0
    ) -> None:
        self.machine = machine or Machine()
        self.kernels = kernels
        self.memory = Memory()
        self.races = Races(self.memory.touched)
        self.queues = Queues(seed, self.races, self._happened, self.memory.reuse)
        for default in DEFAULT_STREAMS:
            self.queues.open(default)
        self.counts = Counts()
        self.history: list[str] = []
        self.failure: Failure | None = None
        self.problems: list[str] = []
        self.dead = 0
        self.leaked: dict[str, int] = {}
        self.initialised = False
        self.retained = 0
        self.objects: dict[int, Any] = {}
        self.captures: dict[int, Capture] = {}
        self.values: dict[int, int] = {}
        self.replay: Replay | None = None
        self.handles = itertools.count(0x1000, 16)
        self.address_of: Callable[[str], int | None] = lambda name: None
        self._threads = threading.local()
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._functions = _functions(self)

    @property
    def errors(self) -> list[str]:
        """All that went wrong so far."""
        return [*self.problems, *self.races.found]

    @property
    def contexts(self) -> list[int]:
        """The contexts of this thread, the current one last."""
        if not hasattr(self._threads, "contexts"):
            self._threads.contexts = []
        stack: list[int] = self._threads.contexts
        return stack

    def end_context(self) -> None:
        """Free all that a context still has, as the driver does; but it should have been freed."""
        self.queues.wait_for_all()
        if not self.dead:
            self.leaked = self.live()
        self.objects.clear()
        self.memory.clear()

    def live(self) -> dict[str, int]:
        """Return how much of everything there is."""
        items = [*self.objects.values(), *self.memory.blocks()]
        counts: Counter[str] = Counter(type(item).__name__ for item in items)
        counts["context"] = self.retained
        counts["capture"] = len(self.captures)
        counts["current context"] = len(self.contexts)
        return dict(+counts)

    def reset(self) -> None:
        """Count anew."""
        self.counts = Counts()
        self.history.clear()

    def call(self, name: str, arguments: Arguments) -> int:
        """Run a function by its name."""
        with self._lock:
            try:
                return self._call(name, arguments)
            except Exception:
                self.problems.append(f"{name}: {traceback.format_exc()}")
                self.dead = self.dead or Status.UNKNOWN
                return self.dead

    def _call(self, name: str, arguments: Arguments) -> int:
        refusal = self._refusal(name)
        if refusal:
            if name == "cuModuleLoadDataEx":
                structures.end_logs(*arguments(5)[2:])
            return refusal
        function, parameters = self._functions[name]
        return int(function(*arguments(parameters)))

    def _refusal(self, name: str) -> int:
        """Return why a call is not carried out, or 0."""
        self.counts.calls.append(name)
        if os.getpid() != self._process and name not in _IN_A_CHILD:
            return Status.NOT_INITIALIZED
        failure = self.failure
        if failure is not None and failure.name in (None, name):
            failure.number -= 1
            if failure.number == -1:
                self.dead = failure.status if failure.sticky else self.dead
                return failure.status
        if name not in self._functions:
            return Status.NOT_SUPPORTED
        if name in _ALWAYS:
            return Status.SUCCESS
        if not self.initialised:
            return Status.NOT_INITIALIZED
        if name in _WITHOUT_CONTEXT:
            return Status.SUCCESS
        if self.dead:
            return self.dead
        if not self.contexts:
            return Status.INVALID_CONTEXT
        return self._capturing(name)

    def _capturing(self, name: str) -> int:
        """Return an error for what ends a capture; all captures are of one thread."""
        if not self.captures or name not in _ENDS_CAPTURE:
            return Status.SUCCESS
        for capture in self.captures.values():
            capture.valid = False
        return Status.STREAM_CAPTURE_UNSUPPORTED

    def enqueue(
        self,
        stream: int,
        name: str,
        run: Callable[[], Touched],
        *,
        kind: str = "KERNEL",
        copy: tuple[int, int, int] | None = None,
        learnt: Callable[[], None] | None = None,
    ) -> int:
        """Enqueue work, or capture it."""
        capture = self.captures.get(stream)
        if capture is not None:
            capture.add(Node(kind, name, lambda: self.inside(name, run()), capture.last, copy))
            return Status.SUCCESS
        if stream not in self.queues:
            return Status.INVALID_HANDLE
        mapped = {
            block.start: checksum(block.start, block.nbytes)
            for block in self.memory.blocks("mapped")
        }

        def all_learnt() -> None:
            if not self.dead:
                self._unchanged(operation, mapped)
                if learnt is not None:
                    learnt()

        operation = self.queues.enqueue(
            stream, name, lambda: self.inside(name, self._run(run)), learnt=all_learnt
        )
        return Status.SUCCESS

    def wait(self, wait: Callable[[], None]) -> int:
        """Let the host wait."""
        self.counts.waits += 1
        wait()
        return self.dead or Status.SUCCESS

    def inside(self, name: str, touched: Touched) -> Touched:
        """Hold what work touches against what is allocated."""
        for start, block in self.memory.touched((*touched.reads, *touched.writes)).items():
            if block is None and start < HANDLES:
                self.problems.append(f"{name} touches {start:#x}, which is not allocated")
        return touched

    def new(self, item: Any) -> int:
        """Return a handle for something new."""
        handle = next(self.handles)
        self.objects[handle] = item
        return handle

    def remove(self, handle: int, kind: type) -> int:
        """Forget something; return a status."""
        if not isinstance(self.objects.get(handle), kind):
            return Status.INVALID_HANDLE
        del self.objects[handle]
        return Status.SUCCESS

    def handle_of(self, item: Any) -> int:
        """Return the handle of something, new if it has none."""
        found = next((handle for handle, other in self.objects.items() if other is item), None)
        return self.new(item) if found is None else found

    def _run(self, run: Callable[[], Touched]) -> Touched:
        """Run work, unless an error has ended the context."""
        if self.dead:
            return Touched()
        try:
            return run()
        except Exception as error:
            self.dead = Status.LAUNCH_FAILED
            self.problems.append(f"a kernel failed: {error}")
            return Touched()

    def _unchanged(self, operation: Operation, before: dict[int, int]) -> None:
        """Hold mapped memory that work read against what it was when that was enqueued."""
        if not before:
            return
        for start, block in self.memory.touched(operation.touched.reads).items():
            if block and start in before and checksum(start, block.nbytes) != before[start]:
                self.problems.append(f"mapped memory changed while {operation.name} was pending")

    def _happened(self, what: str, operation: Operation) -> None:
        self.history.append(f"{what} {operation.name}")


def _functions(driver: Driver) -> dict[str, tuple[Callable[..., int], int]]:
    """Return all functions with their number of arguments."""
    from tests.cuda_double import api_device, api_graphs, api_memory, api_modules, api_streams

    parts = (
        api_device.Device(driver),
        api_memory.DeviceMemory(driver),
        api_streams.Streams(driver),
        api_modules.Modules(driver),
        api_graphs.Graphs(driver),
    )
    return {
        name: (function, len(inspect.signature(function).parameters))
        for part in parts
        for name, function in inspect.getmembers(part, inspect.ismethod)
        if name.startswith("cu")
    }


_ALWAYS = frozenset(
    {"cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString", "cuGetProcAddress_v2"}
)
_IN_A_CHILD = _ALWAYS - {"cuInit"}
_WITHOUT_CONTEXT = frozenset(
    {
        "cuDeviceGet",
        "cuDeviceGetCount",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDeviceTotalMem_v2",
        "cuDevicePrimaryCtxRetain",
        "cuDevicePrimaryCtxRelease_v2",
        "cuCtxGetCurrent",
        "cuCtxPopCurrent_v2",
        "cuCtxPushCurrent_v2",
    }
)
_ENDS_CAPTURE = frozenset(
    {
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuMemHostAlloc",
        "cuMemFreeHost",
        "cuCtxSynchronize",
        "cuModuleLoadDataEx",
        "cuModuleLoadData",
        "cuModuleUnload",
    }
)
