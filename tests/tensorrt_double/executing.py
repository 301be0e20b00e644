"""What the running side of TensorRT would do: a plan's ONNX model is run by ONNX Runtime.

It runs in the memory of the doubled driver, when the stream gets there, and declares what it reads
and writes: tensors, scratch memory and the state of its context. Rules that real versions enforce,
or that end in undefined behaviour there, are enforced: a shape before an address before a run, the
range of a profile, one context per profile on 8.6 unless profiles are shared, alignment, a first
run before a capture. Failure is None or False, and a line in the log.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from tests.cuda_cpu.emulation import Span
from tests.cuda_double.api_modules import enqueue_engine
from tests.cuda_double.driver import Driver
from tests.cuda_double.memory import Block
from tests.cuda_double.work import Touched
from tests.tensorrt_double.building import log
from tests.tensorrt_double.configuring import RuntimeCache, RuntimeConfig
from tests.tensorrt_double.double import Module, Record
from tests.tensorrt_double.plan_content import PlanContent
from tests.tensorrt_double.running import TYPES, layer_names, run_model, session, span

_ALIGNMENT = 256
_VERBOSITIES = ("NONE", "LAYER_NAMES_ONLY", "DETAILED")
_STATE_BYTES = 256


class Library:
    """The module that is doubled, and the driver it finds.

    Attributes
    ----------
    compiled
        What TensorRT-RTX had to compile, as it was not in a runtime cache.
    marked
        For each run that NVTX has heard of, the engine and how much it was told.
    """

    def __init__(self, driver: Callable[[], Driver], threads: int) -> None:
        self.driver = driver
        self.threads = threads
        self.compiled: list[str] = []
        self.marked: list[tuple[str, str]] = []
        self.module: Module  # set once it is made

    @property
    def version(self) -> str:
        """The version of the real bindings."""
        return str(self.module.__version__)

    @property
    def is_8(self) -> bool:
        """Whether profiles belong to contexts."""
        return self.version.startswith("8.")


class Runtime:
    """Runtime."""

    native = "Runtime"

    def __init__(self, library: Library, logger: Any) -> None:
        self._library, self._logger = library, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
        """Return an engine, or None where this version would refuse the plan."""
        try:
            plan = PlanContent.from_bytes(bytes(serialized_engine))
        except ValueError as error:
            return self._fail(f"Serialization assertion failed: {error}")
        if plan.version != self._library.version and not plan.host_code:
            return self._fail(
                "The engine plan file is not compatible with this version of TensorRT, expecting "
                f"library version {self._library.version} got {plan.version}, please rebuild."
            )
        if plan.host_code and not self.engine_host_code_allowed:
            return self._fail("Host code is not allowed in engines")
        driver = self._library.driver()
        if driver.memory.used + len(plan.onnx) > driver.machine.memory:
            return self._fail("Requested amount of GPU memory could not be allocated")
        return Engine(self._library, self, plan, driver)

    def _fail(self, message: str) -> None:
        log(self._library.module, self._logger, "ERROR", message)


class Engine:
    """ICudaEngine."""

    native = "ICudaEngine"

    def __init__(
        self, library: Library, runtime: Runtime, plan: PlanContent, driver: Driver
    ) -> None:
        self.library, self.runtime, self.plan, self.driver = library, runtime, plan, driver
        self.session = session(plan.onnx, library.threads)
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.outputs = {item.name: item for item in self.session.get_outputs()}
        self.tensors = {**self.inputs, **self.outputs}
        self.users: dict[int, set[int]] = {}
        self.layers = layer_names(plan.onnx, plan.verbosity)
        self._weights = driver.memory.allocate(len(plan.onnx), "device")

    def __del__(self) -> None:
        self.driver.memory.free(self._weights.start, "device")

    @property
    def num_io_tensors(self) -> int:
        """Number of inputs and outputs."""
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        """Number of profiles."""
        return len(self.plan.profiles)

    @property
    def device_memory_size(self) -> int:
        """Bytes of scratch memory."""
        return self.plan.scratch

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes of scratch memory."""
        return self.plan.scratch

    def get_tensor_name(self, index: int) -> str:
        """Return a tensor's name."""
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        """Return whether it is an input."""
        return getattr(
            self.library.module.real("TensorIOMode"), "INPUT" if name in self.inputs else "OUTPUT"
        )

    def get_tensor_dtype(self, name: str) -> Any:
        """Return its type."""
        kind, _ = TYPES[self.tensors[name].type]
        return self.library.module.real("DataType").__members__[kind]

    def get_tensor_shape(self, name: str) -> Any:
        """Return its shape, -1 where it varies."""
        sizes = [size if isinstance(size, int) else -1 for size in self.tensors[name].shape]
        return self.library.module.real("Dims")(tuple(sizes))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        """Return the least, best and most shape of an input."""
        inner = self.tensors[name].shape[1:]
        dims = self.library.module.real("Dims")
        return [dims((batch, *inner)) for batch in self.plan.profiles[profile_index]]

    def create_engine_inspector(self) -> EngineInspector:
        """Return what tells of the engine's layers."""
        return EngineInspector(self)

    def create_runtime_config(self) -> RuntimeConfig:
        """Return a configuration of contexts."""
        return RuntimeConfig()

    def create_execution_context(
        self, strategy: Any = None, runtime_config: RuntimeConfig | None = None
    ) -> ExecutionContext | None:
        """Return a context that has no scratch memory yet."""
        config = runtime_config or RuntimeConfig()
        if (strategy or config.strategy).name != "USER_MANAGED":
            raise NotImplementedError("the double has contexts with memory of the caller only")
        return ExecutionContext(self, config.cache)

    def create_execution_context_without_device_memory(self) -> ExecutionContext:
        """Return a context that has no scratch memory yet."""
        return ExecutionContext(self)


