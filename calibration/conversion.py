"""All models of a bundle into their other forms: one pass over images, then form by form."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from calibration.combinations import Combination, choose_thresholds, combinations
from calibration.comparison import GateRule, Logits
from calibration.errors import CalibrationError
from calibration.forms import Made, StageForms
from calibration.installation import Addition
from calibration.npz import read_npz
from calibration.provenance import Digests, ProvenanceMeta, load_provenance, save_digests
from calibration.quantisation import MadeForm, Recipe
from calibration.recorded import Claim
from calibration.samples import Samples
from runtime.bundle import Bundle
from runtime.host import HostExecutor
from runtime.schema import Form


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes
    ----------
    calibrating, measuring
        Images that give ranges, and those on which the budget must hold.
    claim, size
        What is to be certified later, from how many samples: thresholds are forecast for that.
    cache
        Folder of histograms.
    """

    calibrating: Samples
    measuring: Samples
    forms: tuple[MadeForm, ...]
    recipe: Recipe
    claim: Claim
    size: int
    cache: Path


@dataclass(frozen=True)
class StageOutcome:
    """One stage and the forms that were made of it.

    Attributes
    ----------
    cached, seconds
        Whether the histograms were there already, and how long they took.
    """

    forms: StageForms
    cached: bool
    seconds: float
    made: dict[MadeForm, Made]

    def logits(self, form: Form) -> Logits:
        """Return the logits of a form, or of FP32, for the samples that forms are measured on."""
        return self.forms.reference if form == "fp32" else self.made[form].logits


@dataclass(frozen=True)
class Converted:
    """All stages, and the combinations of forms that pay."""

    bundle: Bundle
    plan: Plan
    stages: tuple[StageOutcome, ...]
    combinations: tuple[Combination, ...]


def convert(bundle: Bundle, plan: Plan, progress: Progress) -> Converted:
    """Make and measure the forms of all stages, and forecast thresholds; nothing is written.

    Raises
    ------
    CalibrationError
        When the images do not serve, or an activation is not finite.
    BundleError
        When a model does not fit ``cascade.json``.
    EngineError
        When a model cannot be quantised.
    """
    stages = [
        StageForms(bundle, index, plan.measuring, plan.recipe, gate=_gate(bundle, index))
        for index in range(len(bundle.spec.stages))
    ]
    # After the models were read, which names an unknown operator's node, as ONNX Runtime does not.
    _check_models(bundle)
    found = [_calibrated(stage, plan, progress) for stage in stages]
    _check_classes(plan.measuring, stages[-1].reference)
    outcomes = [
        StageOutcome(stage, cached, seconds, _made(stage, plan, progress))
        for stage, (cached, seconds) in zip(stages, found, strict=True)
    ]
    return Converted(
        bundle, plan, tuple(outcomes), tuple(_combinations(bundle, plan, outcomes, progress))
    )


def _check_models(bundle: Bundle) -> None:
    forms: list[Form] = ["fp32"] * len(bundle.spec.stages)
    HostExecutor(bundle, forms, batch=1, threads=1).close()


def addition(converted: Converted) -> Addition:
    """Return what a bundle gets from a conversion: the forms that succeeded, and what they need."""
    result = Addition(
        provenance=_provenance(converted),
        settings={item.key: item.setting for item in converted.combinations},
    )
    frames = _golden_frames(converted.bundle)
    for outcome in converted.stages:
        for form, made in outcome.made.items():
            if made.success and made.content is not None:
                key = (outcome.forms.spec.name, form)
                result.models[key] = made.content
                if frames is not None:
                    result.golden[key] = outcome.forms.run_frames(made, frames)
    return result


def _calibrated(stage: StageForms, plan: Plan, progress: Progress) -> tuple[bool, float]:
    """Make a stage's histograms and FP32 logits; return whether they were cached, and seconds."""
    name = stage.spec.name
    task = progress.add_task(f"{name}: histograms", total=len(plan.calibrating))
    begin = perf_counter()
    cached = stage.calibrate(plan.calibrating, plan.cache, lambda n: progress.advance(task, n))
    seconds = perf_counter() - begin
    task = progress.add_task(f"{name}: FP32", total=len(plan.measuring))
    stage.measure_reference(lambda n: progress.advance(task, n))
    return cached, seconds


def _made(stage: StageForms, plan: Plan, progress: Progress) -> dict[MadeForm, Made]:
    made = {}
    for form in plan.forms:
        # How many networks are measured is known only at the end.
        task = progress.add_task(f"{stage.spec.name}: {form}", total=None)
        made[form] = stage.make(form, lambda task=task: progress.advance(task))  # type: ignore[misc]
        progress.update(task, total=1, completed=1)
    return made


def _combinations(
    bundle: Bundle, plan: Plan, outcomes: Sequence[StageOutcome], progress: Progress
) -> list[Combination]:
    chosen = combinations([outcome.made for outcome in outcomes])
    task = progress.add_task("thresholds", total=len(chosen))
    found = []
    for forms in chosen:
        logits = [o.logits(form) for o, form in zip(outcomes, forms, strict=True)]
        found.append(
            choose_thresholds(
                bundle.spec, forms, logits, plan.measuring.labels, plan.claim, size=plan.size
            )
        )
        progress.advance(task)
    return found


def _gate(bundle: Bundle, index: int) -> GateRule | None:
    """Return the gate after a stage with its threshold in the FP32 setting, if that is a number."""
    spec = bundle.spec
    setting = spec.settings.get("/".join(["fp32"] * len(spec.stages)))
    if index >= len(spec.gates) or setting is None:
        return None
    score, threshold = spec.gates[index].score, setting.thresholds[index]
    if isinstance(threshold, list) or score.name == "learned":
        return None
    return GateRule(score, threshold)


def _check_classes(samples: Samples, logits: Logits) -> None:
    answers = np.unique(logits.argmax(1))
    if samples.labels is None and len(answers) == 1:
        raise CalibrationError(
            f"{samples.name}: the large model gives all {len(samples)} images one class "
            f"({answers[0]}); ranges would fit only that. Pass images of all classes."
        )


def _golden_frames(bundle: Bundle) -> npt.NDArray[np.uint8] | None:
    golden = bundle.spec.golden
    if golden is None:
        return None
    return read_npz(bundle.verified(golden.file, golden.sha256), ("frames",))["frames"]


def _provenance(converted: Converted) -> bytes:
    """Return the provenance file of all images that had a say, but for known selection data."""
    plan, bundle = converted.plan, converted.bundle
    known = [
        load_provenance(bundle.verified(entry.file, entry.sha256)).digests
        for entry in bundle.spec.provenance
        if entry.purpose == "selection"
    ]
    measuring = plan.measuring.digests
    new: Digests = measuring[~np.isin(measuring, np.concatenate(known))] if known else measuring
    meta = ProvenanceMeta(
        purpose="ranges",
        description=f"{plan.calibrating.name}, {len(plan.calibrating)} samples",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranges.npz"
        save_digests(path, np.concatenate([plan.calibrating.digests, new]), meta)
        return path.read_bytes()
