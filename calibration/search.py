"""Search the best cascade of a pool of models: ``python -m calibration.search --help``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from calibration.assembly import Caption, Parts, write_bundle
from calibration.bounds import METHODS, Method
from calibration.costs import Costs, MacCosts, TimeCosts, batch_sizes, host_runs, measure_seconds
from calibration.errors import CalibrationError
from calibration.pool import Card, load_pool
from calibration.ranking import Candidate, Estimate, Pool, Screen, chains, rank
from calibration.recorded import Claim
from calibration.records import Data, Record, load_data, load_records, refuse_held_out
from runtime.schema import Setting
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar

LABEL = "selection estimates, not certified"
ROUNDS = 30
"""Timed runs of each model and batch size."""


@dataclass(frozen=True)
class Request:
    """The command line."""

    pool: Path
    large: str
    records: Path
    epsilon: float
    delta: float
    method: Method
    cost: str
    stages: str
    batch: int
    size: int
    finalists: int
    draws: int
    threads: int
    write: Path | None
    data: Path | None
    name: str | None
    description: str | None
    labels: str | None
    colour: str | None
    as_json: bool

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many stages a cascade may have."""
        lengths = tuple(self.stages.split(","))
        if not lengths or not set(lengths) <= {"2", "3"}:
            raise CalibrationError(f"--stages: expected 2, 3 or 2,3, got {self.stages!r}.")
        return tuple(sorted({int(length) for length in lengths}))

    @property
    def caption(self) -> Caption:
        """What a reader of the bundle is told."""
        labels = tuple(self.labels.split(",")) if self.labels else None
        return Caption(self.name, self.description, labels, self.colour)


@dataclass(frozen=True)
class Found:
    """What the search found: cascades that cost less than the large model alone, best first."""

    cards: dict[str, Card]
    record: Record
    costs: Costs
    large: str
    screened: int
    ranking: list[Estimate]


_PATH = click.Path(path_type=Path)
_UNIT = click.FloatRange(0, 1, min_open=True, max_open=True)
_COUNT = click.IntRange(1)


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.search --pool zoo/fashion/models --large large "
    "--records records/selection --write zoo/fashion --data zoo/fashion/data/selection.npz",
)
@click.option("--pool", type=_PATH, required=True, help="Folder of model cards.")
@click.option("--large", required=True, help="The model whose accuracy is to be kept.")
@click.option("--records", type=_PATH, required=True, help="Of the selection split, all models.")
@click.option("--epsilon", type=_UNIT, default=0.005, show_default=True, help="Largest drop.")
@click.option("--delta", type=_UNIT, default=0.0125, show_default=True, help="Chance to be wrong.")
@click.option("--method", type=click.Choice(METHODS), default="wsr", show_default=True)
@click.option(
    "--cost",
    type=click.Choice(["time", "macs"]),
    default="time",
    show_default=True,
    help="Rank by measured time of the inference sessions, or by multiply-accumulates.",
)
@click.option("--stages", default="2,3", show_default=True, help="Stages a cascade may have.")
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
    "--finalists", type=_COUNT, default=20, show_default=True, help="Cascades to forecast."
)
@click.option("--draws", type=_COUNT, default=20, show_default=True, help="Of each forecast.")
@click.option("--threads", type=_COUNT, default=available_threads, help="[default: all]")
@click.option("--write", type=_PATH, help="Make this folder a bundle of the winner; needs --data.")
@click.option("--data", type=_PATH, help="The selection data: golden samples and provenance.")
@click.option("--name", help="Of the bundle. [default: as before, or its folder's]")
@click.option("--description", help="Of the bundle. [default: as before]")
@click.option("--labels", help="Names of the classes, by commas. [default: as before, or numbers]")
@click.option(
    "--colour", type=click.Choice(["grey", "rgb", "bgr"]), help="Of frames. [default: by channels]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the ranking as JSON.")