class EngineInspector:
    """EngineInspector."""

    native = "EngineInspector"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:
        """Return what there is to tell: the plan's tensors."""
        assert format.name == "JSON", "the double has no other format"
        return json.dumps({"Layers": [], "Bindings": list(self._engine.tensors)})


class ExecutionContext:
    """IExecutionContext."""

    native = "IExecutionContext"

    def __init__(self, engine: Engine, cache: RuntimeCache | None = None) -> None:
        self._engine, self._driver = engine, engine.driver
        self._cache = cache
        self._state: Block = self._driver.memory.allocate(_STATE_BYTES, "device")
        self._scratch: tuple[int, int] | None = None
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._has_run: set[tuple[int, ...]] = set()
        self.profiler: Any = None
        self._nvtx = engine.plan.verbosity

    def __del__(self) -> None:
        self._driver.memory.free(self._state.start, "device")
        for users in self._engine.users.values():
            users.discard(id(self))

    @property
    def nvtx_verbosity(self) -> Any:
        """How much NVTX is told of the layers."""
        return getattr(self._engine.library.module.real("ProfilingVerbosity"), self._nvtx)

    @nvtx_verbosity.setter
    def nvtx_verbosity(self, verbosity: Any) -> None:
        wanted, built = verbosity.name, self._engine.plan.verbosity
        if _VERBOSITIES.index(wanted) > _VERBOSITIES.index(built):
            self._fail(f"setNvtxVerbosity: {wanted} is more than the plan was built with, {built}")
            return
        self._nvtx = wanted

    @property
    def device_memory(self) -> int:
        """Where the scratch memory is."""
        raise AttributeError("device_memory can only be set")

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        self.set_device_memory(address, self._engine.plan.scratch)

    def set_device_memory(self, memory: int, size: int) -> None:
        """Attach scratch memory."""
        needed = self._engine.plan.scratch
        if memory % _ALIGNMENT or size < needed:
            self._fail(f"scratch of {size} bytes at {memory:#x}: it needs {needed}, aligned to 256")
            return
        self._scratch = (memory, needed)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose a profile; shapes are then unknown."""
        engine, driver = self._engine, self._driver
        if not 0 <= profile_index < len(engine.plan.profiles) or stream_handle in driver.captures:
            return self._fail(f"Profile {profile_index} cannot be set")
        users = engine.users.setdefault(profile_index, set())
        if engine.library.is_8 and not engine.plan.shares_profiles and users - {id(self)}:
            return self._fail(
                f"Profile {profile_index} has been chosen for another IExecutionContext. "
                "Use another profileIndex or destroy the IExecutionContext that use this profile."
            )
        users.add(id(self))
        self._profile, self._shapes = profile_index, {}
        state = Span(self._state.start, self._state.stop)
        return (
            enqueue_engine(driver, stream_handle, "set profile", lambda: Touched([], [state])) == 0
        )

    def set_input_shape(self, name: str, shape: Any) -> bool:
        """Set the shape of an input."""
        sizes, item = tuple(shape), self._engine.inputs.get(name)
        if item is None or self._profile is None:
            return self._fail(f"setInputShape: {name}: no such input, or no profile is chosen")
        least, _, most = self._engine.plan.profiles[self._profile]
        if sizes[1:] != tuple(item.shape[1:]) or not least <= sizes[0] <= most:
            return self._fail(
                f"setInputShape: Error Code 3: API Usage Error (Set dimension {list(sizes)} for "
                f"tensor {name} does not satisfy any optimization profiles. Valid range for "
                f"profile {self._profile}: {least}..{most}.)"
            )
        self._shapes[name] = sizes
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Set the address of a tensor."""
        if name not in self._engine.tensors or not self._is_shaped:
            return self._fail(f"setTensorAddress: {name}: no such tensor, or a shape is missing")
        if memory % _ALIGNMENT:
            return self._fail(f"setTensorAddress: {name}: {memory:#x} is not aligned to 256 bytes")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue a run."""
        engine, driver = self._engine, self._driver
        missing = set(engine.tensors) - set(self._addresses)
        if not self._is_shaped or missing or self._scratch is None:
            return self._fail(f"enqueueV3: not all is set: addresses of {sorted(missing)}")
        if stream_handle not in driver.queues:
            return self._fail("enqueueV3: the default stream, or none")
        batch = next(iter(self._shapes.values()))[0]
        capturing = stream_handle in driver.captures
        if capturing and (batch,) not in self._has_run:
            return self._fail("enqueueV3: captured before it has run once with this shape")
        if capturing and self.profiler is not None:
            return self._fail("enqueueV3: a run that reports to a profiler cannot be captured")
        self._has_run.add((batch,))
        self._compile(f"{engine.plan.name} at {batch}")
        used = [span(*self._scratch), Span(self._state.start, self._state.stop)]
        # It must not keep the context alive: that is the caller's business.
        run = functools.partial(run_model, engine.session, batch, dict(self._addresses), used)
        name, kinds = f"{engine.plan.name} at {batch}", engine.plan.captured_as
        if enqueue_engine(driver, stream_handle, name, run, captured_as=kinds):
            return self._fail("enqueueV3: CUDA failure")
        if self._nvtx != "NONE":
            engine.library.marked.append((engine.plan.name, self._nvtx))
        return self.profiler is None or self._report(stream_handle)

    def _report(self, stream_handle: int) -> bool:
        """Wait for the end of the run, and tell the profiler of each layer: a millisecond."""
        driver = self._driver
        if driver.wait(lambda: driver.queues.wait_for_stream(stream_handle)):
            return self._fail("enqueueV3: the run that is profiled failed")
        for layer in self._engine.layers:
            self.profiler.report_layer_time(layer, 1.0)
        return True

    def _compile(self, what: str) -> None:
        if self._cache is not None and what not in self._cache.entries:
            self._cache.entries.add(what)
            self._engine.library.compiled.append(what)

    def is_stream_capturable(self, stream: int) -> bool:
        """Return whether runs may be captured."""
        return self._engine.plan.capturable

    @property
    def _is_shaped(self) -> bool:
        return set(self._shapes) == set(self._engine.inputs)

    def _fail(self, message: str) -> bool:
        self._engine.runtime._fail(message)
        return False


def make_module(
    real: Any, driver: Callable[[], Driver], *, record: Record, threads: int = 2
) -> Module:
    """Return a double of TensorRT that runs plans, over the real bindings of a version."""
    library = Library(driver, threads)
    behaviours = {"Runtime": functools.partial(Runtime, library)}
    library.module = Module(real, behaviours, {}, record)
    library.module.library = library
    return library.module
