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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.build_messages import BuildRequest, Built, Failed, Progress
from engines.errors import EngineError
from engines.network import read_network, shape_of, tensors
from engines.tensorrt_session import Session, Tell, open_session
from engines.tensorrt_versions import TensorRT
from kernels.files import replacing
from runtime.plans import Flags

if TYPE_CHECKING:
    import tensorrt as trt

_MOST_WARNINGS = 5
_MIB = 1 << 20
_PR_SET_PDEATHSIG = 1


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
    # So that a plan can tell the precision of its layers, see `runtime.verify --layers`.
    config.profiling_verbosity = tensorrt.member("ProfilingVerbosity", "DETAILED")
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
            sizes = shape_of(tensor)[1:]
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
        # The file has a name that only this process knows.
        reason = f"cannot be written to {Path(request.output).parent}: {error.strerror or error}"
        tell(Failed(message=f"plan {request.name} {reason}"))


if __name__ == "__main__":
    main()
