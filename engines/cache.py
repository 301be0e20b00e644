"""The plans of a bundle on this machine: ``python -m engines.cache --help``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from engines.errors import EngineError
from engines.plan_store import lock_file, try_lock
from engines.tensorrt_versions import load_tensorrt
from runtime.bundle import Bundle, load_bundle
from runtime.driver import DriverError
from runtime.errors import BundleError, PlanError
from runtime.plan_fit import misfit
from runtime.plans import (
    LIBRARY_NAMES,
    Damaged,
    Library,
    Machine,
    Plan,
    model_digest,
    plan_folders,
    plans_of,
    this_machine,
)
from runtime.terminal import Command

Status = Literal["usable", "elsewhere", "unknown", "stale", "damaged", "leftover", "timings"]
"""``elsewhere``: not on this machine; ``unknown``: this machine has no TensorRT or GPU to tell;
``stale``: of another model than the bundle's; ``leftover``: of a build that was killed;
``timings``: not a plan, but what TensorRT measured to build them."""

USELESS: frozenset[Status] = frozenset({"stale", "damaged", "leftover"})


@dataclass(frozen=True)
class Entry:
    """A plan, or what is left of one, and what it is worth here.

    Attributes
    ----------
    files
        All that belongs to it.
    nbytes
        Their size.
    reason
        In words, why it has this status.
    """

    name: str
    status: Status
    reason: str | None
    files: tuple[Path, ...]
    nbytes: int
    plan: Plan | None = None


def entries(bundle: Bundle) -> list[Entry]:
    """Return everything in the plan folders of a bundle, plans' contents checked."""
    machines = {library: _machine(library) for library in LIBRARY_NAMES}
    found = []
    for item in plans_of(bundle.folder):
        if isinstance(item, Damaged):
            files = (item.sidecar_path, item.sidecar_path.with_suffix(".plan"))
            found.append(_entry(item.sidecar_path.stem, "damaged", item.reason, *files))
        else:
            status, reason = _judge(bundle, item, machines[item.key.machine.library])
            found.append(_entry(item.name, status, reason, item.path, item.sidecar_path, plan=item))
    known = {path for entry in found for path in entry.files}
    found.extend(_other_files(bundle.folder, known))
    return found


def _entry(
    name: str, status: Status, reason: str | None, *files: Path, plan: Plan | None = None
) -> Entry:
    nbytes = sum(path.stat().st_size for path in files if path.exists())
    return Entry(name, status, reason, files, nbytes, plan)


def _judge(bundle: Bundle, plan: Plan, machine: Machine | str) -> tuple[Status, str | None]:
    try:
        plan.check()
    except PlanError as error:
        return "damaged", str(error).removeprefix(f"plan {plan.name}: ")
    stale = _staleness(bundle, plan)
    if stale:
        return "stale", stale
    if isinstance(machine, str):
        return "unknown", machine
    reason = misfit(plan.key, machine)
    return ("elsewhere", reason) if reason else ("usable", None)


def _staleness(bundle: Bundle, plan: Plan) -> str | None:
    names = [stage.name for stage in bundle.spec.stages]
    if plan.sidecar.stage not in names:
        return f"the bundle has no stage {plan.sidecar.stage}"
    try:
        model = model_digest(bundle, names.index(plan.sidecar.stage), plan.key.form)
    except BundleError as error:
        return str(error)
    return None if model == plan.key.model_sha256 else "the bundle has another model now"


def _machine(library: Library) -> Machine | str:
    """Describe this machine, or say why plans of a library cannot run on it."""
    try:
        return this_machine(library, load_tensorrt(library).version)
    except (EngineError, DriverError) as error:
        return str(error).partition(". ")[0]


def _other_files(bundle_folder: Path, known: set[Path]) -> Iterator[Entry]:
    for folder in plan_folders(bundle_folder):
        for path in sorted(folder.glob("*.plan")):
            if path not in known:
                yield _entry(path.stem, "leftover", "a plan without its sidecar", path)
        for path in sorted(folder.glob(".*.*")):
            if path.suffix != ".lock":
                yield _entry(path.name, "leftover", "of a build that was killed", path)
        for path in sorted(folder.glob("timings.*")):
            yield _entry(path.name, "timings", None, path)


