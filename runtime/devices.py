"""Which device runs a cascade: the CPU through ONNX Runtime, or a GPU through TensorRT."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from runtime.bundle import Bundle
from runtime.driver import DriverError, NoDriverError, ask_driver
from runtime.errors import (
    BundleError,
    DeviceError,
    GraphError,
    InputError,
    PlanError,
    TensorRTError,
)
from runtime.plan_fit import find_plans
from runtime.plans import Plan, this_machine
from runtime.schema import Form
from runtime.session import available_threads

if TYPE_CHECKING:
    from runtime.cascade import Executor
    from runtime.cuda import CudaDevice
    from runtime.gpu import GpuExecutor
    from runtime.gpu_modes import Mode
    from runtime.plans import Library
    from runtime.tensorrt_engine import EngineOptions

log = logging.getLogger(__name__)

HOST_FORMS: tuple[Form, ...] = ("fp32", "int8_host")
GPU_FORMS: tuple[Form, ...] = ("fp16", "int8_trt", "fp32")
"""Those that a device can run; the first that a bundle has for all its stages is the default."""

_NAME = re.compile(r"(?P<kind>auto|cpu|cuda)(?::(?P<index>[0-9]+))?")


@dataclass(frozen=True)
class GpuOptions:
    """What only concerns a GPU.

    Attributes
    ----------
    mode
        How engines are launched, see `runtime.gpu_modes`; None chooses.
    library
        TensorRT, or TensorRT-RTX.
    host_code
        Allow plans with code for the host, as version-compatible ones: only for plans of your own.
    verify
        Check kernels, plans and modes the first time that they meet this GPU and driver.
    profile_layers
        Let TensorRT time each layer: slower, and not in mode ``graph``; see
        `runtime.gpu.GpuExecutor.take_layer_times`.
    nvtx
        Name batches, stages and TensorRT's layers for Nsight Systems.
    """

    mode: Mode | None = None
    library: Library = "tensorrt"
    host_code: bool = False
    verify: bool = True
    profile_layers: bool = False
    nvtx: bool = False


def open_executor(
    bundle: Bundle,
    device: str,
    forms: Sequence[Form] | None,
    *,
    batch: int,
    threads: int | None,
    gpu: GpuOptions,
) -> tuple[Executor, tuple[Form, ...]]:
    """Return what runs a bundle on a device, and the form of each stage that it runs.

    Raises
    ------
    InputError
        When there is no such device, or forms do not fit it.
    BundleError, DeviceError, PlanError, TensorRTError
        When it cannot be used; with ``auto``, only where the CPU cannot either.
    """
    kind, index = _parse(device)
    if expects_gpu(device, forms):
        try:
            return _open_gpu(bundle, index, forms, batch=batch, gpu=gpu)
        except (BundleError, DeviceError, PlanError, TensorRTError) as error:
            if kind == "cuda":
                raise
            log.warning("The GPU is not used: %s The cascade runs on the CPU.", error)
    from runtime.host import HostExecutor

    chosen = _choose(bundle, forms, HOST_FORMS, ("fp32",), "the CPU")
    executor = HostExecutor(bundle, chosen, batch=batch, threads=threads or available_threads())
    return executor, chosen


def expects_gpu(device: str, forms: Sequence[Form] | None) -> bool:
    """Return whether a cascade would run on a GPU, if nothing is wrong with it.

    Raises
    ------
    InputError
        When there is no device of that name.
    """
    kind, _ = _parse(device)
    return kind == "cuda" or (kind == "auto" and _fits(forms, GPU_FORMS) and _has_gpu())


@dataclass(frozen=True)
class Opened:
    """A GPU, and a bundle that can run on it.

    Attributes
    ----------
    plans
        One per stage.
    options
        How engines are run where nobody profiles them.
    """

    bundle: Bundle
    forms: tuple[Form, ...]
    plans: tuple[Plan, ...]
    device: CudaDevice
    options: EngineOptions
    batch: int

    def executor(
        self, mode: Mode | None = None, options: EngineOptions | None = None
    ) -> GpuExecutor:
        """Return an executor in a launch mode; None chooses one."""
        from runtime.gpu import GpuExecutor

        return GpuExecutor(
            self.bundle,
            self.plans,
            self.device,
            batch=self.batch,
            mode=mode,
            options=options or self.options,
        )


@contextmanager
def open_gpu(
    bundle: Bundle, device: str, forms: Sequence[Form] | None, *, batch: int, gpu: GpuOptions
) -> Iterator[Opened]:
    """Open a GPU for a bundle, and close it again.

    Raises
    ------
    InputError, BundleError, DeviceError, PlanError, TensorRTError
        When it cannot be used.
    """
    opened = _prepare(bundle, _parse(device)[1], forms, batch=batch, gpu=gpu)
    try:
        yield opened
    finally:
        opened.device.close()


def parse_forms(text: str) -> tuple[Form, ...]:
    """Return the forms of stages that a command line joins by slashes.

    Raises
    ------
    InputError
        When one is no form.
    """
    names = text.split("/")
    known = get_args(Form)
    if not set(names) <= set(known):
        raise InputError(
            f"--forms: expected one of {', '.join(known)} for each stage, joined by '/', "
            f"got {text!r}."
        )
    return tuple(form for name in names for form in known if form == name)


def _open_gpu(
    bundle: Bundle, index: int, forms: Sequence[Form] | None, *, batch: int, gpu: GpuOptions
) -> tuple[Executor, tuple[Form, ...]]:
    from runtime.selfcheck import failed_modes

    opened = _prepare(bundle, index, forms, batch=batch, gpu=gpu)
    try:
        failed = failed_modes(opened) if gpu.verify else {}
        if gpu.mode in failed:
            raise DeviceError(
                f"{opened.device.gpu.name}: the self-check failed: {failed[gpu.mode]}. "
                "Use another mode."
            )
        watched = replace(opened.options, profile_layers=gpu.profile_layers, nvtx=gpu.nvtx)
        if gpu.mode is None and "graph" in failed:
            executor = opened.executor("host", watched)
            executor.mode_reason = f"the self-check failed: {failed['graph']}"
        else:
            executor = opened.executor(gpu.mode, watched)
        executor.closes_device = True
        return executor, opened.forms
    except GraphError as error:
        opened.device.close()
        raise GraphError(
            f"{opened.device.gpu.name}: launch mode graph is not possible: {error}. "
            "Use mode host, or leave the choice to the program."
        ) from None
    except BaseException:
        opened.device.close()
        raise


def _prepare(
    bundle: Bundle, index: int, forms: Sequence[Form] | None, *, batch: int, gpu: GpuOptions
) -> Opened:
    from runtime.cuda import CudaDevice
    from runtime.tensorrt_engine import EngineOptions, tensorrt_runtime

    chosen = _choose(bundle, forms, GPU_FORMS, GPU_FORMS, "a GPU")
    device = CudaDevice(index)
    try:
        machine = this_machine(gpu.library, tensorrt_runtime(gpu.library).version, device=index)
        plans = tuple(find_plans(bundle, k, form, machine)[0] for k, form in enumerate(chosen))
    except BaseException:
        device.close()
        raise

    return Opened(bundle, chosen, plans, device, EngineOptions(gpu.host_code), batch)


def _parse(device: str) -> tuple[str, int]:
    match = _NAME.fullmatch(device)
    if match is None or (match["index"] and match["kind"] != "cuda"):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:1, got {device!r}.")
    return match["kind"], int(match["index"] or 0)


def _has_gpu() -> bool:
    try:
        return bool(ask_driver().gpus)
    except NoDriverError:
        return False
    except DriverError:
        return True  # which then says what is wrong with it


def _fits(forms: Sequence[Form] | None, possible: tuple[Form, ...]) -> bool:
    return forms is None or set(forms) <= set(possible)


def _choose(
    bundle: Bundle,
    forms: Sequence[Form] | None,
    possible: tuple[Form, ...],
    preferred: tuple[Form, ...],
    where: str,
) -> tuple[Form, ...]:
    stages = len(bundle.spec.stages)
    if forms is None:
        uniform = [(form,) * stages for form in preferred]
        known = [forms for forms in uniform if "/".join(forms) in bundle.spec.settings]
        return (known or uniform)[0]
    if len(forms) != stages or not _fits(forms, possible):
        raise InputError(
            f"forms: expected {stages}, one per stage, each of {', '.join(possible)} "
            f"on {where}, got {list(forms)}."
        )
    return tuple(forms)
