"""Build the cubins of a release; called by the script build_kernels beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from kernels import nvrtc
from kernels.errors import KernelError
from kernels.prebuilt import ARCHITECTURES, SHIPPED, Entry, Job, build
from kernels.sources import module_names
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar


@click.command(
    cls=Command,
    epilog="Example: scripts/build_kernels && python -m build",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=SHIPPED,
    show_default=True,
    help="Folder to fill; the default is the one that a wheel takes along.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=available_threads,
    show_default="one a CPU",
    help="Compilations at a time.",
)
def main(output: Path, threads: int) -> None:
    """Compile every kernel for every architecture of each CUDA major, and write a manifest.

    A device that finds its architecture there needs no compiler. Cubins are used only for exactly
    the sources they were built from, so build again after changing a .cu or .cuh file.
    """
    try:
        jobs = plan()
        entries = []
        with progress_bar() as bar:
            for entry in bar.track(build(output, jobs, threads=threads), total=len(jobs)):
                entries.append(entry)
    except KernelError as error:
        raise click.ClickException(str(error)) from None
    report(output, entries)


def plan() -> list[Job]:
    """Return what is to be built, the slowest module first."""
    return [
        Job(compiler(major, architecture), module, architecture)
        for module in module_names()
        for major, architectures in ARCHITECTURES.items()
        for architecture in architectures
    ]


def compiler(major: int, architecture: str) -> nvrtc.Nvrtc:
    """Return the NVRTC of a CUDA major."""
    found = nvrtc.find(nvrtc.Target(architecture, (major, 0)))
    if found.version[0] != major:
        raise KernelError(
            f"expected an NVRTC of CUDA {major}, got {found}. Run scripts/build_kernels."
        )
    return found


def report(folder: Path, entries: list[Entry]) -> None:
    """Say what was built."""
    counts = Counter(entry.nvrtc for entry in entries)
    for version, count in sorted(counts.items()):
        click.echo(f"NVRTC {version}: {count} cubins")
    size = sum((folder / entry.file).stat().st_size for entry in entries)
    click.echo(f"{folder}: {len(entries)} cubins, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(prog_name="scripts/build_kernels")
