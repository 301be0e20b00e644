"""The process that makes one plan, started by `engines.build_process`: TensorRT may crash it.

It needs only TensorRT and NumPy besides what every device has. It reads a `BuildRequest` from
standard input and prints answers, one JSON document a line; see `engines.build_messages`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engines.build_messages import (
    BuildRequest,
    Built,
    Expected,
    Failed,
    PhaseFinished,
    PhaseStarted,
    Progress,
    StepDone,
)
from engines.errors import EngineError
from engines.tensorrt_versions import TensorRT, load_tensorrt
from runtime.bundle import replacing
from runtime.plans import Flags, Tensor

if TYPE_CHECKING:
    import tensorrt as trt

Tell = Callable[[Progress], None]

# Without a driver, TensorRT-RTX adds this to errors of builds ahead of time, which need none.
_NO_DRIVER = "cudaError 35"
_MOST_WARNINGS = 5
_MIB = 1 << 20
_PR_SET_PDEATHSIG = 1


class Log:
    """What TensorRT logged: every error, and each warning once."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: dict[str, None] = {}

    def add(self, severity: str, message: str) -> None:
        """Take one message; ``severity`` is the name of TensorRT's."""
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self.errors.append(message.strip())
        elif severity == "WARNING":
            self.warnings[message.strip()] = None

    def last_error(self, *, ahead_of_time: bool) -> str:
        """Return TensorRT's last error."""
        relevant = [text for text in self.errors if not (ahead_of_time and _NO_DRIVER in text)]
        return (relevant or self.errors or ["it gave no reason"])[-1]


class Session(NamedTuple):
    """One TensorRT at work.

    Attributes
    ----------
    logger
        The only one of the process: TensorRT keeps the first it is given. It feeds ``log``.
    monitor
        Reports progress; None before version 10. Kept here, since TensorRT only borrows it.
    """

    tensorrt: TensorRT
    logger: trt.ILogger
    log: Log
    builder: trt.Builder
    monitor: trt.IProgressMonitor | None


def build(request: BuildRequest, tell: Tell) -> Built:
    """Build a plan and write it to ``request.output``.

    Raises
    ------
    EngineError
        When TensorRT cannot be used, or does not take the model; with its own last error.
    OSError
        When the plan cannot be written.
    """
    started = time.monotonic()
    session = open_session(request, tell)
    network = read_network(session, request)
    config = configure(session, request, network)
    plan = session.builder.build_serialized_network(network, config)
    if plan is None:
        reason = session.log.last_error(ahead_of_time=bool(request.targets))
        raise EngineError(f"{request.name}: {session.tensorrt.name} cannot build it: {reason}")
    Path(request.output).write_bytes(memoryview(plan))
    save_timing_cache(session, request, config)
    inputs, outputs = tensors(network)
    return Built(
        inputs=inputs,
        outputs=outputs,
        seconds=time.monotonic() - started,
        warnings=tuple(session.log.warnings)[-_MOST_WARNINGS:],
    )


def open_session(request: BuildRequest, tell: Tell) -> Session:
    """Start TensorRT.

    Raises
    ------
    EngineError
        When TensorRT is missing or does not start.
    """
    tensorrt = load_tensorrt(request.library)
    log = Log()
    logger = _make_logger(tensorrt.module, log)
    tensorrt.module.init_libnvinfer_plugins(logger, "")
    try:
        builder = tensorrt.module.Builder(logger)
    except (TypeError, RuntimeError) as error:
        reason = log.errors[-1] if log.errors else str(error)
        raise EngineError(
            f"{tensorrt.name} is installed but does not start: {reason}. "
            "Check the GPU and its driver: python -m runtime.doctor"
        ) from None
    has_monitor = hasattr(tensorrt.module, "IProgressMonitor")
    monitor = _make_monitor(tensorrt.module, tell) if has_monitor else None
    return Session(tensorrt, logger, log, builder, monitor)


