"""The exported graph, run on the bundle's golden samples before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import EngineError
from kernels import reference
from kernels.frames import Size
from runtime.bundle import Bundle
from runtime.schema import Form, Score, Threshold
from runtime.session import HostModel, available_threads

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]

CLOSE = 0.02
"""Golden logits may differ by 0.01 from machine to machine, so two of them by twice that."""


@dataclass(frozen=True)
class Check:
    """What was compared.

    Attributes
    ----------
    samples
        Golden samples that got the label and the stage that their stored logits mean.
    skipped
        Others, too close to a threshold or to a tie to say.
    reason
        Why nothing was compared, if nothing was.
    """

    samples: int = 0
    skipped: int = 0
    reason: str | None = None

    def __str__(self) -> str:
        """Return one line."""
        if self.reason:
            return f"loads in ONNX Runtime; answers not checked, since {self.reason}"
        rest = f", {self.skipped} too close to say" if self.skipped else ""
        return f"{self.samples} golden samples get the right label and stage{rest}"


class _Expected:
    """Label and stage of each sample by the reference, and where they are beyond doubt."""

    def __init__(self, samples: int) -> None:
        self.label = np.zeros(samples, np.int64)
        self.stage = np.zeros(samples, np.int64)
        self.clear = np.ones(samples, np.bool_)


def check_golden(
    path: Path,
    model: bytes,
    bundle: Bundle,
    forms: tuple[Form, ...],
    thresholds: tuple[Threshold, ...],
    *,
    size: Size,
) -> Check:
    """Run a serialised cascade in ONNX Runtime; compare with what the stored logits mean.

    Parameters
    ----------
    path
        Where it will be written; for messages only.

    Raises
    ------
    BundleError
        When ONNX Runtime cannot load it.
    EngineError
        When a sample gets another label or stage.
    """
    session = HostModel(path, threads=available_threads(), content=model)
    golden, spec = bundle.spec.golden, bundle.spec
    scores = [gate.score for gate in spec.gates]
    if golden is None:
        return Check(reason="the bundle has no golden samples")
    if any(score.name == "learned" for score in scores):
        return Check(reason="golden samples do not hold the scores of learned gates")
    names = [f"logits/{stage.name}/{form}" for stage, form in zip(spec.stages, forms, strict=True)]
    with np.load(bundle.verified(golden.file, golden.sha256), allow_pickle=False) as stored:
        missing = [name for name in names if name not in stored]
        if missing or stored["frames"].shape[1:3] != size:
            lacking = ", ".join(missing) or f"frames of {size[0]}x{size[1]}"
            return Check(reason=f"golden samples lack {lacking}")
        frames, logits = stored["frames"], [stored[name] for name in names]
    if spec.weighted is not None:
        # Divided, so that it is as close to the logits of another machine as any other.
        added, weight = spec.weighted
        logits[-1] = (logits[-1] + weight * logits[added]) / (1 + weight)
    return _compare(path, session, frames, _expected(logits, scores, thresholds))


def _compare(path: Path, session: HostModel, frames: Floats, expected: _Expected) -> Check:
    batch = session.inputs["frames"][0]
    rows = len(frames) // batch * batch if isinstance(batch, int) else len(frames)
    step = batch if isinstance(batch, int) else max(1, rows)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        found = session.run({"frames": frames[part]})
        same = (found["label"] == expected.label[part]) & (found["stage"] == expected.stage[part])
        wrong = np.flatnonzero(expected.clear[part] & ~same)
        if len(wrong):
            row = start + wrong[0]
            raise EngineError(
                f"{path}: not written: the exported graph answers golden sample {row} with label "
                f"{found['label'][wrong[0]]} of stage {found['stage'][wrong[0]]}, expected "
                f"{expected.label[row]} of stage {expected.stage[row]}. Please report this."
            )
    clear = int(expected.clear[:rows].sum())
    return Check(samples=clear, skipped=rows - clear)


def _expected(
    logits: Sequence[Floats], scores: Sequence[Score], thresholds: Sequence[Threshold]
) -> _Expected:
    expected = _Expected(len(logits[0]))
    rows = np.arange(len(logits[0]))
    for index, block in enumerate(logits):
        facts = reference.softmax(block[rows])
        expected.label[rows], expected.stage[rows] = facts.label, index
        if index == len(scores):
            expected.clear[rows] &= ~_is_tie(block[rows])
            break
        kept, close = _gate(block[rows], scores[index], thresholds[index])
        expected.clear[rows] &= ~close & ~(kept & _is_tie(block[rows]))
        rows = rows[~kept]
    return expected


def _gate(logits: Floats, score: Score, threshold: Threshold) -> tuple[Flags, Flags]:
    """Return which rows a gate keeps, and for which another machine might decide otherwise."""
    facts = reference.softmax(logits, score.temperature)
    limits = np.asarray(threshold, np.float32)
    limit = limits[facts.label] if limits.ndim else limits
    if score.name == "max_softmax":
        return reference.accept(facts.total, limit), np.abs(facts.total * limit - 1) < CLOSE
    values = reference.score(
        logits, score.name, temperature=score.temperature, p=2.0 if score.p is None else score.p
    )
    return (values > limit) & ~np.isnan(facts.total), np.abs(values - limit) < CLOSE


def _is_tie(logits: Floats) -> Flags:
    if logits.shape[1] < 2:
        return np.zeros(len(logits), np.bool_)
    top = np.partition(logits, -2, axis=1)[:, -2:]
    return np.asarray(~(top[:, 1] - top[:, 0] >= CLOSE))