def remove(entry: Entry) -> bool:
    """Remove an entry's files, unless a process is building there; return whether it did.

    The sidecar goes first, so that a plan without one is the worst that can be left.
    """
    name = entry.plan.name if entry.plan else _plan_name(entry.files[0])
    with lock_file(entry.files[0].parent, name).open("ab") as lock:
        if not try_lock(lock.fileno()):
            return False
        for path in sorted(entry.files, key=lambda path: path.suffix != ".json"):
            path.unlink(missing_ok=True)
    return True


def _plan_name(path: Path) -> str:
    """Return the plan's name in a file name ``[.]<name>.<key>.plan[...]``."""
    parts = path.name.removeprefix(".").split(".")
    ends = [index for index, part in enumerate(parts) if part in ("plan", "json")]
    return ".".join(parts[: ends[0] - 1]) if ends else path.name


@click.group(
    epilog="Example: python -m engines.cache list zoo/fashion",
)
def main() -> None:
    """Look after the TensorRT plans of a bundle: in its folder plans, or in the user's cache."""


_bundle = click.argument("bundle", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@main.command("list", cls=Command, epilog="Example: python -m engines.cache list zoo/fashion")
@_bundle
@_json
def list_plans(bundle: Path, as_json: bool) -> None:
    """Show each plan of BUNDLE, what it was built for, and whether it is usable here."""
    _show(entries(load_bundle(bundle)), as_json=as_json)


@main.command(cls=Command, epilog="Example: python -m engines.cache verify zoo/fashion")
@_bundle
@_json
def verify(bundle: Path, as_json: bool) -> None:
    """Check every plan of BUNDLE against its sidecar; exit with 1 if one is damaged."""
    found = entries(load_bundle(bundle))
    _show(found, as_json=as_json)
    damaged = [entry.name for entry in found if entry.status == "damaged"]
    if damaged:
        raise EngineError(
            f"damaged: {', '.join(damaged)}. They are not used; remove them: "
            f"python -m engines.cache prune {bundle}"
        )


@main.command(cls=Command, epilog="Example: python -m engines.cache prune zoo/fashion --elsewhere")
@_bundle
@click.option("--elsewhere", is_flag=True, help="Also plans that do not run on this machine.")
@click.option("--all", "everything", is_flag=True, help="All plans of the bundle, and timings.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@_json
def prune(bundle: Path, elsewhere: bool, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove damaged plans, plans of other models, and leftovers of killed builds."""
    useless = USELESS | ({"elsewhere"} if elsewhere else set())
    found = entries(load_bundle(bundle))
    chosen = [entry for entry in found if everything or entry.status in useless]
    removed = chosen if dry_run else [entry for entry in chosen if remove(entry)]
    _show(removed, as_json=as_json)
    click.echo(f"{'would remove' if dry_run else 'removed'}: {len(removed)}", err=True)
    for entry in chosen:
        if entry not in removed:
            click.echo(f"plan {entry.name}: being built by another process, kept", err=True)


def _show(found: list[Entry], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_summary(entry) for entry in found], indent=2))
    else:
        click.echo("\n".join(map(_line, found)) or "none")


def _summary(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "status": entry.status,
        "reason": entry.reason,
        "files": [str(path) for path in entry.files],
        "nbytes": entry.nbytes,
        "key": entry.plan.key.model_dump(mode="json") if entry.plan else None,
    }


def _line(entry: Entry) -> str:
    size = f"{entry.nbytes / 1e6:.1f} MB"
    head = f"{entry.name}: {entry.status}{f' ({entry.reason})' if entry.reason else ''}"
    built = f"{_built_for(entry.plan)}, " if entry.plan else ""
    return f"{head}\n  {built}{size}, {entry.files[0]}"


def _built_for(plan: Plan) -> str:
    key, machine = plan.key, plan.key.machine
    place = ", ".join(key.targets) or f"{machine.gpu} ({machine.architecture}, CUDA {machine.cuda})"
    batches = ", ".join(str(profile.opt) for profile in key.profiles)
    return f"{LIBRARY_NAMES[machine.library]} {machine.version} for {place}, batches {batches}"


if __name__ == "__main__":
    main(prog_name="python -m engines.cache")