def read_network(session: Session, request: BuildRequest) -> trt.INetworkDefinition:
    """Parse the ONNX file and check that the network is what the bundle says.

    Raises
    ------
    EngineError
        When TensorRT does not take a node (which one), or inputs or outputs differ.
    """
    tensorrt, flags = session.tensorrt, request.flags
    network = session.builder.create_network(tensorrt.network_flags(flags))
    parser = tensorrt.module.OnnxParser(network, session.logger)
    if not parser.parse_from_file(request.model):
        problems = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
        reason = "; ".join(problems[:3]) or session.log.last_error(ahead_of_time=False)
        raise EngineError(f"{request.model}: {tensorrt.name} cannot read it: {reason}")
    if network.num_inputs == 0 or network.num_outputs == 0:
        # The parser takes an empty or foreign file for an empty network.
        raise EngineError(f"{request.model}: not an ONNX model, or an empty one.")
    found_inputs = [network.get_input(i) for i in range(network.num_inputs)]
    found_outputs = [network.get_output(i) for i in range(network.num_outputs)]
    _check_tensors(request.model, "input", found_inputs, request.inputs)
    _check_tensors(request.model, "output", found_outputs, request.outputs)
    if len(found_inputs) > len(request.inputs):
        raise EngineError(
            f"{request.model}: inputs are {_names(found_inputs)}, "
            f"the bundle feeds {', '.join(item.name for item in request.inputs)}."
        )
    return network


def configure(
    session: Session, request: BuildRequest, network: trt.INetworkDefinition
) -> trt.IBuilderConfig:
    """Make the builder's configuration: flags, profiles, limits, targets.

    Raises
    ------
    EngineError
        When this TensorRT or this machine lacks something that was asked for.
    """
    tensorrt = session.tensorrt
    config = session.builder.create_builder_config()
    for name in tensorrt.builder_flags(request.form, request.flags):
        config.set_flag(tensorrt.member("BuilderFlag", name))
    for name in tensorrt.cleared_flags(request.form, request.flags):
        config.clear_flag(tensorrt.member("BuilderFlag", name))
    for name in tensorrt.preview_features():
        config.set_preview_feature(tensorrt.member("PreviewFeature", name), True)
    _set_limits(tensorrt, config, request.flags)
    _use_dla(session, config, request.flags.dla_core)
    _set_targets(tensorrt, config, request.targets)
    _add_profiles(session, config, network, request)
    _load_timing_cache(config, request.timing_cache)
    if session.monitor is not None:
        config.progress_monitor = session.monitor
    return config


def save_timing_cache(session: Session, request: BuildRequest, config: trt.IBuilderConfig) -> None:
    """Write back what was timed, so that later builds take less time; the plan does not need it."""
    if request.timing_cache is None:
        return
    content = memoryview(config.get_timing_cache().serialize())
    try:
        with replacing(Path(request.timing_cache)) as stream:
            stream.write(content)
    except OSError as error:
        session.log.add("WARNING", f"timings not kept: {request.timing_cache}: {error.strerror}")


