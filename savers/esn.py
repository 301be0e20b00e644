"""Exits on a large model's own blocks, trained and chosen: ``python -m savers.esn --help``."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from calibration.recorded import Claim
from calibration.records import HELD_OUT, Data, load_data
from runtime.errors import InputError
from runtime.terminal import Command, progress_bar
from savers.dataset import DEFAULT_FOLDER, LABELS, read_fashion_mnist, split_training_images

if TYPE_CHECKING:
    from savers.exit_study import Found, Plan, Study
    from savers.exit_table import Row

QUICK_IMAGES, QUICK_DRAWS = 1500, 20
_PATH = click.Path(path_type=Path)
_UNIT = click.FloatRange(0, 1, min_open=True, max_open=True)


@dataclass(frozen=True)
class Request:
    """The command line."""

    pool: Path
    large: str
    savers: tuple[str, ...]
    data: Path
    training: Path | None
    selection: Path
    width: tuple[int, ...]
    layers: tuple[int, ...]
    exits: int
    epochs: int
    views: int
    epsilon: float
    delta: float
    size: int
    draws: int
    work: Path
    out: Path | None
    compare: bool
    middle: tuple[str, ...]
    test: Path | None
    batch: int
    rounds: int
    threads: int
    quick: bool
    as_json: bool

    @property
    def plan(self) -> Plan:
        """What is tried."""
        from savers.exit_study import Plan

        plan = Plan(
            claim=Claim(self.epsilon, self.delta, "wsr"),
            widths=self.width,
            layers=self.layers,
            epochs=self.epochs,
            views=self.views,
            most=self.exits,
            size=self.size,
            draws=self.draws,
        )
        if not self.quick:
            return plan
        return replace(plan, widths=(8,), layers=(1,), epochs=1, views=1, draws=QUICK_DRAWS)

    def training_data(self) -> Data:
        """Return the images that train exits."""
        if self.training:
            data = load_data(self.training)
            _refuse(data, "trains")
        else:
            split = split_training_images(read_fashion_mnist(self.data)[0])["train"]
            data = Data("train", split.images, split.labels)
        return _first(data, QUICK_IMAGES) if self.quick else data

    def selection_data(self) -> Data:
        """Return the images that choose among exits."""
        if not self.selection.is_file():
            raise InputError(
                f"{self.selection}: not found. Exits are chosen on images that trained nothing. "
                "Write the demo's: python -m savers.train zoo; or give --selection FILE.npz."
            )
        data = load_data(self.selection)
        _refuse(data, "chooses")
        return _first(data, QUICK_IMAGES) if self.quick else data

    def labels(self, classes: int) -> tuple[str, ...]:
        """Return the names of the classes."""
        named = LABELS if self.training is None and classes == len(LABELS) else None
        return named or tuple(str(number) for number in range(classes))


@click.command(
    cls=Command,
    epilog="Example: python -m savers.esn --saver tiny --middle middle --compare "
    "--test zoo/fashion/data/test.npz",
)
@click.option("--pool", type=_PATH, default="zoo/fashion/models", show_default=True, help="Cards.")
@click.option("--large", default="large", show_default=True, help="Model that gets the exits.")
@click.option(
    "--saver",
    "savers",
    multiple=True,
    default=("tiny",),
    help="Model before it; repeat it for more, in their order. Exits go on from the last.  "
    "[default: tiny]",
)
@click.option("--data", type=_PATH, default=DEFAULT_FOLDER, help="Folder of Fashion-MNIST.")
@click.option("--training", type=_PATH, help="npz that trains in place of Fashion-MNIST's split.")
@click.option(
    "--selection",
    type=_PATH,
    default="zoo/fashion/data/selection.npz",
    show_default=True,
    help="npz that chooses.",
)
@click.option(
    "--width",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=(8, 32, 128),
    help="Of tokens; repeat it for a grid.  [default: 8, 32, 128]",
)
@click.option(
    "--layers",
    type=click.IntRange(0, 8),
    multiple=True,
    default=(0, 1, 2),
    help="Of the transformer over exit positions; repeat it.  [default: 0, 1, 2]",
)
@click.option("--exits", type=click.IntRange(1, 3), default=2, help="At most.  [default: 2]")
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True)
@click.option("--views", type=click.IntRange(1), default=4, help="Of an image.  [default: 4]")
@click.option("--epsilon", type=_UNIT, default=0.005, show_default=True, help="Largest drop.")
@click.option("--delta", type=_UNIT, default=0.0125, show_default=True, help="Chance to be wrong.")
@click.option("--size", type=click.IntRange(1), default=8000, help="That certify. [default: 8000]")
@click.option("--draws", type=click.IntRange(1), default=100, help="Of a forecast.  [default: 100]")
@click.option(
    "--work",
    type=_PATH,
    default="build/esn",
    show_default=True,
    help="Features and trained exits are kept here, and read again.",
)
@click.option("--out", type=_PATH, help="Write the cheapest cascade with exits as a bundle.")
@click.option("--compare", is_flag=True, help="A table with cascades without exits, timed.")
@click.option("--middle", multiple=True, help="For the table: a model between saver and large.")
@click.option("--test", type=_PATH, help="For the table: npz of images that chose nothing.")
@click.option("--batch", type=click.IntRange(1), default=32, help="Of timings.  [default: 32]")
@click.option("--rounds", type=click.IntRange(1), default=30, help="Of timings.  [default: 30]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the CPU.")
@click.option("--quick", is_flag=True, help="One small training on few images, to see it work.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def main(**options: Any) -> None:
    """Add exits to a large model between its own blocks, and say whether they pay.

    A saver answers what it is sure of. The rest enters the large model, and may leave it after any
    block: there a small head corrects the saver's logits by what the blocks have seen so far
    (TinySaver's Exit Sequence Network). Saver and large model stay as they are, bit for bit.

    A grid of heads is trained on features that are computed once. The heads and the blocks after
    which they stand are chosen on the selection split, where the cascade is forecast to need the
    fewest multiply-accumulates at the claim. Nothing is certified: record a bundle's stages on
    fresh data and certify it with calibration.threshold.

    The large model and the savers must be convolutional networks with feature maps
    [n, channels, height, width] that all ways to the output go through.
    """
    request = Request(**options)
    with progress_bar() as progress:
        study = _study(request, progress)
        found = study.run()
        rows, facts = _table(request, study, found, progress)
    if request.out and found.best:
        _shelf(request, study).write(request.out, found.best)
    _print(request, study, found, (rows, facts))


def _study(request: Request, progress: Progress) -> Study:
    import torch

    from savers.exit_study import Study, open_models

    # Weights must not depend on how many threads share a sum.
    torch.set_num_threads(1)
    models = open_models(request.pool, request.savers, request.large, request.middle)
    selection, training = request.selection_data(), request.training_data()
    return Study(models, training, selection, request.plan, request.work, request.threads, progress)


def _table(
    request: Request, study: Study, found: Found, progress: Progress
) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of --compare, measured, and what is said of the large model alone."""
    from savers.exit_table import Timing, measure, rows_of, see

    if not request.compare:
        return [], {}
    rows, shelf = rows_of(study, found), _shelf(request, study)
    timing = Timing(batch=request.batch, rounds=3 if request.quick else request.rounds)
    task = progress.add_task("timing", total=timing.rounds)
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / str(number) for number in range(len(rows))]
        for row, folder in zip(rows, folders, strict=True):
            shelf.write(folder, row.estimate)
        alone: dict[str, Any] = {
            "milliseconds": measure(
                rows,
                folders,
                study.selection,
                timing,
                threads=request.threads,
                advance=lambda: progress.advance(task),
            )
        }
        if request.test:
            test = load_data(request.test)
            if test.labels is None:
                raise InputError(f"{request.test}: no labels; give --test data that have them.")
            alone["test_accuracy"] = see(rows, folders, test, threads=request.threads)
    return rows, alone


def _shelf(request: Request, study: Study) -> Any:
    from savers.exit_table import Shelf

    classes = next(iter(study.question.answers.values())).shape[1]
    return Shelf(study, request.labels(classes))


def _print(
    request: Request, study: Study, found: Found, table: tuple[list[Row], dict[str, Any]]
) -> None:
    from savers.exit_report import show, summary

    out = request.out if found.best else None
    if request.as_json:
        click.echo(json.dumps(summary(study, found, table, out), indent=2))
    else:
        show(Console(), study, found, table, out)


def _refuse(data: Data, what: str) -> None:
    if data.name in HELD_OUT:
        raise InputError(
            f"{data.name}.npz: expected a split that {what}; this one must do no such thing. "
            "Pass zoo/fashion/data/selection.npz, or data of your own under another name."
        )


def _first(data: Data, count: int) -> Data:
    labels = None if data.labels is None else np.ascontiguousarray(data.labels[:count])
    return Data(data.name, np.ascontiguousarray(data.images[:count]), labels)


if __name__ == "__main__":
    main(prog_name="python -m savers.esn")
