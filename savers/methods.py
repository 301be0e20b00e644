"""``python -m savers.methods``: what three methods give beside controls of equal training cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from calibration.candidates import load_selection
from calibration.cost_table import load_table
from calibration.errors import CalibrationError
from calibration.pool import load_pool
from calibration.recorded import Claim
from calibration.reproduction import TEST, load_split
from calibration.saver_search import SaverSearch, Scope, Tried
from runtime.terminal import Command, progress_bar
from savers.method_table import Source, markdown, method_rows, plain
from savers.origins import METHODS

_PATH = click.Path(path_type=Path)
_UNIT = click.FloatRange(0, 1, min_open=True, max_open=True)


@dataclass(frozen=True)
class Request:
    """The command line."""

    pool: Path
    records: Path
    costs: Path
    large: str
    batch: int
    epsilon: float
    delta: float
    size: int
    as_json: bool

    @property
    def scope(self) -> Scope:
        """Of the search: every saver alone before the large model, by the plain rule."""
        claim = Claim(self.epsilon, self.delta, "wsr")
        plain_rule = Tried(scores=False, classes=False, combinations=False)
        return Scope(claim, self.size, lengths=(2,), finalists=1_000, options=plain_rule)


@click.command(
    cls=Command,
    epilog="Example: python -m savers.methods --pool zoo/fashion/models --costs records/costs.json",
)
@click.option(
    "--pool", type=_PATH, default=Path("zoo/fashion/models"), show_default=True, help="Model cards."
)
@click.option(
    "--records",
    type=_PATH,
    default=Path("records"),
    show_default=True,
    help="With selection/ and test/ below it, of the whole pool.",
)
@click.option("--costs", type=_PATH, required=True, help="Times, of calibration.search --costs.")
@click.option("--large", default="large", show_default=True, help="The model behind each saver.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Of --costs.")
@click.option("--epsilon", type=_UNIT, default=0.005, show_default=True, help="Largest drop.")
@click.option("--delta", type=_UNIT, default=0.0125, show_default=True, help="To be wrong.")
@click.option(
    "--certificate-size",
    "size",
    type=click.IntRange(1),
    default=8000,
    show_default=True,
    help="Samples that would certify.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(**options: Any) -> None:
    """Show what Kronecker factors, shared depth and incubation give beside their controls.

    A row for each model of a method and for each control, which was trained at equal total cost.
    Accuracy is that on the test split; the difference to a control has a 95 % interval of the
    paired bootstrap over its images, and knows nothing of other seeds. What a model costs as a
    saver is the forecast of calibration.search, on the selection split.
    """
    request = Request(**options)
    source = _source(request)
    rows = method_rows(METHODS, source)
    if request.as_json:
        click.echo(json.dumps(plain(rows, source), indent=2))
    else:
        click.echo(markdown(rows, source))


def _source(request: Request) -> Source:
    cards = load_pool(request.pool)
    wanted = {name for made in METHODS for name in (made.model, *made.controls)}
    if missing := sorted(wanted - set(cards)):
        raise CalibrationError(
            f"{request.pool}: no model {', '.join(missing)}. A method is compared with all of its "
            "controls or not at all; docs/savers.md has the commands that train them."
        )
    table = load_table(request.costs, cards, unit="time", batch=request.batch)
    selection = load_selection(request.pool, request.large, request.records / "selection")
    with progress_bar() as progress:
        found = SaverSearch(selection, table.costs(), request.scope, progress).run()
    return Source(request.pool, cards, load_split(cards, request.records / TEST), table, found)


if __name__ == "__main__":
    main(prog_name="python -m savers.methods")
