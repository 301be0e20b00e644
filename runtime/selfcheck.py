"""Whether a GPU computes what the reference, the golden samples and the engines' logits say.

It runs once for each combination of plans, driver, GPU and kernels; the result is kept in the
user's cache folder. A kernel or a plan that fails is refused, and so is launch mode ``host``, which
all else falls back to; another launch mode that fails is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pydantic

from kernels import reference
from kernels.cubins import user_cache
from kernels.files import write_whole
from kernels.sources import load_source, module_names
from runtime.bundle import Bundle
from runtime.cuda import CudaDevice
from runtime.devices import Opened
from runtime.errors import DeviceError, GraphError, PlanError, TensorRTError
from runtime.golden import GOLDEN_TOLERANCE, Golden, load_golden
from runtime.gpu import GpuExecutor
from runtime.gpu_modes import Mode
from runtime.kernel_check import check_kernels
from runtime.schema import Schema, Score

FORMAT: Final = "tinysaver.verified/1"

Frames = npt.NDArray[np.uint8]
Logits = Sequence[npt.NDArray[np.float32]]

_ANY_SIDE = 48  # of frames, where a bundle takes any size
_UNSURE = 1e-3  # scores below this may be 0 on the device, which no threshold accepts


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
        return f"{self.kind} {self.name}: {self.measure} {self.worst:.3g}, allowed {self.allowed:g}"


class Absent(NamedTuple):
    """A launch mode that cannot be had here, and why: no failure."""

    name: Mode
    reason: str


class Verdict(Schema):
    """What is kept of a self-check, format ``tinysaver.verified/1``."""

    format: Literal["tinysaver.verified/1"] = FORMAT
    gpu: str
    driver: str
    failed_modes: dict[Mode, str]


def run_checks(opened: Opened) -> Iterator[Check | Absent]:
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
        parts = _parts(opened.bundle, golden, executor.batch)
        logits = _logits(executor, parts)
        yield _check_mode("host", executor, parts, logits, opened)
    for mode in get_args(Mode)[1:]:
        try:
            executor = opened.executor(mode)
        except (GraphError, TensorRTError) as error:
            if mode != "graph":
                raise
            yield Absent(mode, str(error))
            continue
        with closing(executor):
            yield _check_mode(mode, executor, parts, logits, opened)


def failed_modes(opened: Opened) -> dict[Mode, str]:
    """Return the launch modes that failed and why, from the last self-check or a new one.

    Raises
    ------
    DeviceError
        When a kernel fails, or mode ``host``.
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
        if isinstance(check, Absent) or check.passed:
            continue
        if check.kind == "mode" and check.name != "host":
            failed[check.name] = str(check)  # type: ignore[index]
            continue
        error = PlanError if check.kind == "plan" else DeviceError
        raise error(
            f"{device.gpu.name}: the self-check failed: {check}. Report it with the output of: "
            "python -m runtime.verify BUNDLE --device cuda --json"
        )
    _save(path, Verdict(gpu=device.gpu.name, driver=_version(device), failed_modes=failed))
    return failed


def _check_plans(golden: Golden, executor: GpuExecutor) -> Iterator[Check]:
    batch = executor.batch
    parts = [golden.frames[k : k + batch] for k in range(0, len(golden.frames), batch)]
    worst = golden.worst(_logits(executor, parts))
    for plan, form, difference in zip(executor.plans, golden.forms, worst, strict=True):
        name = plan.engine.name
        yield Check("plan", name, "golden logits differ by", difference, GOLDEN_TOLERANCE[form])


def _check_mode(
    mode: Mode, executor: GpuExecutor, parts: Sequence[Frames], logits: Logits, opened: Opened
) -> Check:
    """Hold a mode's answers against the logits, where frames stop at each stage in turn."""
    stages = len(executor.plans)
    slacks = [2 * GOLDEN_TOLERANCE[form] for form in opened.forms]
    if opened.bundle.spec.weighted is not None:
        added, weight = opened.bundle.spec.weighted
        logits = [*logits[:-1], logits[-1] + np.float32(weight) * logits[added]]
        slacks[-1] += weight * slacks[added]
    frames = sum(map(len, parts))
    goal = np.arange(frames) % stages
    label, stage = _answers(executor, parts, goal)
    wrong = stage != goal
    # Engines may round otherwise at another batch size, so near ties may fall either way.
    for number, (values, slack) in enumerate(zip(logits, slacks, strict=True)):
        here = (goal == number) & (stage == goal)
        valid = here & (label >= 0) & (label < values.shape[1])
        found = values[valid, label[valid]]
        wrong |= here & ~valid
        wrong[valid] |= ~(found >= values[valid].max(1) - slack)
        if number < stages - 1:
            wrong &= ~((goal == number) & _is_unsure(values, executor.plans[number].score))
    return Check("mode", mode, f"wrong of {frames} answers:", int(wrong.sum()), 0)


def _is_unsure(logits: npt.NDArray[np.float32], score: Score) -> npt.NDArray[np.bool_]:
    """Return the rows that a gate may send on though its threshold is 0."""
    if score.name in ("max_softmax", "learned"):
        return np.zeros(len(logits), bool)
    p = 2.0 if score.p is None else score.p
    values = reference.score(logits, score.name, temperature=score.temperature, p=p)
    unsure: npt.NDArray[np.bool_] = values < _UNSURE
    return unsure


def _parts(bundle: Bundle, golden: Golden | None, batch: int) -> list[Frames]:
    """Return batches of several sizes, of frames that differ: golden ones under noise, or noise."""
    sizes = (batch, batch // 2 + 1, 1)
    rng = np.random.default_rng(0)
    count = sum(sizes)
    if golden is None:
        height, width, channels = bundle.spec.input.shape
        shape = (count, height or _ANY_SIDE, width or _ANY_SIDE, channels)
        frames = rng.integers(0, 256, shape, np.uint8)
    else:
        some = golden.frames[np.arange(count) % len(golden.frames)].astype(np.int16)
        frames = np.clip(some + rng.integers(-40, 41, some.shape, np.int16), 0, 255).astype(
            np.uint8
        )
    return np.split(frames, np.cumsum(sizes)[:-1])


def _logits(executor: GpuExecutor, parts: Sequence[Frames]) -> list[npt.NDArray[np.float32]]:
    """Return the logits of each stage for all frames."""
    found = [executor.stage_logits(part) for part in parts]
    return [np.concatenate(stage) for stage in zip(*found, strict=True)]


def _answers(
    executor: GpuExecutor, parts: Sequence[Frames], goal: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Return labels and stages where each frame is sent on to its goal, two batches at a time."""
    gates = len(executor.plans) - 1
    force = (goal > np.arange(gates)[:, None]).astype(np.uint8)
    label, stage = np.full(len(goal), -1, np.int32), np.full(len(goal), -1, np.int8)
    confidence = np.empty(len(goal), np.float32)
    tickets, start = [], 0
    for frames in parts:
        part = slice(start, start + len(frames))
        out = (label[part], confidence[part], stage[part])
        tickets.append(executor.submit(frames, [0.0] * gates, out, force=force[:, part]))
        start = part.stop
    for ticket in tickets:
        ticket.wait()
    return label, stage


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
    with suppress(OSError):  # a read-only device checks at every start
        write_whole(path, verdict.model_dump_json(indent=2).encode() + b"\n")
