"""TinySaver's experiments on a bundle's pool: ``python -m calibration.reproduce --help``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from calibration.cost_table import CostTable, load_table
from calibration.errors import CalibrationError
from calibration.npz import unwritable
from calibration.pool import load_pool
from calibration.recorded import Claim, load_recorded
from calibration.reproduction import TEST, Line, load_split
from calibration.reproduction_study import Sources, Study
from calibration.reproduction_words import markdown
from calibration.saver_search import Scope
from kernels.files import replacing
from runtime.bundle import load_bundle
from runtime.terminal import Command, progress_bar

SPLITS = ("train", "selection", TEST)
BEGIN = "<!-- begin: written by python -m calibration.reproduce -->"
END = "<!-- end -->"

_PATH = click.Path(path_type=Path)
_UNIT = click.FloatRange(0, 1, min_open=True, max_open=True)


@dataclass(frozen=True)
class Request:
    """The command line."""

    bundle: Path
    larges: tuple[str, ...]
    pool: Path | None
    records: Path
    costs: Path | None
    batch: int
    epsilon: float
    delta: float
    size: int
    write: Path | None
    as_json: bool

    @property
    def scope(self) -> Scope:
        """Of our search."""
        return Scope(Claim(self.epsilon, self.delta, "wsr"), self.size)


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.reproduce zoo/fashion --large large --large resnet-24 "
    "--costs costs.json --write docs/tinysaver.md",
)
@click.argument("bundle", type=_PATH)
@click.option(
    "--large",
    "larges",
    multiple=True,
    help="A model to find savers for; repeatable.  [default: the last stage of the bundle]",
)
@click.option("--pool", type=_PATH, help="Folder of model cards.  [default: models of the bundle]")
@click.option(
    "--records",
    type=_PATH,
    default=Path("records"),
    show_default=True,
    help="With selection/ and test/ below it, of the whole pool, and train/ if it was recorded.",
)
@click.option("--costs", type=_PATH, help="Measured times, of calibration.search --costs.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Of --costs.")
@click.option("--epsilon", type=_UNIT, default=0.005, show_default=True, help="Of our search.")
@click.option("--delta", type=_UNIT, default=0.0125, show_default=True, help="Of our search.")
@click.option(
    "--certificate-size",
    "size",
    type=click.IntRange(1),
    default=8000,
    show_default=True,
    help="Samples that certify, of our search.",
)
@click.option(
    "--write",
    type=_PATH,
    help=f"Put the tables into this file, between its lines {BEGIN} and {END}",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def main(**options: Any) -> None:
    """Reproduce TinySaver's protocol on stored records, and judge it and ours on the test split.

    The paper's sweep reads its thresholds off the split that it reports, its first-violation rule
    is scored on each split there is, and both are carried over to the test split. Beside them stand
    the bundle's certified cascade (no new look at the samples that certify), the static front of
    single models, and our ranking by cost. For reporting only: nothing may be chosen from it.
    """
    request = Request(**options)
    if request.write:
        _read_marked(request.write)  # a bad file is told before the work, not after it
    sources = _sources(request)
    larges = request.larges or (sources.bundle.bundle.spec.stages[-1].name,)
    with progress_bar() as progress:
        studies = [sources.study(large, progress) for large in larges]
    device = sources.timed.device if sources.timed else None
    text = markdown(studies, sources.costs, device=device)
    if request.write:
        write_between(request.write, text)
    if request.as_json:
        click.echo(json.dumps([_plain(study) for study in studies], indent=2))
    elif not request.write:
        click.echo(text)


def write_between(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a file.

    Raises
    ------
    CalibrationError
        When it cannot be read or written, or has not both marks in their order.
    """
    before, after = _read_marked(path)
    try:
        with replacing(path) as stream:
            stream.write(f"{before}{BEGIN}\n\n{text}\n{END}{after}".encode())
    except OSError as error:
        raise unwritable(path, error) from None


def _read_marked(path: Path) -> tuple[str, str]:
    """Return what stands before and after the marks of a file."""
    try:
        before, mark, rest = path.read_text("utf-8").partition(BEGIN)
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path}: cannot be read ({error}). The tables go into a text file with the lines "
            f"{BEGIN} and {END}; make one, or leave out --write."
        ) from None
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise CalibrationError(
            f"{path}: expected a line {BEGIN} and below it a line {END}; the tables go between."
        )
    return before, after


def _sources(request: Request) -> Sources:
    bundle = load_bundle(request.bundle)
    folder = request.pool or request.bundle / "models"
    cards = load_pool(folder)
    unknown = [name for name in request.larges if name not in cards]
    if unknown:
        raise CalibrationError(
            f"{folder}: no model {', '.join(unknown)}; it has {', '.join(cards)}."
        )
    splits = {
        name: load_split(cards, request.records / name)
        for name in SPLITS
        if name != "train" or (request.records / name).is_dir()
    }
    timed = _timed(request, cards)
    recorded = load_recorded(bundle, request.records / TEST)
    return Sources(folder, cards, request.records, splits, recorded, timed, request.scope)


def _timed(request: Request, cards: Any) -> CostTable | None:
    if request.costs is None:
        return None
    return load_table(request.costs, cards, unit="time", batch=request.batch)


def _plain(study: Study) -> dict[str, Any]:
    found = study._asdict()
    found["lines"] = [_plain_line(line) for line in study.lines]
    found["oracle"] = _plain_line(study.oracle)
    found["certificate"] = study.certificate and study.certificate.model_dump(mode="json")
    found["scores"] = {
        split: [score._asdict() for score in scores] for split, scores in study.scores.items()
    }
    for name in ("pairs", "standings", "front"):
        found[name] = [item._asdict() for item in found[name]]
    found["best"] = study.best and study.best._asdict()
    return found


def _plain_line(line: Line) -> dict[str, Any]:
    found = line._asdict()
    found["scores"] = [score.model_dump() for score in line.scores]
    found["combination"] = line.combination and line.combination.model_dump()
    return found


if __name__ == "__main__":
    main(prog_name="python -m calibration.reproduce")
