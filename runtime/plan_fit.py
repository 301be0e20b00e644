"""Whether a plan fits a machine, or what a build asks for; and the search for one that does."""

from __future__ import annotations

from pathlib import Path

from runtime.bundle import Bundle
from runtime.errors import PlanError
from runtime.plans import (
    LIBRARY_NAMES,
    Machine,
    Plan,
    PlanKey,
    Profile,
    model_digest,
    plan_folders,
    plans_of,
    version_numbers,
)
from runtime.schema import Form

# A version-compatible plan is run by later versions of its own major, and by the next major.
_NEXT_MAJOR = {8: 10, 10: 11}


def misfit(key: PlanKey, machine: Machine) -> str | None:
    """Return in words why a plan does not run on a machine; None when it does."""
    reason = _other_library(key, machine)
    if reason:
        return reason
    there, anywhere = key.machine, key.flags.version_compatible
    if key.targets:
        if machine.architecture in key.targets:
            return None
        return f"{_built(key)}, this is {machine.architecture}"
    if not _architecture_fits(key, machine):
        return f"{_built(key)}, this is {machine.architecture}"
    if there.cuda != machine.cuda and not anywhere:
        return f"built with CUDA {there.cuda}, this is {machine.cuda}"
    if there.gpu != machine.gpu and key.flags.hardware_compatible is None:
        return f"built on {there.gpu}, this is {machine.gpu}"
    return None


def difference(found: PlanKey, wanted: PlanKey) -> str | None:
    """Return in words why a plan does not serve where another key is wanted; None when it does."""
    if found.targets or wanted.targets:
        machine = _other_library(found, wanted.machine) or _other_targets(found, wanted)
    else:
        machine = misfit(found, wanted.machine)
    return machine or _other_model(found, wanted) or _other_request(found, wanted)


def find_plans(
    bundle: Bundle, stage: int, form: Form, machine: Machine, *, dla_core: int | None = None
) -> tuple[Plan, ...]:
    """Return the newest plan of a stage that runs on a machine; for a DLA core, one per batch size.

    Raises
    ------
    PlanError
        When there is none; says why the others do not fit, and the command that builds it.
    """
    name = bundle.spec.stages[stage].name
    model = model_digest(bundle, stage, form)
    fitting: dict[tuple[Profile, ...], Plan] = {}
    reasons = []
    for plan in _plans_for(bundle.folder, name, form, dla_core):
        reason = misfit(plan.key, machine)
        if reason is None and plan.key.model_sha256 != model:
            reason = f"built from another model ({plan.key.model_sha256[:12]}...)"
        if reason:
            reasons.append(reason)
        else:
            fitting[plan.key.profiles if dla_core is not None else ()] = plan
    if not fitting:
        place = _options(machine, dla_core)
        raise PlanError(_missing(bundle.folder, f"{name}.{form}", reasons, f"{form}{place}"))
    return tuple(sorted(fitting.values(), key=lambda plan: plan.key.profiles[-1].max))


def _plans_for(folder: Path, stage: str, form: Form, dla_core: int | None) -> list[Plan]:
    found = [
        plan
        for plan in plans_of(folder)
        if isinstance(plan, Plan)
        and (plan.sidecar.stage, plan.key.form) == (stage, form)
        and plan.key.flags.dla_core == dla_core
    ]
    return sorted(found, key=lambda plan: plan.sidecar.built)


def _options(machine: Machine, dla_core: int | None) -> str:
    target = f" --target {machine.architecture}" if machine.library == "tensorrt_rtx" else ""
    return target if dla_core is None else f" --dla {dla_core}"


def _missing(folder: Path, name: str, reasons: list[str], form: str) -> str:
    why = reasons[-1] if reasons else f"not in {' or '.join(map(str, plan_folders(folder)))}"
    return (
        f"plan {name}: {why}. "
        f"Build it for this machine: python -m engines.build {folder} --form {form}"
    )


def _built(key: PlanKey) -> str:
    there = key.machine
    place = ", ".join(key.targets) or there.architecture
    return f"built by {LIBRARY_NAMES[there.library]} {there.version} for {place}"


def _other_library(key: PlanKey, machine: Machine) -> str | None:
    there = key.machine
    if there.library != machine.library:
        return f"{_built(key)}, this is {LIBRARY_NAMES[machine.library]} {machine.version}"
    if there.version == machine.version:
        return None
    if key.flags.version_compatible and _runs_later(there.version, machine.version):
        return None
    return f"{_built(key)}, this is {machine.version}"


def _runs_later(built: str, runs: str) -> bool:
    before, now = version_numbers(built), version_numbers(runs)
    return before < now and now[0] in (before[0], _NEXT_MAJOR.get(before[0]))


def _architecture_fits(key: PlanKey, machine: Machine) -> bool:
    if key.flags.hardware_compatible == "ampere_plus":
        return machine.architecture is not None and int(machine.architecture[3:]) >= 80
    return key.machine.architecture == machine.architecture


def _other_targets(found: PlanKey, wanted: PlanKey) -> str | None:
    if found.targets == wanted.targets:
        return None
    asked = ", ".join(wanted.targets) or f"{wanted.machine.architecture} itself"
    return f"{_built(found)}, this asks for {asked}"


def _other_model(found: PlanKey, wanted: PlanKey) -> str | None:
    if found.model_sha256 == wanted.model_sha256:
        return None
    return (
        f"built from another model (sha256 {found.model_sha256[:12]}..., "
        f"the bundle has {wanted.model_sha256[:12]}...)"
    )


def _other_request(found: PlanKey, wanted: PlanKey) -> str | None:
    if found.profiles != wanted.profiles:
        return f"built for batches {_batches(found)}, this asks for {_batches(wanted)}"
    before, now = found.flags.model_dump(), wanted.flags.model_dump()
    changed = [name for name in before if before[name] != now[name]]
    if not changed:
        return None
    built, asked = (
        ", ".join(f"{name} {flags[name]}" for name in changed) for flags in (before, now)
    )
    return f"built with {built}, this asks for {asked}"


def _batches(key: PlanKey) -> str:
    return ", ".join(str(profile.opt) for profile in key.profiles)