def tensors(
    network: trt.INetworkDefinition,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Describe the inputs and outputs of a network."""
    inputs = (network.get_input(i) for i in range(network.num_inputs))
    outputs = (network.get_output(i) for i in range(network.num_outputs))
    return tuple(map(_describe_tensor, inputs)), tuple(map(_describe_tensor, outputs))


def _describe_tensor(tensor: trt.ITensor) -> Tensor:
    return Tensor(name=tensor.name, dtype=_dtype(tensor), shape=_shape(tensor))


def _shape(tensor: trt.ITensor) -> tuple[int, ...]:
    sizes = tensor.shape
    return tuple(sizes[axis] for axis in range(len(sizes)))


def _dtype(tensor: trt.ITensor) -> str:
    name: str = tensor.dtype.name
    return {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}.get(name, name.lower())


def _describe(error: Any) -> str:
    """Name the node of a parser's error; before version 10 only its number is known."""
    text = f"{error.code().name}: {error.desc()}"
    if error.node() < 0:
        return text
    name = f"node {error.node()}"
    if hasattr(error, "node_operator"):
        name += f" (operator {error.node_operator()}, name {error.node_name() or 'none'})"
    return f"{name}: {text}"


def _check_tensors(
    model: str, kind: str, found: list[trt.ITensor], expected: tuple[Expected, ...]
) -> None:
    by_name = {tensor.name: tensor for tensor in found}
    for item in expected:
        if item.name not in by_name:
            raise EngineError(
                f"{model}: {kind}s are {_names(found)}; the bundle names {item.name}."
            )
        _check_tensor(model, kind, by_name[item.name], item)


def _check_tensor(model: str, kind: str, tensor: trt.ITensor, expected: Expected) -> None:
    shape = _shape(tensor)
    if shape[:1] != (-1,):
        raise EngineError(
            f"{model}: {kind} {tensor.name} has shape {list(shape)}; expected a dynamic batch axis "
            "first. Make the bundle anew from the ONNX file: python -m engines.bundle --help"
        )
    if expected.shape is None:
        fits = -1 not in shape[1:]
        wanted = "all sizes but the batch fixed"
    else:
        fits = shape[1:] == expected.shape
        wanted = f"[-1, {', '.join(map(str, expected.shape))}] as the bundle says"
    if not fits:
        raise EngineError(
            f"{model}: {kind} {tensor.name} has shape {list(shape)}; expected {wanted}."
        )
    if expected.shape is not None and _dtype(tensor) != "float32":
        raise EngineError(
            f"{model}: {kind} {tensor.name} is {_dtype(tensor)}; every form has float32 there."
        )


def _names(found: list[trt.ITensor]) -> str:
    return ", ".join(tensor.name for tensor in found)


def _set_limits(tensorrt: TensorRT, config: trt.IBuilderConfig, flags: Flags) -> None:
    if flags.workspace_mib is not None:
        pool = tensorrt.member("MemoryPoolType", "WORKSPACE")
        config.set_memory_pool_limit(pool, flags.workspace_mib * _MIB)
    if flags.optimisation_level is not None:
        config.builder_optimization_level = flags.optimisation_level
    if flags.aux_streams is not None:
        config.max_aux_streams = flags.aux_streams
    if flags.hardware_compatible is not None:
        level = tensorrt.member("HardwareCompatibilityLevel", flags.hardware_compatible.upper())
        config.hardware_compatibility_level = level


def _use_dla(session: Session, config: trt.IBuilderConfig, core: int | None) -> None:
    if core is None:
        return
    cores = session.builder.num_DLA_cores
    if core >= cores:
        raise EngineError(f"--dla {core}: this machine has {cores} DLA core(s).")
    config.default_device_type = session.tensorrt.member("DeviceType", "DLA")
    config.DLA_core = core


def _set_targets(tensorrt: TensorRT, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = tensorrt.member("ComputeCapability", target.replace("sm_", "SM"))
        if not config.set_compute_capability(capability, index):
            raise EngineError(f"{tensorrt.name} does not build for {target}.")


def _add_profiles(
    session: Session,
    config: trt.IBuilderConfig,
    network: trt.INetworkDefinition,
    request: BuildRequest,
) -> None:
    dims = session.tensorrt.module.Dims
    for wanted in request.profiles:
        profile = session.builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            sizes = _shape(tensor)[1:]
            shapes = [dims((batch, *sizes)) for batch in (wanted.min, wanted.opt, wanted.max)]
            profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{request.name}: no profile for batch {wanted.opt}.")


def _load_timing_cache(config: trt.IBuilderConfig, path: str | None) -> None:
    if path is None:
        return
    file = Path(path)
    # What another version or GPU timed is refused and replaced: nothing is lost but time.
    kept = [file.read_bytes()] if file.is_file() else []
    for content in (*kept, b""):
        if config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False):
            return


def _make_logger(module: Any, log: Log) -> trt.ILogger:
    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(severity.name, message)

    return Logger()


def _make_monitor(module: Any, tell: Tell) -> trt.IProgressMonitor:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tell(PhaseStarted(phase=phase_name, steps=num_steps))

        def phase_finish(self, phase_name: str) -> None:
            tell(PhaseFinished(phase=phase_name))

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(StepDone(phase=phase_name, step=step))
            return True

    return Monitor()


def _die_with_parent() -> None:
    """Have Linux kill this process when the one that waits for its plan is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Answer the request on standard input."""
    _die_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # What libraries print themselves must not get between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(answer: Progress | Built | Failed) -> None:
        print(answer.model_dump_json(), file=answers, flush=True)

    request = BuildRequest.model_validate_json(sys.stdin.read())
    try:
        tell(build(request, tell))
    except EngineError as error:
        tell(Failed(message=str(error)))
    except OSError as error:
        tell(Failed(message=f"{error.filename or request.output}: {error.strerror or error}"))


if __name__ == "__main__":
    main()
