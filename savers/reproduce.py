"""``python -m savers.reproduce``: the small experiment of each paper, with its bars."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.console import Console

from runtime.errors import InputError
from runtime.terminal import Command, progress_bar

if TYPE_CHECKING:
    from savers.image_set import ImageSet

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
    interval lies on one side of the bar, and UNRESOLVED otherwise. With images of your own, or the
    large configuration, figures are reported beside the bars and nothing is judged.

    \b
    Examples
      python -m savers.reproduce tqcompressor
      python -m savers.reproduce tqcompressor --quick      # only that it runs, below a minute
      python -m savers.reproduce incubation --data photos --side 32
      python -m savers.reproduce incubation --data cifar-100-binary --config large --device cuda
    """


@dataclass(frozen=True)
class Options:
    """What is asked on the command line.

    Attributes
    ----------
    data
        Folder of images; None takes scikit-learn's digits.
    side
        To which pictures are scaled.
    """

    seeds: int = 3
    quick: bool = False
    data: Path | None = None
    side: int | None = None
    size: Literal["small", "large"] = "small"
    device: str = "cpu"

    @property
    def judged(self) -> bool:
        """Whether the bars were fixed for this."""
        return self.data is None and self.size == "small"


def run(paper: str, options: Options, *, as_json: bool) -> None:
    """Run an experiment and print what it found.

    Raises
    ------
    InputError
        When the images or the device cannot be used.
    """
    import torch

    from savers.experiment import Request

    _check_device(options.device)
    if options.device == "cpu":
        # On one thread results do not depend on how many there are.
        torch.set_num_threads(1)
    images, seeds = _images(options), range(1 if options.quick else options.seeds)
    module: Any = importlib.import_module(f"savers.reproduce_{paper.replace('-', '_')}")
    with progress_bar() as progress:
        found = module.experiment(
            Request(seeds, options.quick, progress, images, options.size, options.device)
        )
    found = found if options.judged else found.unjudged()
    if as_json:
        click.echo(json.dumps({"quick": options.quick, **found.described()}, indent=2))
        return
    found.show(Console())
    if options.quick:
        click.echo("--quick: one seed and few epochs; these verdicts mean nothing.")


def _images(options: Options) -> ImageSet:
    from savers.digits import read_digits
    from savers.image_files import read_image_set

    if options.data is not None:
        return read_image_set(options.data, side=options.side)
    if options.size == "large":
        raise InputError("--config large: digits are too small for it. Give images: --data FOLDER.")
    if options.side is not None:
        raise InputError("--side: scales pictures of a folder. Give it: --data FOLDER.")
    return read_digits()


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: PyTorch finds no CUDA GPU here. Take --device cpu, or install a driver "
            "and a PyTorch with CUDA."
        )


def _command(paper: str, summary: str) -> Command:
    example = f"python -m savers.reproduce {paper} --data photos --side 32"

    @click.command(paper, cls=Command, help=summary, epilog=f"Example: {example}")
    @click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="0, 1, ...")
    @click.option("--quick", is_flag=True, help="One seed, few epochs: only that it runs.")
    @click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Folder of train.npz and test.npz, of CIFAR-100's train.bin and test.bin, or of "
        "pictures train/<class> and test/<class>.  [default: scikit-learn's digits]",
    )
    @click.option("--side", type=click.IntRange(1), help="Scale pictures to so many pixels.")
    @click.option(
        "--config",
        "size",
        type=click.Choice(["small", "large"]),
        default="small",
        show_default=True,
        help="large: transformers for 32x32 images, days on a CPU.",
    )
    @click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def command(*, as_json: bool, **options: Any) -> None:
        run(paper, Options(**options), as_json=as_json)

    return command


for _paper, _summary in PAPERS.items():
    main.add_command(_command(_paper, _summary))


if __name__ == "__main__":
    main()
