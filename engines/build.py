"""Build a bundle's plans on the device that runs them: ``python -m engines.build --help``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from engines.build_jobs import Job, Order, jobs
from engines.build_messages import Built
from engines.build_process import run_build
from engines.build_progress import Display
from engines.errors import EngineError
from engines.plan_store import Outcome, Policy, obtain, writable_folder
from engines.tensorrt_versions import (
    FORMS,
    TensorRT,
    load_tensorrt,
    refuse_flags,
    resolve_targets,
)
from kernels.reference import DEFAULT_BUCKETS
from runtime.bundle import load_bundle
from runtime.driver import DriverError, board
from runtime.plans import Flags, Machine, Profile, bucket_profiles, this_machine
from runtime.schema import Form, digest
from runtime.terminal import Command


@dataclass(frozen=True)
class Request:
    """The command line."""

    bundle: Path
    forms: tuple[Form, ...]
    stages: tuple[str, ...]
    targets: tuple[str, ...]
    buckets: tuple[int, ...] | None
    max_batch: int
    dla_core: int | None
    tf32: bool
    workspace_mib: int | None
    optimisation_level: int | None
    aux_streams: int | None
    version_compatible: bool
    hardware_compatible: Any
    timing_cache: Path | None
    no_timing_cache: bool
    no_build: bool
    force: bool
    as_json: bool

    def profiles(self) -> tuple[Profile, ...]:
        """Return one profile per bucket."""
        usual = [size for size in DEFAULT_BUCKETS if size <= self.max_batch]
        if self.buckets is None and usual[-1] < self.max_batch:
            usual.append(self.max_batch)
        return bucket_profiles(self.buckets or usual)

    def flags(self) -> Flags:
        """Return what else decides the plans."""
        return Flags(
            tf32=self.tf32,
            workspace_mib=self.workspace_mib,
            optimisation_level=self.optimisation_level,
            aux_streams=self.aux_streams,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
            dla_core=self.dla_core,
        )

    def order(self, tensorrt: TensorRT) -> Order:
        """Return what to build, refusing what this TensorRT or machine cannot do."""
        flags = self.flags()
        for form in self.forms:
            refuse_flags(tensorrt, form, flags, board=board())
        targets = resolve_targets(tensorrt, self.targets)
        return Order(
            forms=tuple(dict.fromkeys(self.forms)),
            stages=self.stages,
            machine=_machine(tensorrt, ahead_of_time=bool(targets)),
            targets=targets,
            profiles=self.profiles(),
            flags=flags,
        )

    def timing_cache_for(self, machine: Machine) -> Path | None:
        """Return the file that keeps timings; TensorRT-RTX times nothing when it builds."""
        if self.no_timing_cache or machine.library == "tensorrt_rtx":
            return None
        own = f"timings.{digest(machine)[:12]}.cache"
        return self.timing_cache or writable_folder(self.bundle) / own


def _sizes(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Read ascending batch sizes, joined by commas."""
    if value is None:
        return None
    try:
        sizes = tuple(int(part) for part in value.split(","))
        bucket_profiles(sizes)
    except ValueError:
        raise click.BadParameter(
            f"expected ascending batch sizes from 1 on, as 1,4,16; got {value!r}"
        ) from None
    return sizes


