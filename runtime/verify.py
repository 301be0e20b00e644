"""``python -m runtime.verify``: whether this GPU runs a bundle as it should."""

from __future__ import annotations

import json
import math
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape

from kernels.files import replacing
from runtime.bundle import demo_folder, load_bundle
from runtime.device_options import HOST_CODE, LIBRARY
from runtime.devices import GpuOptions, Opened, open_gpu, parse_forms
from runtime.driver import is_emulated
from runtime.environment import refuse_foreign_packages
from runtime.errors import InputError
from runtime.selfcheck import Absent, Check, run_checks
from runtime.tensorrt_engine import Engine, EngineOptions, tensorrt_runtime
from runtime.terminal import Command

FORMAT: Final = "tinysaver.verify/1"


@click.command(cls=Command)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--device", default="cuda", show_default=True, help="cuda, or cuda:1.")
@click.option(
    "--batch", default=32, show_default=True, type=click.IntRange(1), help="Frames at once."
)
@click.option(
    "--forms", help="Form of each stage, as fp16/fp16.  [default: the bundle's for a GPU]"
)
@LIBRARY
@HOST_CODE
@click.option(
    "--layers",
    type=click.Path(path_type=Path),
    help="Write what TensorRT's inspector says of each plan's layers, their precision, to a file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def main(bundle: Path | None, **options: Any) -> None:
    """Check kernels, plans and launch modes of BUNDLE on a GPU.

    Every kernel runs against its float64 reference, every plan on the bundle's golden samples, and
    every launch mode against the plans' logits. The exit status is 1 when something fails. Cascades
    do this by themselves the first time that they meet a combination of plans, driver and GPU.

    \b
    Examples
      python -m engines.build zoo/fashion --form fp16
      python -m runtime.verify zoo/fashion --device cuda
    """
    refuse_foreign_packages()
    gpu = GpuOptions(
        library=options.pop("library"), host_code=options.pop("host_code"), verify=False
    )
    sys.exit(verify(Request(bundle=bundle or demo_folder(), gpu=gpu, **options)))


@dataclass(frozen=True)
class Request:
    """The command line."""

    bundle: Path
    device: str
    batch: int
    forms: str | None
    gpu: GpuOptions
    layers: Path | None
    as_json: bool

    def open(self) -> AbstractContextManager[Opened]:
        """Open the GPU for the bundle."""
        if not self.device.startswith("cuda"):
            raise InputError(f"--device: expected cuda or cuda:1, got {self.device!r}.")
        forms = parse_forms(self.forms) if self.forms else None
        bundle = load_bundle(self.bundle)
        return open_gpu(bundle, self.device, forms, batch=self.batch, gpu=self.gpu)


def verify(request: Request) -> int:
    """Run all checks and show them; return the exit status."""
    console = Console(stderr=request.as_json)
    checks: list[Check | Absent] = []
    with request.open() as opened:
        report = _heading(opened)
        _show_heading(console, report)
        for check in run_checks(opened):
            checks.append(check)
            _show(console, check)
        if request.layers is not None:
            _write_layers(opened, request.layers, EngineOptions(request.gpu.host_code))
    report |= _outcome(checks)
    console.print(f"{report['passed']} passed, {report['failed']} failed")
    if request.as_json:
        print(json.dumps(report, indent=2, allow_nan=False))
    return 1 if report["failed"] else 0


def _heading(opened: Opened) -> dict[str, Any]:
    """Return what is checked."""
    gpu, machine = opened.device.gpu, opened.plans[0].key.machine
    runtime = tensorrt_runtime(machine.library)
    return {
        "format": FORMAT,
        "bundle": opened.bundle.spec.name,
        "forms": list(opened.forms),
        "golden": opened.bundle.spec.golden is not None,
        "plans": {plan.name: plan.sidecar.sha256 for plan in opened.plans},
        "gpu": gpu.name,
        "architecture": gpu.architecture,
        "driver_cuda": ".".join(map(str, opened.device.driver_version)),
        "library": runtime.library,
        "library_version": runtime.version,
        "emulated": is_emulated(),
    }


def _outcome(checks: list[Check | Absent]) -> dict[str, Any]:
    made = [check for check in checks if isinstance(check, Check)]
    return {
        "checks": [
            {
                **check._asdict(),
                "worst": check.worst if math.isfinite(check.worst) else None,
                "passed": check.passed,
            }
            for check in made
        ],
        "absent_modes": {c.name: c.reason for c in checks if isinstance(c, Absent)},
        "passed": sum(check.passed for check in made),
        "failed": sum(not check.passed for check in made),
    }


def _show_heading(console: Console, report: dict[str, Any]) -> None:
    title = f"{report['library']} {report['library_version']}, forms {'/'.join(report['forms'])}"
    console.print(f"{report['gpu']}, driver of CUDA {report['driver_cuda']}, {title}", markup=False)
    if report["emulated"]:
        console.print("[yellow]EMULATION: no GPU has run. This checks the program, not a GPU.")
    if not report["golden"]:
        console.print("[yellow]The bundle has no golden samples, so plans are not checked.")


def _show(console: Console, check: Check | Absent) -> None:
    if isinstance(check, Absent):
        console.print(f"-    mode {check.name}: not here: {escape(check.reason)}", highlight=False)
        return
    mark = "[green]ok[/]  " if check.passed else "[red]FAIL[/]"
    console.print(f"{mark} {escape(str(check))}", highlight=False)


def _write_layers(opened: Opened, path: Path, options: EngineOptions) -> None:
    engines = [Engine(plan, opened.device, options) for plan in opened.plans]
    described = {engine.name: json.loads(engine.layers()) for engine in engines}
    for engine in engines:
        engine.close()
    with replacing(path) as stream:
        stream.write(json.dumps(described, indent=2).encode())


if __name__ == "__main__":
    main(prog_name="python -m runtime.verify")
