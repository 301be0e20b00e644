"""``python -m runtime.doctor``: what this machine has to run cascades with, and how to mend it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import click
    from rich.console import Console

    from runtime.terminal import Command
except ModuleNotFoundError as error:
    raise SystemExit(
        f"doctor: {sys.executable} lacks {error.name}, which every program here needs. "
        f"Install them: {sys.executable} -m pip install ."
    ) from None

from runtime import doctor_board as board
from runtime import doctor_bundle as bundle
from runtime import doctor_gpu as gpu
from runtime import doctor_software as software
from runtime.doctor_checks import Examination, Finding
from runtime.doctor_report import Section, Verdict, as_json, show
from runtime.doctor_system import System

Check = Callable[[Examination], "Finding | Iterator[Finding]"]

CHECKS: dict[str, tuple[Check, ...]] = {
    "Machine": (board.check_cpu, board.check_jetpack, board.check_power),
    "Python": (
        software.check_python,
        software.check_venv,
        software.check_distribution,
        software.check_numpy,
        software.check_onnxruntime,
        software.check_opencv,
    ),
    "GPU": (
        gpu.check_driver,
        gpu.check_cuda,
        gpu.check_nvrtc,
        gpu.check_tensorrt,
        gpu.check_tensorrt_rtx,
        gpu.check_pycuda,
        gpu.check_cuda_bindings,
    ),
    "Bundle": (bundle.check_bundle, bundle.check_plans),
}


def examine(system: System, folder: Path | None = None) -> list[Section]:
    """Look at a machine, and at a bundle if one is named; nothing is changed.

    Every library is imported in a process of its own.
    """
    examination = Examination(system, system.ask_all(), bundle.open_bundle(folder))
    return [
        Section(title, [finding for check in checks for finding in _findings(check, examination)])
        for title, checks in CHECKS.items()
    ]


def verdict(sections: list[Section]) -> Verdict:
    """Return on what cascades can run, by what was found."""
    found = [finding for section in sections for finding in section.findings]
    fine = {finding.name for finding in found if finding.status == "ok"}
    broken = any(item.name == "bundle" and item.status == "problem" for item in found)
    cpu = {"python", "tinysaver", "numpy", "onnxruntime"} <= fine and not broken
    tensorrt = bool({"tensorrt", "tensorrt_rtx"} & fine)
    return Verdict(cpu, cpu and tensorrt and {"driver", "pycuda"} <= fine)


def _findings(check: Check, examination: Examination) -> list[Finding]:
    try:
        found = check(examination)
        return [found] if isinstance(found, Finding) else list(found)
    except Exception as error:  # one check that fails on a strange machine must not hide the others
        name = check.__name__.removeprefix("check_")
        cause = f"the check itself failed: {type(error).__name__}: {error}"
        return [Finding(name, "warning", "not examined", cause, "Please report this")]


@click.command(
    cls=Command,
    epilog="Example: python -m runtime.doctor zoo/fashion. In a script: "
    "python -m runtime.doctor --json | jq '.checks[] | select(.fix)'",
)
@click.argument(
    "bundle_folder", metavar="[BUNDLE]", required=False, type=click.Path(path_type=Path)
)
@click.option("--json", "json_", is_flag=True, help="Print all findings as one JSON object.")
def main(bundle_folder: Path | None, json_: bool) -> None:
    """Tell what this machine has to run cascades with, what is wrong, and what mends it.

    Looks at Python and its environment, ONNX Runtime, OpenCV, the NVIDIA driver, CUDA, TensorRT
    and the libraries that reach them; on a Jetson also at JetPack and the power mode; and at
    BUNDLE, whether its files are whole and its TensorRT plans fit here.

    The exit code is 1 when there is a problem: something that every machine needs is missing, or
    something that is here does not work. Warnings (slower, or a feature less) leave it 0, and so
    does a machine without a GPU.
    """
    progress = Console(stderr=True)
    with progress.status("asking each library..."):
        sections = examine(System(), bundle_folder)
    found = verdict(sections)
    if json_:
        click.echo(json.dumps(as_json(sections, found), indent=2))
    else:
        show(Console(), sections, found)
    if any(finding.status == "problem" for item in sections for finding in item.findings):
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="python -m runtime.doctor")
