"""Search the best cascade of a pool of models: ``python -m calibration.search --help``."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import click
import onnxruntime
from rich.console import Console
from rich.progress import Progress

from calibration.assembly import Caption, Parts, Rule, write_bundle
from calibration.bounds import METHODS, Method
from calibration.budget import FILE_NAME, Budget
from calibration.candidates import Selection, load_selection, names_of
from calibration.cost_table import CostTable, ModelCosts, load_table, save_table
from calibration.costs import Costs, MacCosts, batch_sizes
from calibration.energy import open_meter
from calibration.errors import CalibrationError
from calibration.finals import Jury, Split, best_certified, write_certified
from calibration.ranking import Estimate
from calibration.recorded import Claim
from calibration.records import Data, load_data
from calibration.saver_search import Found, SaverSearch, Scope, Tried
from calibration.search_report import show, summary
from calibration.timings import host_runs, measure_joules, measure_seconds
from runtime.schema import Setting
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar

ROUNDS = {"time": 30, "joules": 3}
"""Turns of each model and batch size."""


@dataclass(frozen=True)
class Request:
    """The command line."""

    pool: Path
    large: str
    records: Path
    epsilon: float
    delta: float
    method: Method
    device: str
    cost: str
    costs: Path | None
    stages: str
    batch: int
    size: int
    finalists: int
    draws: int
    scores: bool
    learned: bool
    classes: bool
    combinations: bool
    threads: int
    write: Path | None
    data: Path | None
    certify_top: int
    certify_records: Path | None
    certify_data: Path | None
    budget: Path | None
    name: str | None
    description: str | None
    labels: str | None
    colour: str | None
    as_json: bool

    def __post_init__(self) -> None:
        """Refuse options that miss others."""
        if self.write and self.data is None:
            raise click.UsageError("--write needs --data FILE: golden samples and provenance.")
        if self.certify_top and not (self.write and self.certify_records and self.certify_data):
            raise click.UsageError(
                "--certify-top needs --write, --certify-records and --certify-data."
            )
        if self.device != "cpu":
            raise click.UsageError(
                f"--device {self.device}: costs are measured on the CPU only. For another device "
                "pass --costs FILE with what was measured there; docs/formats.md has its form."
            )

    @property
    def scope(self) -> Scope:
        """What is searched."""
        claim = Claim(self.epsilon, self.delta, self.method)
        tried = Tried(self.scores, self.learned, self.classes, self.combinations)
        return Scope(claim, self.size, self._lengths, self.finalists, self.draws, options=tried)

    @property
    def _lengths(self) -> tuple[int, ...]:
        lengths = self.stages.split(",")
        if not all(length.isdecimal() and int(length) >= 2 for length in lengths):
            raise CalibrationError(
                f"--stages: expected numbers from 2 up by commas, as 2,3, got {self.stages!r}."
            )
        return tuple(sorted({int(length) for length in lengths}))

    @property
    def caption(self) -> Caption:
        """What a reader of the bundle is told."""
        labels = tuple(self.labels.split(",")) if self.labels else None
        return Caption(self.name, self.description, labels, self.colour)

    def jury(self, folder: Path) -> Jury:
        """Return what certifies the best cascades."""
        beside = folder / FILE_NAME
        budget = self.budget or (beside if beside.exists() else None)
        data = load_data(cast("Path", self.certify_data))
        split = Split(cast("Path", self.certify_records), data)
        return Jury(split, self.scope.claim, Budget(budget) if budget else None)


_PATH = click.Path(path_type=Path)
_UNIT = click.FloatRange(0, 1, min_open=True, max_open=True)
_COUNT = click.IntRange(1)


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.search --pool zoo/fashion/models --large large "
    "--records records/selection --write my-bundle --data zoo/fashion/data/selection.npz",
)
@click.option("--pool", type=_PATH, required=True, help="Folder of model cards.")
@click.option("--large", required=True, help="The model whose accuracy is to be kept.")
@click.option("--records", type=_PATH, required=True, help="Of the selection split, all models.")
@click.option("--epsilon", type=_UNIT, default=0.005, show_default=True, help="Largest drop.")
@click.option("--delta", type=_UNIT, default=0.0125, show_default=True, help="Chance to be wrong.")
@click.option("--method", type=click.Choice(METHODS), default="wsr", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where costs are measured.")
@click.option(
    "--cost",
    type=click.Choice(["time", "macs", "joules"]),
    default="time",
    show_default=True,
    help="Rank by measured time or energy of the inference sessions, or by multiply-accumulates.",
)
@click.option(
    "--costs", type=_PATH, help="File of measured costs: read if it is there, else written."
)
@click.option(
    "--stages",
    default="2,3",
    show_default=True,
    help="Stages a cascade may have. Up to 3 all are tried, in every order; longer ones grow from "
    "the ten best that are a stage shorter.",
)
@click.option("--batch", type=_COUNT, default=32, show_default=True, help="Samples per batch.")
@click.option(
    "--certificate-size",
    "size",
    type=_COUNT,
    default=8000,
    show_default=True,
    help="Samples that will certify.",
)
@click.option(
    "--finalists",
    type=_COUNT,
    default=12,
    show_default=True,
    help="Cascades of each length to forecast.",
)
@click.option("--draws", type=_COUNT, default=20, show_default=True, help="Of each forecast.")
@click.option(
    "--scores/--no-scores",
    default=True,
    show_default=True,
    help="Try gates that read another score than max-softmax.",
)
@click.option(
    "--learned/--no-learned",
    default=False,
    show_default=True,
    help="Try learned gates too; the winner's model then has a further output.",
)
@click.option(
    "--class-thresholds/--no-class-thresholds",
    "classes",
    default=True,
    show_default=True,
    help="Try thresholds by predicted class.",
)
@click.option(
    "--combination/--no-combination",
    "combinations",
    default=True,
    show_default=True,
    help="Try to add an earlier stage's logits to those of the large model.",
)
@click.option("--threads", type=_COUNT, default=available_threads, help="[default: all]")
@click.option("--write", type=_PATH, help="Make this folder a bundle of the winner; needs --data.")
@click.option("--data", type=_PATH, help="The selection data: golden samples and provenance.")
@click.option(
    "--certify-top",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Certify so many of the best, each at delta divided by their number, and write the "
    "cheapest that passes. 0: certify later, with calibration.threshold.",
)
@click.option("--certify-records", type=_PATH, help="Of the certifying split, all models.")
@click.option("--certify-data", type=_PATH, help="The certifying data, which decided nothing.")
@click.option("--budget", type=_PATH, help=f"[default: {FILE_NAME} in the written bundle, if any]")
@click.option("--name", help="Of the bundle. [default: as before, or its folder's]")
@click.option("--description", help="Of the bundle. [default: as before]")
@click.option("--labels", help="Names of the classes, by commas. [default: as before, or numbers]")
@click.option(
    "--colour", type=click.Choice(["grey", "rgb", "bgr"]), help="Of frames. [default: by channels]"
)
@click.option("--json", "as_json", is_flag=True, help="Print everything found as JSON.")
def main(**options: Any) -> None:
    """Rank the cascades of a pool that end in its large model, by what they cost on this device.

    Scores, offsets between gates, thresholds by class and combined answers are chosen, and each
    cascade's certified point is estimated, on the selection split alone: the ranking is an
    estimate, no certificate. The first saver is costed at
    the full batch, each later model at the batches that escalation leaves it. The winner is then
    certified on samples of its own, by --certify-top or by python -m calibration.threshold.
    Beside it stand the single models' static front and the score of the paper (TinySaver).
    """
    request = Request(**options)
    data = load_data(request.data) if request.write and request.data else None
    found = search(request, data)
    if request.as_json:
        click.echo(json.dumps(summary(found), indent=2))
    else:
        show(Console(), found)
    if request.write and data and found.paying:
        _write(request, request.write, found, data)


def search(request: Request, data: Data | None = None) -> Found:
    """Search as a request says.

    Parameters
    ----------
    data
        What the records must be of, where that is known.

    Raises
    ------
    CalibrationError
        When cards, records, costs or options are missing, damaged, or do not fit together.
    """
    scope = request.scope
    selection = load_selection(request.pool, request.large, request.records)
    if data and data.sha256 != selection.data_sha256:
        raise CalibrationError(
            f"{request.data}: expected the data of the records (sha256 "
            f"{selection.data_sha256[:12]}...), got {data.sha256[:12]}..."
        )
    with progress_bar() as progress:
        costs = _costs(request, selection, progress)
        return SaverSearch(selection, costs, scope, progress).run()


def _costs(request: Request, selection: Selection, progress: Progress) -> Costs:
    cards = {name: selection.cards[name] for name in selection.pool.logits}
    if request.cost == "macs":
        return MacCosts({name: card.macs for name, card in cards.items()})
    if request.costs and request.costs.exists():
        return load_table(request.costs, cards, unit=request.cost, batch=request.batch).costs()
    table = _measured(request, selection, progress)
    if request.costs:
        save_table(request.costs, table)
    return table.costs()


def _measured(request: Request, selection: Selection, progress: Progress) -> CostTable:
    unit = cast('Literal["time", "joules"]', request.cost)
    meter = open_meter() if unit == "joules" else None
    cards = {name: selection.cards[name] for name in selection.pool.logits}
    runs = dict(host_runs(request.pool, cards, threads=request.threads))
    sizes, rounds = batch_sizes(request.batch), ROUNDS[unit]
    task = progress.add_task(f"measuring {unit}", total=rounds)

    def advance() -> None:
        progress.advance(task)

    if meter is None:
        costs = measure_seconds(runs, sizes, rounds=rounds, advance=advance)
    else:
        costs = measure_joules(runs, sizes, meter, rounds=rounds, advance=advance)
        meter.close()
    models = {
        name: ModelCosts(sha256=cards[name].sha256, by_size=by_size)
        for name, by_size in costs.items()
    }
    device = (
        f"{platform.machine()} CPU, {request.threads} threads, "
        f"ONNX Runtime {onnxruntime.__version__}" + (f", {meter.name}" if meter else "")
    )
    return CostTable(unit=unit, device=device, batch=request.batch, models=models)


def _write(request: Request, folder: Path, found: Found, data: Data) -> None:
    winner = found.paying[0]
    if not request.certify_top:
        _write_bundle(request, folder, found, data, winner)
        click.echo(
            f"{folder}: {names_of(winner.names)}, not certified yet: "
            f"python -m calibration.threshold {folder} --help",
            err=True,
        )
        return
    jury = request.jury(folder)
    winner, certificate = best_certified(
        found.paying[: request.certify_top],
        found.costs,
        jury,
        lambda place, estimate: _write_bundle(request, place, found, data, estimate),
    )
    _write_bundle(request, folder, found, data, winner)
    write_certified(folder, certificate, jury.split, Split(request.records, data))
    click.echo(
        f"{folder}: {names_of(winner.names)}, certified: drop at most {certificate.epsilon:g} at "
        f"delta {certificate.delta:g}, the cheapest of {request.certify_top} tried.",
        err=True,
    )


def _write_bundle(
    request: Request, folder: Path, found: Found, data: Data, chosen: Estimate
) -> None:
    cards = [found.selection.cards[name] for name in chosen.names]
    parts = Parts(request.pool, cards, data, found.selection.classes, _rule(found, chosen))
    setting = Setting(thresholds=chosen.thresholds, path=chosen.path)
    write_bundle(folder, parts, setting, request.caption, threads=request.threads)


def _rule(found: Found, chosen: Estimate) -> Rule:
    options = chosen.candidate.options
    learned = {
        name: found.choices[name].learned
        for name, score in zip(chosen.names, options.scores, strict=False)
        if score.name == "learned"
    }
    heads = {name: item.head for name, item in learned.items() if item}
    return Rule(options.scores, heads, options.combination)


if __name__ == "__main__":
    main(prog_name="python -m calibration.search")
