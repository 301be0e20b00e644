"""A bundle: whether it can be used here, and which of its plans fit this machine.

Imports of what needs NumPy and pydantic stand in functions: the doctor must start without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from runtime.doctor_checks import Examination, Finding
from runtime.errors import BundleError, TinysaverError

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.plans import Damaged, Machine, Plan


def open_bundle(folder: Path | None) -> Bundle | Finding | None:
    """Return a bundle whose models have the content that it describes, or what is wrong with it."""
    if folder is None:
        return None
    try:
        from runtime.bundle import load_bundle

        bundle = load_bundle(folder)
        for index, stage in enumerate(bundle.spec.stages):
            for form in stage.forms:
                bundle.model(index, form)
        return bundle
    except (BundleError, OSError) as error:
        fix = "Copy the bundle again, or make it anew: tinysaver search --help"
        return Finding("bundle", "problem", f"{folder} cannot be used", str(error), fix)
    except ImportError as error:
        fix = "Mend what is said of Python above"
        return Finding("bundle", "problem", f"{folder} cannot be read", str(error), fix)


def check_bundle(examination: Examination) -> Iterator[Finding]:
    """Tell stages, forms and thresholds of the bundle."""
    if isinstance(examination.bundle, Finding):
        yield examination.bundle
    if not is_open(examination.bundle):
        return
    spec, folder = examination.bundle.spec, examination.bundle.folder
    forms = dict.fromkeys(form for stage in spec.stages for form in stage.forms)
    stages = " -> ".join(stage.name for stage in spec.stages)
    text = f"{spec.name} in {folder}: {stages}; forms {', '.join(forms)}"
    facts = {
        "name": spec.name,
        "folder": str(folder),
        "stages": [stage.name for stage in spec.stages],
        "forms": list(forms),
        "settings": list(spec.settings),
    }
    if spec.settings:
        yield Finding("bundle", "ok", text, facts=facts)
        return
    cause = "it has no thresholds for any of its forms, so it cannot run"
    fix = "Choose them: tinysaver threshold --help"
    yield Finding("bundle", "problem", text, cause, fix, facts)


def is_open(bundle: object) -> TypeGuard[Bundle]:
    """Return whether a bundle is named and could be opened."""
    return bundle is not None and not isinstance(bundle, Finding)


def check_plans(examination: Examination) -> Iterator[Finding]:
    """Tell which plans of a bundle fit this machine, and which form lacks one.

    Without a TensorRT that starts, all that can be said is that they are not used.
    """
    from runtime.plans import Plan, plans_of

    bundle = examination.bundle
    if not is_open(bundle):
        return
    machines = list(_machines(examination))
    plans = list(plans_of(bundle.folder))
    if not machines:
        if plans:
            yield Finding("plans", "absent", f"{len(plans)}, not used without TensorRT and a GPU")
        return
    fitting: set[str] = set()
    for plan in plans:
        finding = _check_plan(plan, machines, bundle)
        if finding.status == "ok" and isinstance(plan, Plan):
            fitting.add(plan.sidecar.stage)
        yield finding
    yield from _missing_plans(bundle, fitting)


def _machines(examination: Examination) -> Iterator[Machine]:
    """Yield this machine as each TensorRT sees it."""
    from runtime.plans import Machine

    answers = examination.answers
    if not examination.has_gpu:
        return
    gpu = answers["driver"].facts["gpus"][0]
    board = (examination.system.text("proc/device-tree/model") or "").rstrip("\0\n")
    for library in ("tensorrt", "tensorrt_rtx"):
        facts = answers[library].facts
        if facts and not facts["runtime_error"]:
            yield Machine(
                library=library,
                version=facts["version"],
                cuda=answers["driver"].facts["cuda"],
                gpu=f"{gpu['name']} ({board})" if board else gpu["name"],
                architecture=gpu["architecture"],
            )


def _check_plan(plan: Plan | Damaged, machines: list[Machine], bundle: Bundle) -> Finding:
    from runtime.plan_fit import misfit
    from runtime.plans import Damaged, model_digest

    rebuild = f"python -m engines.build {bundle.folder}"
    if isinstance(plan, Damaged):
        name = f"plan {plan.sidecar_path.stem}"
        prune = f"python -m engines.cache prune {bundle.folder}"
        return Finding(name, "warning", "damaged, so it is not used", plan.reason, prune)
    name, form = f"plan {plan.name}", plan.key.form
    rebuild = f"{rebuild} --form {form}"
    facts = {"file": str(plan.path), "stage": plan.sidecar.stage, "form": form}
    reasons = [misfit(plan.key, machine) for machine in machines]
    reason = None if None in reasons else reasons[0]
    try:
        plan.check()
        names = [stage.name for stage in bundle.spec.stages]
        stage = names.index(plan.sidecar.stage)
        if reason is None and model_digest(bundle, stage, form) != plan.key.model_sha256:
            reason = "built from another model than the bundle has"
    except (TinysaverError, ValueError) as error:
        return Finding(name, "warning", "damaged, so it is not used", str(error), rebuild, facts)
    if reason:
        return Finding(name, "warning", "does not fit, so it is not used", reason, rebuild, facts)
    built = f"built {plan.sidecar.built[:10]}, {plan.sidecar.nbytes / 2**20:.1f} MiB"
    return Finding(name, "ok", built, facts=facts)


def _missing_plans(bundle: Bundle, fitting: set[str]) -> Iterator[Finding]:
    """Warn of stages without a plan."""
    stages = [stage.name for stage in bundle.spec.stages]
    lacking = [stage for stage in stages if stage not in fitting]
    if lacking:
        yield Finding(
            "plans",
            "warning",
            f"none that fits for {', '.join(lacking)}",
            cause="TensorRT runs plans that were built on this machine",
            fix=f"python -m engines.build {bundle.folder} --form {_best_form(bundle)}",
        )


def _best_form(bundle: Bundle) -> str:
    """Return the form to build that every stage has: fp16 where there is one."""
    forms = [set(stage.forms) for stage in bundle.spec.stages]
    return "fp16" if all("fp16" in have for have in forms) else "fp32"