def main(**options: Any) -> None:
    """Rank all cascades of two or three stages that end in the large model.

    A second gate's offset is chosen, and each cascade's certified point is estimated, on the
    selection split alone: the ranking is an estimate, no certificate. The winner is then certified
    on samples of its own by python -m calibration.threshold.
    """
    request = Request(**options)
    data = _load_data(request)
    found = search(request, data)
    if request.as_json:
        click.echo(json.dumps(_summary(found), indent=2))
    else:
        _show(Console(), found)
    if request.write and data and found.ranking:
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
        When cards or records are missing, damaged, or do not fit together.
    """
    lengths = request.lengths
    cards = load_pool(request.pool)
    if request.large not in cards:
        raise CalibrationError(
            f"{request.pool}: no model {request.large!r}; it has {', '.join(cards)}."
        )
    records = load_records(request.records, [card.stage() for card in cards.values()])
    pool = _pool(request, cards, records)
    if data and data.sha256 != records[0].meta.data_sha256:
        raise CalibrationError(
            f"{request.data}: expected the data of the records (sha256 "
            f"{records[0].meta.data_sha256[:12]}...), got {data.sha256[:12]}..."
        )
    with progress_bar() as progress:
        costs = _costs(request, cards, progress)
        claim = Claim(request.epsilon, request.delta, request.method)
        screen = Screen(pool, costs, claim, request.size)
        task = progress.add_task("screen", total=None)
        candidates = []
        for names in chains(pool, costs, lengths):
            candidates.append(screen.best(names))
            progress.advance(task)
        finalists = _finalists(candidates, costs.alone(request.large), request.finalists)
        task = progress.add_task("forecast", total=len(finalists))
        ranking = rank(
            screen, finalists, draws=request.draws, advance=lambda: progress.advance(task)
        )
    paying = [item for item in ranking if item.cost < costs.alone(request.large)]
    return Found(cards, records[0], costs, request.large, len(candidates), paying)


def _load_data(request: Request) -> Data | None:
    if request.write and request.data is None:
        raise click.UsageError("--write needs --data FILE: golden samples and provenance.")
    return load_data(request.data) if request.write and request.data else None


def _pool(request: Request, cards: dict[str, Card], records: Sequence[Record]) -> Pool:
    refuse_held_out(records[0], use="The search")
    labels = records[0].labels
    if labels is None:
        raise CalibrationError(
            f"{request.records}: the search needs labels, the records have none."
        )
    logits = {name: record.logits for name, record in zip(cards, records, strict=True)}
    return Pool(logits, labels, request.large)


def _costs(request: Request, cards: dict[str, Card], progress: Progress) -> Costs:
    if request.cost == "macs":
        return MacCosts({name: card.macs for name, card in cards.items()})
    task = progress.add_task("timing", total=ROUNDS)
    seconds = measure_seconds(
        dict(host_runs(request.pool, cards, threads=request.threads)),
        batch_sizes(request.batch),
        rounds=ROUNDS,
        advance=lambda: progress.advance(task),
    )
    return TimeCosts(seconds, request.batch)


def _finalists(candidates: Sequence[Candidate], limit: float, most: int) -> list[Candidate]:
    paying = [candidate for candidate in candidates if candidate.cost < limit]
    return sorted(paying, key=lambda candidate: candidate.cost)[:most]


def _write(request: Request, folder: Path, found: Found, data: Data) -> None:
    winner = found.ranking[0]
    cards = [found.cards[name] for name in winner.names]
    parts = Parts(request.pool, cards, data, found.record.logits.shape[1])
    setting = Setting(thresholds=winner.thresholds, path=winner.path)
    write_bundle(folder, parts, setting, request.caption, threads=request.threads)
    click.echo(
        f"{folder}: {' -> '.join(winner.names)}, not certified yet: "
        f"python -m calibration.threshold {folder} --help",
        err=True,
    )


def _macs_saved(found: Found, estimate: Estimate) -> float:
    macs = MacCosts({name: card.macs for name, card in found.cards.items()})
    return 1 - macs.cascade(estimate.names, estimate.escalation_rates) / macs.alone(found.large)


def _summary(found: Found) -> dict[str, Any]:
    alone = found.costs.alone(found.large)
    return {
        "label": LABEL,
        "unit": {"time": "seconds", "macs": "macs"}[found.costs.unit],
        "large": {"name": found.large, "cost": alone},
        "screened": found.screened,
        "ranking": [
            {
                "stages": item.names,
                "offsets": item.path.offsets,
                "thresholds": item.thresholds,
                "escalation_rates": item.escalation_rates,
                "cost": item.cost,
                "cost_quantiles": dict(
                    zip(map(str, item.forecast.levels), item.costs, strict=True)
                ),
                "saved": 1 - item.cost / alone,
                "macs_saved": _macs_saved(found, item),
                "refused": item.forecast.refused / item.forecast.draws,
            }
            for item in found.ranking
        ],
    }


def _show(console: Console, found: Found) -> None:
    alone = found.costs.alone(found.large)
    shown = f"{found.large} alone: {_cost(found, alone)} per sample"
    if not found.ranking:
        console.print(
            f"No saver pays here: of {found.screened} cascades none is expected to cost less than "
            f"{shown}. Use it alone, or add cheaper or more accurate savers to the pool."
        )
        return
    table = Table(
        title=LABEL.capitalize(),
        caption=f"{found.screened} cascades screened; {shown}",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in ("cascade", "thresholds", "escalated"):
        table.add_column(column, no_wrap=True)
    for column in ("cost", "less", "MACs saved"):
        table.add_column(column, justify="right", min_width=5)
    for item in found.ranking:
        table.add_row(*_row(found, item, alone))
    console.print(table)


def _row(found: Found, item: Estimate, alone: float) -> list[str]:
    return [
        " -> ".join(item.names),
        " / ".join(f"{threshold:.3f}" for threshold in item.thresholds),
        " / ".join(f"{rate:.1%}" for rate in item.escalation_rates),
        _cost(found, item.cost),
        f"{alone / item.cost:.1f}x",
        f"{_macs_saved(found, item):.1%}",
    ]


def _cost(found: Found, cost: float) -> str:
    return f"{1e6 * cost:.1f} us" if found.costs.unit == "time" else f"{cost / 1e6:.2f} M"


if __name__ == "__main__":
    main(prog_name="python -m calibration.search")
