"""``python -m savers.reproduce``: the small experiment of each paper, with its bars."""

from __future__ import annotations

import importlib
import json
from typing import Any

import click
from rich.console import Console

from runtime.terminal import Command, progress_bar

PAPERS: dict[str, str] = {
    "incubation": "A deep network from modules trained apart (Deep Incubation, arXiv 2212.04129).",
    "tqcompressor": "Kronecker factors in place of matrices (TQCompressor, arXiv 2401.16367).",
    "shared-depth": "One block for any number of steps (shared depth as an ODE, arXiv 2310.12818).",
}
"""Each is run by ``experiment`` of the module ``savers.reproduce_<paper>``."""


@click.group()
def main() -> None:
    """Repeat a paper's experiment on scikit-learn's digits, in minutes on a CPU.

    Seeds, bars and controls were fixed in advance. A verdict is MET or NOT MET if the whole 95 %
    interval lies on one side of the bar, and UNRESOLVED otherwise.

    \b
    Examples
      python -m savers.reproduce tqcompressor
      python -m savers.reproduce tqcompressor --quick      # only that it runs, below a minute
    """


def run(paper: str, *, seeds: int, quick: bool, as_json: bool) -> None:
    """Run an experiment and print what it found."""
    import torch

    from savers.experiment import Request

    # On one thread results do not depend on how many there are.
    torch.set_num_threads(1)
    module: Any = importlib.import_module(f"savers.reproduce_{paper.replace('-', '_')}")
    with progress_bar() as progress:
        found = module.experiment(Request(range(1 if quick else seeds), quick, progress))
    if as_json:
        click.echo(json.dumps({"quick": quick, **found.described()}, indent=2))
        return
    found.show(Console())
    if quick:
        click.echo("--quick: one seed and few epochs; these verdicts mean nothing.")


def _command(paper: str, summary: str) -> Command:
    @click.command(paper, cls=Command, help=summary)
    @click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="0, 1, ...")
    @click.option("--quick", is_flag=True, help="One seed, few epochs: only that it runs.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def command(*, seeds: int, quick: bool, as_json: bool) -> None:
        run(paper, seeds=seeds, quick=quick, as_json=as_json)

    return command


for _paper, _summary in PAPERS.items():
    main.add_command(_command(_paper, _summary))


if __name__ == "__main__":
    main()
