"""The plans of a bundle as a cache: one that serves is taken, else one process builds it.

A plan is written beside its place, renamed, and only then described by its sidecar; so whatever
ends a build, and whenever, leaves the old plan, the new one, or none, and never a wrong one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

from engines.build_messages import Built
from engines.errors import EngineError
from kernels.files import replacing
from runtime.errors import PlanError
from runtime.plan_fit import difference
from runtime.plans import (
    Damaged,
    Plan,
    PlanKey,
    Sidecar,
    load_sidecar,
    plan_file,
    plan_folders,
    plan_name,
    plans_of,
)

Make = Callable[[Path], Built]
"""Builds a plan into the file it is given."""

Say = Callable[[str], None]

PARTIAL = ".partial"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """A plan of a bundle, to be found or built."""

    bundle_folder: Path
    stage: str
    key: PlanKey

    @property
    def name(self) -> str:
        """As people call it, ``saver.fp16``."""
        return plan_name(self.stage, self.key)

    @property
    def file(self) -> str:
        """Name of the plan file."""
        return plan_file(self.stage, self.key)


class Found(NamedTuple):
    """A plan that serves; or none, and why the nearest one does not (None where there is none)."""

    plan: Plan | None
    reason: str | None


class Outcome(NamedTuple):
    """A plan that serves, and how it came about."""

    plan: Plan
    status: Literal["up to date", "built", "built meanwhile"]
    warnings: tuple[str, ...] = ()


class Policy(NamedTuple):
    """What may be done: build at all, build even where a plan serves."""

    build: bool = True
    force: bool = False


USUAL = Policy()


def look_up(wanted: Wanted) -> Found:
    """Find a plan that serves, its content checked."""
    reasons = []
    for plan in plans_of(wanted.bundle_folder):
        if isinstance(plan, Damaged):
            if plan.sidecar_path.stem == Path(wanted.file).stem:
                reasons.append(("", f"its sidecar is damaged ({plan.reason})"))
        elif plan.name == wanted.name:
            reason = difference(plan.key, wanted.key) or _damage(plan)
            if reason is None:
                return Found(plan, None)
            reasons.append((plan.sidecar.built, reason))
    return Found(None, max(reasons)[1] if reasons else None)


def obtain(wanted: Wanted, make: Make, say: Say, *, policy: Policy = USUAL) -> Outcome:
    """Return a plan that serves, building it if need be.

    Of several processes that want the same plan one builds, and the others wait for it.

    Parameters
    ----------
    say
        Told, in a line, why a plan is built anew or what is waited for.

    Raises
    ------
    EngineError
        When ``make`` fails, no folder can be written, or nothing serves and nothing may be built.
    OSError
        When the plan cannot be written; names it.
    """
    if not policy.force:
        found = look_up(wanted)
        if found.plan:
            return Outcome(found.plan, "up to date")
        if not policy.build:
            raise EngineError(_not_built(wanted, found.reason))
        if found.reason:
            say(f"plan {wanted.name}: {found.reason}: rebuilding")
    folder = writable_folder(wanted.bundle_folder)
    with locked(folder, wanted.name, say) as waited:
        found = look_up(wanted) if waited else Found(None, None)
        if found.plan:
            return Outcome(found.plan, "built meanwhile")
        _sweep(folder, wanted)
        return _build(folder, wanted, make)


def writable_folder(bundle_folder: Path) -> Path:
    """Return the first of a bundle's plan folders that can be written, made if need be.

    Raises
    ------
    EngineError
        When there is none.
    """
    problems = []
    for folder in plan_folders(bundle_folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
    raise EngineError(
        f"plans can be written nowhere: {'; '.join(problems)}. "
        "Name a folder that can be written: XDG_CACHE_HOME=/path"
    )


@contextlib.contextmanager
def locked(folder: Path, name: str, say: Say) -> Iterator[bool]:
    """Let one process at a time build a plan of that name; yields whether it had to wait.

    The lock is the kernel's, so it ends with its process, however that ends.
    """
    with lock_file(folder, name).open("ab") as file:
        waited = not try_lock(file.fileno())
        if waited:
            say(f"plan {name}: another process is building it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield waited


def lock_file(folder: Path, name: str) -> Path:
    """Return the file whose lock guards the plans of a name; it stays, empty."""
    return folder / f".{name}.lock"


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file, if it is free, and return whether it was."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _damage(plan: Plan) -> str | None:
    try:
        plan.check()
    except PlanError as error:
        return f"damaged ({str(error).removeprefix(f'plan {plan.name}: ')})"
    return None


def _not_built(wanted: Wanted, reason: str | None) -> str:
    why = reason or f"not in {' or '.join(map(str, plan_folders(wanted.bundle_folder)))}"
    return f"plan {wanted.name}: {why}. Build it: leave --no-build out."


def _sweep(folder: Path, wanted: Wanted) -> None:
    """Remove what builds of this plan left that were killed; the lock is held."""
    for path in folder.glob(f".{Path(wanted.file).stem}.*"):
        path.unlink(missing_ok=True)


def _build(folder: Path, wanted: Wanted, make: Make) -> Outcome:
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{wanted.file}.", suffix=PARTIAL)
    os.close(handle)
    partial = Path(name)
    try:
        answer = make(partial)
        plan = _commit(folder, wanted, partial, answer)
    finally:
        partial.unlink(missing_ok=True)
    return Outcome(plan, "built", answer.warnings)


def _commit(folder: Path, wanted: Wanted, partial: Path, answer: Built) -> Plan:
    sha256, nbytes = _settle(partial)
    sidecar = Sidecar(
        stage=wanted.stage,
        key=wanted.key,
        file=wanted.file,
        sha256=sha256,
        nbytes=nbytes,
        inputs=answer.inputs,
        outputs=answer.outputs,
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(answer.seconds, 3),
    )
    plan = Plan(folder, sidecar)
    partial.chmod(0o644)
    partial.replace(plan.path)
    # Between these two steps a sidecar of before does not match, so the plan is not used.
    with replacing(plan.sidecar_path) as stream:
        stream.write(sidecar.model_dump_json(indent=2).encode() + b"\n")
    return load_sidecar(plan.sidecar_path)


def _settle(path: Path) -> tuple[str, int]:
    """Wait until a file is on the disk, and return its sha256 and size."""
    content = hashlib.sha256()
    with path.open("r+b") as stream:
        while chunk := stream.read(_CHUNK):
            content.update(chunk)
        os.fsync(stream.fileno())
        return content.hexdigest(), stream.tell()
