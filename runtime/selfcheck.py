"""Whether a GPU computes what the reference, the golden samples and the other launch modes say.

It runs once for each combination of plans, driver, GPU and kernels; the result is kept in the
user's cache folder. A kernel or a plan that fails is refused; a launch mode that fails is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pydantic

from kernels.cubins import user_cache
from kernels.sources import load_source, module_names
from runtime.bundle import Bundle, replacing
from runtime.cuda import CudaDevice
from runtime.devices import Opened
from runtime.errors import DeviceError, GraphError, PlanError
from runtime.golden import GOLDEN_TOLERANCE, Golden, load_golden
from runtime.gpu import GpuExecutor, Mode
from runtime.kernel_check import check_kernels
from runtime.schema import Schema

FORMAT: Final = "tinysaver.verified/1"

_FRAMES = 200
_DIFFERENT_ANSWERS = 0.01  # engines may round differently at other batch sizes


class Check(NamedTuple):
    """One comparison: what was found and what is allowed, as ``measure`` says."""

    kind: Literal["kernel", "plan", "mode"]
    name: str
    measure: str
    worst: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it holds; NaN does not."""
        return self.worst <= self.allowed

    def __str__(self) -> str:
        """Return it in a line."""
        relation = "within" if self.passed else "expected at most"
        return (
            f"{self.kind} {self.name}: {self.measure} {self.worst:.3g}, {relation} {self.allowed:g}"
        )


class Verdict(Schema):
    """What is kept of a self-check, format ``tinysaver.verified/1``."""

    format: Literal["tinysaver.verified/1"] = FORMAT
    gpu: str
    driver: str
    failed_modes: dict[Mode, str]


def run_checks(opened: Opened) -> Iterator[Check]:
    """Run all checks, the cheapest first.

    Raises
    ------
    DeviceError, TensorRTError
        When something cannot even run.
    """
    for kernel in check_kernels(opened.device):
        yield Check("kernel", kernel.name, f"wrong of {kernel.of}:", kernel.wrong, 0)
    golden = load_golden(opened.bundle, opened.forms)
    with closing(opened.executor("host")) as executor:
        if golden is not None:
            yield from _check_plans(golden, executor)
        frames = _frames(opened.bundle, golden, executor.batch)
        expected = _answers(executor, frames)
    for mode in get_args(Mode)[1:]:
        try:
            with closing(opened.executor(mode)) as executor:
                different = float((_answers(executor, frames) != expected).any(0).mean())
        except GraphError:
            continue  # this driver has no such mode
        yield Check("mode", mode, "share of answers unlike host's:", different, _DIFFERENT_ANSWERS)


def failed_modes(opened: Opened) -> dict[Mode, str]:
    """Return the launch modes that failed and why, from the last self-check or a new one.

    Raises
    ------
    DeviceError
        When a kernel fails.
    PlanError
        When a plan fails on the golden samples.
    """
    device = opened.device
    path = _record(opened)
    kept = _load(path)
    if kept is not None:
        return kept.failed_modes
    failed: dict[Mode, str] = {}
    for check in run_checks(opened):
        if check.passed:
            continue
        if check.kind == "mode":
            failed[check.name] = str(check)  # type: ignore[index]
            continue
        error = DeviceError if check.kind == "kernel" else PlanError
        raise error(
            f"{device.gpu.name}: the self-check failed: {check}. Report it with the output of: "
            "python -m runtime.verify BUNDLE --device cuda --json"
        )
    _save(path, Verdict(gpu=device.gpu.name, driver=_version(device), failed_modes=failed))
    return failed


def _check_plans(golden: Golden, executor: GpuExecutor) -> Iterator[Check]:
    frames = golden.frames[: executor.batch]
    worst = golden.worst(executor.stage_logits(frames))
    for plan, form, difference in zip(executor.plans, golden.forms, worst, strict=True):
        name = plan.engine.name
        yield Check("plan", name, "golden logits differ by", difference, GOLDEN_TOLERANCE[form])


def _frames(bundle: Bundle, golden: Golden | None, batch: int) -> npt.NDArray[np.uint8]:
    """Return frames that differ: golden samples under noise, or noise alone."""
    rng = np.random.default_rng(0)
    rows = min(_FRAMES, batch)
    if golden is None:
        height, width, channels = bundle.spec.input.shape
        shape = (rows, height or 48, width or 48, channels)
        return rng.integers(0, 256, shape, np.uint8)
    frames = golden.frames[np.arange(rows) % len(golden.frames)].astype(np.int16)
    noise = rng.integers(-40, 41, frames.shape, np.int16)
    noisy: npt.NDArray[np.uint8] = np.clip(frames + noise, 0, 255).astype(np.uint8)
    return noisy


def _answers(executor: GpuExecutor, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Return labels and stages, i32 [2, n], at thresholds that send about half of the frames on."""
    rows = len(frames)
    label, stage = np.empty(rows, np.int32), np.empty(rows, np.int8)
    out = (label, np.empty(rows, np.float32), stage)
    gates = len(executor.plans) - 1
    force = (np.arange(rows) % 2 == np.zeros((gates, 1), int)).astype(np.uint8)
    executor.submit(frames, [0.0] * gates, out, force=force).wait()
    return np.stack([label, stage.astype(np.int32)])


def _record(opened: Opened) -> Path | None:
    """Return where the verdict on this combination is kept; None where there is no home."""
    cache, device = user_cache(), opened.device
    plans = [plan.sidecar.sha256 for plan in opened.plans]
    sources = [load_source(module).sha256 for module in module_names()]
    key = json.dumps([device.gpu.name, _version(device), *sources, *plans])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    return None if cache is None else cache.parent / "verified" / name


def _version(device: CudaDevice) -> str:
    return ".".join(map(str, device.driver_version))


def _load(path: Path | None) -> Verdict | None:
    if path is None:
        return None
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError):
        return None  # not there, or of another version: the check runs again


def _save(path: Path | None, verdict: Verdict) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(verdict.model_dump_json(indent=2).encode() + b"\n")
    except OSError:
        pass  # a read-only device checks at every start