@click.command(
    cls=Command,
    epilog="Example: python -m engines.build zoo/fashion --form fp16 --max-batch 64. "
    "Without a GPU: python -m engines.build zoo/fashion --form fp16 --target sm_89",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--form",
    "forms",
    type=click.Choice(FORMS),
    multiple=True,
    required=True,
    help="Form of the models to build from; repeatable.",
)
@click.option("--stage", "stages", multiple=True, help="Only this stage; repeatable.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="rtx|sm_NN",
    help="Build ahead of time by TensorRT-RTX, for this architecture; repeatable. rtx: all from "
    "Ampere on. Not for Jetson. [default: by TensorRT, for the GPU of this machine]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Largest bucket; those below are 1, 2, 4, 8 and so on. More rows run in several rounds.",
)
@click.option(
    "--buckets",
    callback=_sizes,
    metavar="1,4,16",
    help="These batch sizes in place of --max-batch; each costs build time and size.",
)
@click.option(
    "--dla",
    "dla_core",
    type=click.IntRange(0),
    help="Build for this DLA core: form fp16, one plan per bucket, not for launch mode graph. "
    "JetPack 6, or AGX Orin with TensorRT 11.4.1.",
)
@click.option("--tf32", is_flag=True, help="Let fp32 plans round products to TF32.")
@click.option(
    "--workspace",
    "workspace_mib",
    type=click.IntRange(1),
    metavar="MIB",
    help="Most scratch memory that a layer may use. [default: all of the GPU's]",
)
@click.option(
    "--optimisation-level",
    type=click.IntRange(0, 5),
    help="0 builds fastest, 5 runs fastest. [default: TensorRT's, 3]",
)
@click.option(
    "--aux-streams",
    type=click.IntRange(0),
    help="Most streams beside the main one; each costs memory. [default: TensorRT's choice]",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Later TensorRT of this major and the next run the plan (8 to 10, 10 to 11). It is larger "
    "and may be slower, and loading it runs code from it. Not for TensorRT-RTX.",
)
@click.option(
    "--hardware-compatible",
    type=click.Choice(["same_compute_capability", "ampere_plus"]),
    help="Other GPUs run the plan, more slowly: of the same compute capability, or all from "
    "Ampere on. Not on Jetson, not for TensorRT-RTX.",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keeps what was timed, to shorten later builds. [default: beside the plans]",
)
@click.option("--no-timing-cache", is_flag=True, help="Time everything, and keep nothing.")
@click.option("--no-build", is_flag=True, help="Only say whether the plans are there and fit.")
@click.option("--force", is_flag=True, help="Build even what is there and fits.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def main(ctx: click.Context, /, **options: Any) -> None:
    """Build TensorRT plans of BUNDLE's models, on the device that will run them.

    A plan that is there and fits is not built again: it lies in the folder plans of the bundle, or
    in the user's cache folder where that cannot be written. The precision is that of the models'
    form; nothing is quantised or calibrated here.
    """
    request = Request(**options)
    bundle = load_bundle(request.bundle)
    tensorrt = load_tensorrt("tensorrt_rtx" if request.targets else "tensorrt")
    order = request.order(tensorrt)
    todo, done = list(jobs(bundle, order)), []
    for job in todo:
        try:
            started = time.monotonic()
            outcome = _obtain(job, request)
        except KeyboardInterrupt:
            _say(f"plan {job.wanted.name}: interrupted, not built; nothing was changed")
            ctx.exit(130)
        done.append((outcome, time.monotonic() - started))
    if request.as_json:
        click.echo(json.dumps(_summary(done), indent=2))
    else:
        Console().print(_table(done))


def _machine(tensorrt: TensorRT, *, ahead_of_time: bool) -> Machine:
    if ahead_of_time:
        return Machine(library=tensorrt.library, version=tensorrt.version)
    try:
        return this_machine(tensorrt.library, tensorrt.version)
    except DriverError as error:
        raise EngineError(
            f"{error} Plans are built on the device that runs them; without a GPU only for RTX "
            "cards: --target rtx"
        ) from None


def _obtain(job: Job, request: Request) -> Outcome:
    policy = Policy(build=not request.no_build, force=request.force)
    outcome = obtain(job.wanted, _maker(job, request), _say, policy=policy)
    for warning in outcome.warnings:
        _say(f"plan {job.wanted.name}: TensorRT warns: {warning}")
    return outcome


def _maker(job: Job, request: Request) -> Callable[[Path], Built]:
    def make(partial: Path) -> Built:
        wanted = job.wanted
        timings = request.timing_cache_for(wanted.key.machine)
        sizes = ", ".join(str(profile.opt) for profile in wanted.key.profiles)
        _say(f"plan {wanted.name}: building for batches {sizes}")
        with Display(wanted.name) as display:
            return run_build(job.request(partial, timings), display)

    return make


def _say(line: str) -> None:
    click.echo(line, err=True)


def _summary(done: list[tuple[Outcome, float]]) -> list[dict[str, Any]]:
    return [
        {
            "plan": outcome.plan.name,
            "status": outcome.status,
            "seconds": round(seconds, 4),
            "path": str(outcome.plan.path),
            "nbytes": outcome.plan.sidecar.nbytes,
        }
        for outcome, seconds in done
    ]


def _table(done: list[tuple[Outcome, float]]) -> Table:
    table = Table()
    for column in ("plan", "status", "time", "size"):
        table.add_column(column, justify="right" if column in ("time", "size") else "left")
    table.add_column("file", overflow="fold")
    for outcome, seconds in done:
        plan = outcome.plan
        time_taken = f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"
        size = f"{plan.sidecar.nbytes / 1e6:.1f} MB"
        table.add_row(plan.name, outcome.status, time_taken, size, str(plan.path))
    return table


if __name__ == "__main__":
    main(prog_name="python -m engines.build")
