"""TensorRT plans on a GPU: the engine of a stage, and one execution context per batch size.

The only module of runtime that imports TensorRT. It uses the calls that TensorRT 8.6, 10, 11 and
TensorRT-RTX share (tensors by name); the few that differ stand in `_Memory`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from kernels.launch import DeviceArray
from runtime.cuda import CudaDevice
from runtime.cuda_resources import DeviceMemory, Stream
from runtime.errors import TensorRTError
from runtime.plans import LIBRARY_NAMES, Library, Plan
from runtime.profiling import LayerTimes, layer_profiler
from runtime.rtx_cache import RuntimeCache, cache_path

log = logging.getLogger(__name__)

# TensorRT's nptype fails for some types and some versions of NumPy.
_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "VERBOSE": logging.DEBUG,
}
_runtimes: dict[Library, TensorRTRuntime] = {}


class EngineTensor(NamedTuple):
    """An input or output of an engine; ``shape`` is that of one sample."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class TensorRTRuntime:
    """An imported TensorRT with its one logger and runtime; `tensorrt_runtime` returns it.

    TensorRT keeps the first logger of a process, so there is one: it feeds Python's logging, and
    keeps the last error for the message of an exception.
    """

    def __init__(self, library: Library, module: ModuleType) -> None:
        self.library = library
        self.module = module
        self.last_error = ""
        self._logger = self._make_logger()
        try:
            self.native = module.Runtime(self._logger)
        except TypeError as error:  # pybind11: the factory returned nothing
            raise TensorRTError(
                f"{self.name} cannot start: {self.last_error or error}. "
                "Find the cause: python -m runtime.doctor"
            ) from None

    @property
    def version(self) -> str:
        """The full version, ``10.3.0``."""
        return str(self.module.__version__)

    @property
    def name(self) -> str:
        """Library and version, for messages."""
        return f"{LIBRARY_NAMES[self.library]} {self.version}"

    def failure(self, what: str) -> TensorRTError:
        """Return the exception for a call that reported failure, with TensorRT's last error."""
        reason, self.last_error = self.last_error, ""
        return TensorRTError(f"{self.name}: {what} failed: {reason or 'it gave no reason'}")

    def _make_logger(self) -> Any:
        runtime = self

        class Logger(self.module.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                # pybind11 needs the base's own constructor.
                runtime.module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                level = _LEVELS.get(severity.name, logging.DEBUG)
                if level == logging.ERROR:
                    runtime.last_error = message.strip()
                log.log(level, "%s", message)

        return Logger()


def tensorrt_runtime(library: Library = "tensorrt") -> TensorRTRuntime:
    """Import TensorRT, once a process.

    Raises
    ------
    TensorRTError
        When it is not installed, or cannot be loaded or started.
    """
    if library not in _runtimes:
        try:
            module = importlib.import_module(library)
        except (ImportError, OSError, AttributeError) as error:
            raise TensorRTError(
                f"{LIBRARY_NAMES[library]} cannot be imported ({error}). On Jetson it comes with "
                "JetPack, and the environment must see the system's packages; "
                "elsewhere: pip install tensorrt. Find the cause: python -m runtime.doctor"
            ) from None
        _runtimes[library] = TensorRTRuntime(library, module)
    return _runtimes[library]


@dataclass(frozen=True)
class EngineOptions:
    """How engines are run.

    Attributes
    ----------
    host_code
        Allow plans that contain code for the host, as version-compatible ones do: only for plans
        that you built yourself.
    profile_layers
        TensorRT times each layer. It then waits for the end of each run, and no run can be
        captured.
    nvtx
        TensorRT marks its layers for Nsight Systems, as far as their plan names them; without
        it, it does not even prepare to.
    """

    host_code: bool = False
    profile_layers: bool = False
    nvtx: bool = False


DEFAULTS = EngineOptions()


class Engine:
    """A deserialised plan. Owns its contexts; memory belongs to the caller.

    Raises
    ------
    TensorRTError
        When TensorRT refuses the plan.

    Attributes
    ----------
    layer_times
        Of its layers, where they are profiled.
    """

    def __init__(self, plan: Plan, device: CudaDevice, options: EngineOptions = DEFAULTS) -> None:
        self.name = plan.name
        self.runtime = runtime = tensorrt_runtime(plan.key.machine.library)
        self.device = device
        self.options = options
        self.layer_times = LayerTimes()
        # Of one runtime in the process:
        runtime.native.engine_host_code_allowed = options.host_code
        content = plan.read()
        with device.active():
            self.native: Any = runtime.native.deserialize_cuda_engine(content)
        if self.native is None:
            raise runtime.failure(f"plan {plan.name}: deserialising {plan.path}")
        self._memory = _Memory(self.native, runtime.module)
        self._cache: RuntimeCache | None = None
        try:
            if runtime.library == "tensorrt_rtx":
                path = cache_path(plan.sidecar.sha256, device.gpu.name)
                self._cache = self._memory.use_cache(path)
            names = [self.native.get_tensor_name(i) for i in range(self.native.num_io_tensors)]
            self.tensors = {name: self._describe(name) for name in names}
            self.buckets = self._profiles()
        except BaseException:
            self.close()
            raise

    @property
    def scratch_bytes(self) -> int:
        """Memory that a running context needs beside its tensors; contexts in turn may share it."""
        return self._memory.nbytes

    def context(self, bucket: int, scratch: DeviceMemory, stream: Stream) -> Context:
        """Return a context for batches of one size.

        Parameters
        ----------
        bucket
            One of `buckets`.
        scratch
            At least `scratch_bytes`; contexts that share it must not run at the same time.
        stream
            On which its profile is chosen: what runs first comes after that.

        Raises
        ------
        TensorRTError
            When TensorRT cannot make it.
        """
        with self.device.active():
            context = Context(self, self._memory.make_context(), bucket)
            try:
                context.prepare(self._memory, scratch, stream)
            except BaseException:
                context.close()
                raise
            return context

    def layers(self) -> str:
        """Return what the engine inspector says of every layer, as JSON: its precision among it.

        A plan that was built without detailed profiling only names its layers.
        """
        kind = self.runtime.module.LayerInformationFormat.JSON
        with self.device.active():
            return str(self.native.create_engine_inspector().get_engine_information(kind))

    def close(self) -> None:
        """Free the engine, after all its contexts; a second call does nothing."""
        if self._cache is not None:
            self._cache.close()
        self.native = None
        self._memory.engine = self._memory.config = None

    def keep_compiled(self) -> None:
        """Keep what TensorRT-RTX has compiled so far for the next start."""
        if self._cache is not None:
            self._cache.save()

    def _describe(self, name: str) -> EngineTensor:
        mode = self.native.get_tensor_mode(name).name
        kind = self.native.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise TensorRTError(
                f"plan {self.name}: tensor {name}: expected one of {', '.join(_DTYPES)}, "
                f"got {kind}. Export the model with float inputs and outputs."
            )
        shape = tuple(self.native.get_tensor_shape(name))[1:]
        return EngineTensor(name, mode == "INPUT", _DTYPES[kind], shape)

    def _profiles(self) -> dict[int, int]:
        """Return the index of the profile for each batch size, ascending."""
        name = next(tensor.name for tensor in self.tensors.values() if tensor.is_input)
        count = range(self.native.num_optimization_profiles)
        most = {self.native.get_tensor_profile_shape(name, i)[2][0]: i for i in count}
        return dict(sorted(most.items()))


class Context:
    """Runs an engine on batches of one size; made by `Engine.context`, freed by `close`."""

    def __init__(self, engine: Engine, native: Any, bucket: int) -> None:
        self._engine = engine
        self._native = native
        self._profiler: Any = None
        self.bucket = bucket

    def prepare(self, memory: _Memory, scratch: DeviceMemory, stream: Stream) -> None:
        """Give it scratch memory, choose its profile, and watch it as its engine's options say.

        Raises
        ------
        TensorRTError
            When TensorRT could not make it, or refuses.
        """
        if self._native is None:
            raise self._failure("making a context")
        memory.attach(self._native, scratch)
        profile = self._engine.buckets[self.bucket]
        if not self._native.set_optimization_profile_async(profile, stream.handle):
            raise self._failure(f"choosing profile {profile}")
        module, engine = self._engine.runtime.module, self._engine
        if not engine.options.nvtx:  # plans are built with all names, which costs time
            self._native.nvtx_verbosity = module.ProfilingVerbosity.NONE
        if engine.options.profile_layers:
            self._profiler = layer_profiler(module, engine.layer_times)
            self._native.profiler = self._profiler

    def close(self) -> None:
        """Free it, when no run is in flight; a second call does nothing."""
        self._native = self._profiler = None

    def bind(self, tensors: Mapping[str, DeviceArray]) -> None:
        """Set shapes of inputs and addresses of all tensors; each holds `bucket` rows or more.

        Raises
        ------
        TensorRTError
            When TensorRT refuses one.
        """
        for name, tensor in self._engine.tensors.items():
            shape = (self.bucket, *tensor.shape)
            if tensor.is_input and not self._native.set_input_shape(name, shape):
                raise self._failure(f"shape {list(shape)} of {name}")
        for name in self._engine.tensors:
            if not self._native.set_tensor_address(name, tensors[name].address):
                raise self._failure(f"address of {name}")

    def enqueue(self, stream: Stream) -> None:
        """Enqueue one run; neither allocates nor waits, unless layers are profiled.

        Raises
        ------
        TensorRTError
            When TensorRT refuses.
        """
        activity = self._engine.device.activity
        activity.launches += 1
        if self._profiler is not None:  # TensorRT waits, and then reports
            activity.waits += 1
        if not self._native.execute_async_v3(stream.handle):
            raise self._failure("running it")

    def is_capturable(self, stream: Stream) -> bool:
        """Return whether a run may be captured in a graph, as far as TensorRT can say."""
        ask = getattr(self._native, "is_stream_capturable", None)  # TensorRT-RTX alone has it
        return ask is None or bool(ask(stream.handle))

    def _failure(self, what: str) -> TensorRTError:
        return self._engine.runtime.failure(
            f"plan {self._engine.name}, batch {self.bucket}: {what}"
        )


class _Memory:
    """Contexts that use memory of ours: what differs between the versions of TensorRT."""

    def __init__(self, engine: Any, module: ModuleType) -> None:
        self.engine = engine
        self.config: Any = None
        self._strategy = getattr(module, "ExecutionContextAllocationStrategy", None)

    @property
    def nbytes(self) -> int:
        for name in ("device_memory_size_v2", "device_memory_size"):
            size = getattr(self.engine, name, None)
            if size is not None:
                return int(size)
        raise AssertionError("TensorRT has one of the two")

    def use_cache(self, path: Path | None) -> RuntimeCache:
        assert self._strategy is not None, "TensorRT-RTX has it"
        cache = RuntimeCache(self.engine, self._strategy.USER_MANAGED, path)
        self.config = cache.config
        return cache

    def make_context(self) -> Any:
        if self.config is not None:
            return self.engine.create_execution_context(self.config)
        if self._strategy is None:  # TensorRT 8
            return self.engine.create_execution_context_without_device_memory()
        return self.engine.create_execution_context(self._strategy.USER_MANAGED)

    def attach(self, context: Any, scratch: DeviceMemory) -> None:
        if hasattr(context, "set_device_memory"):  # from 10.3 on
            context.set_device_memory(scratch.address, scratch.nbytes)
        else:
            context.device_memory = scratch.address
