"""Which device runs a cascade: the CPU through ONNX Runtime, or a GPU through TensorRT."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.bundle import Bundle
from runtime.driver import DriverError, ask_driver
from runtime.errors import BundleError, DeviceError, InputError, PlanError, TensorRTError
from runtime.schema import Form
from runtime.session import available_threads

if TYPE_CHECKING:
    from runtime.cascade import Executor
    from runtime.gpu import Mode
    from runtime.plans import Library

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
        How engines are launched, see `runtime.gpu`; None chooses.
    library
        TensorRT, or TensorRT-RTX.
    host_code
        Allow plans with code for the host, as version-compatible ones: only for plans of your own.
    """

    mode: Mode | None = None
    library: Library = "tensorrt"
    host_code: bool = False


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
    if kind == "cuda" or (kind == "auto" and _has_gpu() and _fits(forms, GPU_FORMS)):
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


def _open_gpu(
    bundle: Bundle, index: int, forms: Sequence[Form] | None, *, batch: int, gpu: GpuOptions
) -> tuple[Executor, tuple[Form, ...]]:
    from runtime.cuda import CudaDevice
    from runtime.gpu import GpuExecutor

    chosen = _choose(bundle, forms, GPU_FORMS, GPU_FORMS, "a GPU")
    device = CudaDevice(index)
    try:
        executor = GpuExecutor(
            bundle,
            chosen,
            device,
            batch=batch,
            mode=gpu.mode,
            library=gpu.library,
            host_code=gpu.host_code,
        )
    except BaseException:
        device.close()
        raise
    return executor, chosen


def _parse(device: str) -> tuple[str, int]:
    match = _NAME.fullmatch(device)
    if match is None or (match["index"] and match["kind"] != "cuda"):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:1, got {device!r}.")
    return match["kind"], int(match["index"] or 0)


def _has_gpu() -> bool:
    try:
        return bool(ask_driver().gpus)
    except DriverError:
        return False


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
