"""What the building side of TensorRT would do, as far as code and people can notice.

A network is read from its ONNX file; a "build" checks the rules that real versions enforce and
returns a plan of the double, which holds that file. Nothing is compiled or timed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tests.tensorrt_double.double import Module, Record
from tests.tensorrt_double.plan_content import MAGIC, PlanContent
from tests.tensorrt_double.scenario import Scenario

PLAN = MAGIC


class HostMemory(bytes):
    """A buffer that TensorRT returns."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self)


@dataclass
class Tensor:
    """ITensor."""

    native = "ITensor"
    name: str
    shape: Any
    dtype: Any


class Network:
    """INetworkDefinition."""

    native = "INetworkDefinition"

    def __init__(self, *, typed: bool, explicit_batch: bool) -> None:
        self.typed, self.explicit_batch = typed, explicit_batch
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.onnx = b""
        self.types: set[str] = set()
        self.quantised = False

    @property
    def num_inputs(self) -> int:
        """Number of inputs."""
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        """Number of outputs."""
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor:
        """Return an input."""
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        """Return an output."""
        return self.outputs[index]


class Profile:
    """IOptimizationProfile."""

    native = "IOptimizationProfile"

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[list[int], list[int], list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        """Set the shapes of an input."""
        self.shapes[input] = (list(min), list(opt), list(max))


class TimingCache:
    """ITimingCache."""

    native = "ITimingCache"

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> HostMemory:
        """Return its content."""
        return HostMemory(self.content + b"timed")


class Config:
    """IBuilderConfig."""

    native = "IBuilderConfig"

    def __init__(self) -> None:
        self.flags = {"TF32"}
        self.features: set[str] = set()
        self.profiles: list[Profile] = []
        self.builder_optimization_level = 3
        self.max_aux_streams = 0
        self.profiling_verbosity: Any = None
        self.hardware_compatibility_level: Any = None
        self.default_device_type: Any = None
        self.DLA_core = -1
        self.progress_monitor: Any = None
        self.timing_cache = TimingCache(b"")

    def set_flag(self, flag: Any) -> None:
        """Set a flag."""
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        """Clear a flag."""
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """Limit a pool."""

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        """Switch a feature."""
        (self.features.add if enable else self.features.discard)(feature.name)

    def add_optimization_profile(self, profile: Profile) -> int:
        """Add a profile and return its index, or -1 if it is not ordered."""
        for shapes in profile.shapes.values():
            if any(a > b or b > c for a, b, c in zip(*shapes, strict=True)):
                return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        """Make a cache of its serialised content."""
        return TimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Take a cache that is empty or ours."""
        if cache.content.strip(b"timed"):
            return False
        self.timing_cache = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        """Return the cache."""
        return self.timing_cache


class ParserError:
    """A parser's error."""

    native = "ParserError"

    def __init__(self, code: Any, text: str, index: int, node: onnx.NodeProto) -> None:
        self._code, self._text, self._index, self._node = code, text, index, node

    def code(self) -> Any:
        """Return the kind."""
        return self._code

    def desc(self) -> str:
        """Return the text."""
        return self._text

    def node(self) -> int:
        """Return the node's number."""
        return self._index

    def node_operator(self) -> str:
        """Return its operator."""
        return self._node.op_type

    def node_name(self) -> str:
        """Return its name."""
        return self._node.name


class Building:
    """Makes the behaviours of one module."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.module: Module  # set once it is made

    def behaviours(self) -> dict[str, Callable[..., Any]]:
        """Return them by the name of the real class."""
        return {"Builder": self._builder, "OnnxParser": self._parser}

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return what the module's functions do."""
        return {"init_libnvinfer_plugins": lambda logger, namespace: True}

    def _builder(self, logger: Any) -> Builder:
        if not self.scenario.starts:
            log(self.module, logger, "ERROR", "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Builder(self.module, logger, self.scenario)

    def _parser(self, network: Network, logger: Any) -> Parser:
        return Parser(self.module, network, logger)


class Builder:
    """Builder."""

    native = "Builder"

    def __init__(self, module: Module, logger: Any, scenario: Scenario) -> None:
        self._module, self._logger, self._scenario = module, logger, scenario

    @property
    def num_DLA_cores(self) -> int:
        """Number of DLA cores."""
        return self._scenario.dla_cores

    def create_network(self, flags: int = 0) -> Network:
        """Make an empty network."""
        members = self._module.real("NetworkDefinitionCreationFlag").__members__
        chosen = {name for name, member in members.items() if flags >> int(member) & 1}
        return Network(
            typed="STRONGLY_TYPED" in chosen,
            explicit_batch="EXPLICIT_BATCH" in chosen or "STRONGLY_TYPED" in members,
        )

    def create_builder_config(self) -> Config:
        """Make a configuration."""
        return Config()

    def create_optimization_profile(self) -> Profile:
        """Make a profile."""
        return Profile()

    def build_serialized_network(
        self, network: Network, config: Config, kernel_text: Any = None
    ) -> HostMemory | None:
        """Check what TensorRT would, and return some bytes; None where it would refuse."""
        scenario = self._scenario
        self._report(config)
        for _ in range(2 * (scenario.warning is not None)):
            log(self._module, self._logger, "WARNING", scenario.warning)
        if scenario.ends_by:
            os.kill(os.getpid(), getattr(signal, scenario.ends_by))
        error = scenario.error or _fault(network, config)
        if error:
            log(self._module, self._logger, "ERROR", error)
            return None
        return HostMemory(self._plan(network, config).to_bytes())

    def _plan(self, network: Network, config: Config) -> PlanContent:
        ranges = [next(iter(profile.shapes.values())) for profile in config.profiles]
        return PlanContent(
            name="built",
            version=str(self._module.__version__),
            profiles=[(low[0], opt[0], high[0]) for low, opt, high in ranges],
            onnx=network.onnx,
            shares_profiles="PROFILE_SHARING_0806" in config.features,
            host_code="VERSION_COMPATIBLE" in config.flags,
        )

    def _report(self, config: Config) -> None:
        """Take the time, in steps that are reported where this version can."""
        monitor, steps = config.progress_monitor, 4
        if monitor is not None:
            monitor.phase_start("Building engine", None, steps)
        for step in range(steps):
            time.sleep(self._scenario.seconds / steps)
            if monitor is not None:
                monitor.step_complete("Building engine", step)
        if monitor is not None:
            monitor.phase_finish("Building engine")


class Parser:
    """OnnxParser."""

    native = "OnnxParser"

    def __init__(self, module: Module, network: Network, logger: Any) -> None:
        self._module, self._network, self._logger = module, network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        """Number of errors."""
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        """Return an error."""
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        """Read the network; like the real one, take what is no ONNX file for an empty network."""
        try:
            self._network.onnx = Path(model).read_bytes()
            graph = onnx.load_from_string(self._network.onnx).graph
        except Exception:
            return True
        for index, node in enumerate(graph.node):
            if node.domain == "" and not onnx.defs.has(node.op_type):
                self._refuse(index, node)
                return False
        self._fill(graph)
        return True

    def _refuse(self, index: int, node: onnx.NodeProto) -> None:
        codes = self._module.real("ErrorCode").__members__
        kind = codes.get("INVALID_NODE", codes["UNSUPPORTED_NODE"])
        text = "Plugin not found, are the plugin name, version, and namespace correct?"
        self._errors.append(ParserError(kind, text, index, node))
        log(self._module, self._logger, "ERROR", f"While parsing node number {index}")

    def _fill(self, graph: onnx.GraphProto) -> None:
        network = self._network
        network.quantised = any(node.op_type == "QuantizeLinear" for node in graph.node)
        network.types = {
            onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer
        }
        weights = {tensor.name for tensor in graph.initializer}
        network.inputs = [self._tensor(item) for item in graph.input if item.name not in weights]
        network.outputs = [self._tensor(item) for item in graph.output]

    def _tensor(self, item: onnx.ValueInfoProto) -> Tensor:
        kind = item.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim]
        name = {"FLOAT16": "HALF"}.get(name := onnx.TensorProto.DataType.Name(kind.elem_type), name)
        dtype = self._module.real("DataType").__members__[name]
        return Tensor(item.name, self._module.real("Dims")(tuple(sizes)), dtype)


def log(module: Module, logger: Any, severity: str, message: str) -> None:
    """Write to the logger that was given, as TensorRT does."""
    logger.log(module.real("ILogger").Severity.__members__[severity], message)


def _fault(network: Network, config: Config) -> str | None:
    """Return the rule that a build breaks."""
    precisions = config.flags & {"FP16", "INT8", "BF16"}
    on_dla = config.default_device_type is not None and config.default_device_type.name == "DLA"
    dynamic = any(-1 in tuple(tensor.shape) for tensor in network.inputs)
    faults = {
        "Network must have at least one output": not network.outputs,
        "Implicit batch networks are not read from ONNX": not network.explicit_batch,
        "no optimization profile has been defined": dynamic and not config.profiles,
        "precision flags are not allowed with strong typing": network.typed and bool(precisions),
        "FP16 weights need BuilderFlag.FP16": not network.typed
        and "FLOAT16" in network.types
        and "FP16" not in precisions,
        "Q/DQ nodes need BuilderFlag.INT8": not network.typed
        and network.quantised
        and "INT8" not in precisions,
        "the DLA needs one static batch": on_dla and not _is_static(config),
        "the DLA needs GPU_FALLBACK for its other layers": on_dla
        and "GPU_FALLBACK" not in config.flags,
    }
    return next((text for text, broken in faults.items() if broken), None)


def _is_static(config: Config) -> bool:
    shapes = [shape for profile in config.profiles for shape in profile.shapes.values()]
    return len(shapes) == 1 and all(low == opt == high for low, opt, high in shapes)


def make_module(real: Any, record: Record, scenario: Scenario) -> Module:
    """Return a double of TensorRT over the real bindings of a version."""
    building = Building(scenario)
    building.module = Module(real, building.behaviours(), building.functions(), record)
    return building.module
