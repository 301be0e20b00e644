"""``python -m runtime.verify``: whether this GPU runs a bundle as it should."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from runtime.bundle import demo_folder, load_bundle, replacing
from runtime.devices import GpuOptions, Opened, open_gpu
from runtime.environment import refuse_foreign_packages
from runtime.errors import InputError
from runtime.selfcheck import Check, run_checks
from runtime.tensorrt_engine import Engine
from runtime.terminal import Command


@click.command(cls=Command)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--device", default="cuda", show_default=True, help="cuda, or cuda:1.")
@click.option(
    "--batch", default=32, show_default=True, type=click.IntRange(1), help="Frames at once."
)
@click.option(
    "--forms", help="Form of each stage, as fp16/fp16.  [default: the bundle's for a GPU]"
)
@click.option(
    "--library",
    default="tensorrt",
    show_default=True,
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    help="What built the plans.",
)
@click.option(
    "--layers",
    type=click.Path(path_type=Path),
    help="Write what TensorRT's inspector says of each plan's layers, their precision, to a file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def main(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """Check kernels, plans and launch modes of BUNDLE on a GPU.

    Every kernel runs against its float64 reference, every plan on the bundle's golden samples, and
    the launch modes against each other. The exit status is 1 when something fails. Cascades do this
    by themselves the first time that they meet a combination of plans, driver and GPU.

    \b
    Examples
      python -m engines.build zoo/fashion --form fp16
      python -m runtime.verify zoo/fashion --device cuda
    """
    refuse_foreign_packages()
    sys.exit(verify(bundle or demo_folder(), as_json=as_json, **options))


def verify(
    folder: Path,
    *,
    device: str,
    batch: int,
    forms: str | None,
    library: Any,
    layers: Path | None,
    as_json: bool,
) -> int:
    """Run all checks and show them; return the exit status."""
    if not device.startswith("cuda"):
        raise InputError(f"--device: expected cuda or cuda:1, got {device!r}.")
    options = GpuOptions(library=library, verify=False)
    chosen: Any = forms.split("/") if forms else None
    console = Console(stderr=as_json)
    checks: list[Check] = []
    with open_gpu(load_bundle(folder), device, chosen, batch=batch, gpu=options) as opened:
        console.print(f"{opened.device.gpu.name}, CUDA {_version(opened)}")
        for check in run_checks(opened):
            checks.append(check)
            _show(console, check)
        if layers is not None:
            _write_layers(opened, layers)
    failed = sum(not check.passed for check in checks)
    console.print(f"{len(checks) - failed} passed, {failed} failed")
    if as_json:
        print(json.dumps(_report(opened, checks), indent=2))
    return 1 if failed else 0


def _show(console: Console, check: Check) -> None:
    mark = "[green]ok[/]  " if check.passed else "[red]FAIL[/]"
    console.print(f"{mark} {check}", highlight=False)


def _report(opened: Opened, checks: list[Check]) -> dict[str, Any]:
    return {
        "gpu": opened.device.gpu.name,
        "architecture": opened.device.gpu.architecture,
        "driver": _version(opened),
        "forms": "/".join(opened.forms),
        "checks": [{**check._asdict(), "passed": check.passed} for check in checks],
    }


def _write_layers(opened: Opened, path: Path) -> None:
    engines = [Engine(plan, opened.device) for plan in opened.plans]
    described = {engine.name: json.loads(engine.layers()) for engine in engines}
    for engine in engines:
        engine.close()
    with replacing(path) as stream:
        stream.write(json.dumps(described, indent=2).encode())


def _version(opened: Opened) -> str:
    return ".".join(map(str, opened.device.driver_version))


if __name__ == "__main__":
    main(prog_name="python -m runtime.verify")
