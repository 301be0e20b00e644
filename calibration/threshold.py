"""Certify the thresholds of a bundle: ``python -m calibration.threshold --help``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from calibration.bounds import METHODS, Method
from calibration.budget import FILE_NAME, LIFETIME_DELTA, Budget
from calibration.certificates import Forecast, forecast
from calibration.errors import CalibrationError, CertificationRefused
from calibration.recheck import recheck
from calibration.recorded import (
    Claim,
    Recorded,
    certify_recorded,
    coverage,
    load_recorded,
    starting_path,
)
from calibration.records import load_data, refuse_held_out
from calibration.saving import saved_share
from calibration.settings import write_certificate, write_forecast, write_gears
from runtime.bundle import load_bundle
from runtime.certification import certification
from runtime.schema import CascadeSpec, Certificate, Threshold
from runtime.terminal import Command


@dataclass(frozen=True)
class Request:
    """The command line."""

    bundle: Path
    records: Path | None
    data: Path | None
    epsilon: float
    delta: float
    method: Method
    labels: bool | None
    forecast: bool
    write: bool
    size: int
    draws: int
    recheck: Path | None
    gears: bool
    selection: Path | None
    budget: Path | None
    allow_unknown: bool
    as_json: bool

    @property
    def claim(self) -> Claim:
        """What is to be certified."""
        return Claim(self.epsilon, self.delta, self.method)

    def recorded(self) -> Recorded:
        """Read the bundle and its records."""
        if self.records is None:
            raise click.UsageError("Pass --records DIR; only --gears can do without.")
        recorded = load_recorded(
            load_bundle(self.bundle), self.records, label_free=self.labels is False
        )
        if self.labels and recorded.labels is None:
            raise CalibrationError(f"{self.records}: no labels. Pass --label-free to go without.")
        return recorded

    def open_budget(self) -> Budget | None:
        """Return the budget named by --budget, or the one beside cascade.json, or none."""
        beside = self.bundle / FILE_NAME
        if self.budget is None and not beside.exists():
            return None
        return Budget(self.budget or beside)


_PATH = click.Path(path_type=Path)
_UNIT = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.threshold zoo/fashion --records records/certificate "
    "--data zoo/fashion/data/certificate.npz --epsilon 0.005 --delta 0.0125",
)
@click.argument("bundle", type=_PATH)
@click.option("--records", type=_PATH, help="Folder with a record of each stage.")
@click.option("--data", type=_PATH, help="The data that were recorded; needed to certify.")
@click.option("--epsilon", type=_UNIT, default=0.005, show_default=True, help="Largest drop.")
@click.option("--delta", type=_UNIT, default=0.0125, show_default=True, help="Chance to be wrong.")
@click.option("--method", type=click.Choice(METHODS), default="wsr", show_default=True)
@click.option(
    "--labels/--label-free",
    default=None,
    help="Certify the drop in accuracy, or the disagreement with the large model. "
    "[default: by what the records have]",
)
@click.option("--forecast", is_flag=True, help="Only estimate, from selection records.")
@click.option(
    "--write",
    is_flag=True,
    help="Write the forecast's median thresholds for the forms of the records, not certified.",
)
@click.option(
    "--size", type=click.IntRange(1), default=8000, show_default=True, help="Of a forecast."
)
@click.option(
    "--draws", type=click.IntRange(1), default=100, show_default=True, help="Of a forecast."
)
@click.option("--recheck", type=_PATH, help="Only compare decisions with those of other records.")
@click.option(
    "--gears",
    is_flag=True,
    help="Only give the certificates of BUNDLE their gears and the bound on their saving.",
)
@click.option(
    "--selection",
    type=_PATH,
    help="Selection records, to space gears by what they escalate. [default: along the path]",
)
@click.option("--budget", type=_PATH, help=f"[default: {FILE_NAME} beside cascade.json, if any]")
@click.option(
    "--allow-unknown-provenance",
    "allow_unknown",
    is_flag=True,
    help="Certify without knowing what training or selection used; the certificate says so.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(**options: Any) -> None:
    """Certify how far the thresholds of BUNDLE may go down, and write them to its cascade.json.

    The path was chosen on the selection split; the certifying samples must have decided nothing
    else. Where there is a budget, each certification is paid for before it is run, also one that is
    refused, unless there are too few samples for any; the same one again is free. A forecast
    resamples the selection split and costs nothing.

    Gears are earlier points of the path, to which a running cascade may shift: they keep the same
    epsilon.
    """
    request = Request(**options)
    if request.write and not request.forecast:
        raise click.UsageError("--write goes with --forecast; a certificate is always written.")
    if request.forecast:
        _forecast(request)
    elif request.gears:
        _gears(request)
    elif request.recheck:
        _recheck(request, request.recheck)
    else:
        _certify(request)


def _certify(request: Request) -> None:
    if request.data is None:
        raise click.UsageError("To certify, pass --data FILE: the samples are checked for overlap.")
    recorded = request.recorded()
    covers = coverage(recorded, load_data(request.data), allow_unknown=request.allow_unknown)
    budget = request.open_budget()
    outcome = certify_recorded(recorded, request.claim, covers, budget=budget)
    if outcome.certificate is None:
        raise CertificationRefused(f"{outcome.refused} cascade.json is unchanged.")
    selection = _selection(request)
    spec = write_certificate(recorded, outcome.certificate, selection=selection)
    if request.as_json:
        spent = None if budget is None else {"spent": budget.spent(), "total": LIFETIME_DELTA}
        certificate = outcome.certificate.model_dump(mode="json")
        shown = {"certificate": certificate, "gears": spec.settings[recorded.key].gears}
        click.echo(json.dumps({**shown, "budget": spent}, indent=2))
    else:
        _show_certificate(Console(), recorded, spec, outcome.certificate)
        _show_budget(budget)


def _gears(request: Request) -> None:
    if request.records is not None:
        raise click.UsageError("--gears reads --selection DIR, or no records at all.")
    spec = write_gears(load_bundle(request.bundle), _selection(request))
    found = {key: item for key, item in spec.settings.items() if item.certificate}
    if request.as_json:
        shown = {key: item.model_dump(mode="json") for key, item in found.items()}
        click.echo(json.dumps(shown, indent=2))
        return
    table = Table(title=f"{spec.name}: certified points")
    for column in ("forms", "thresholds", "MACs saved at least"):
        table.add_column(column)
    for key, item in found.items():
        for gear in item.gears:
            table.add_row(key, _numbers(gear), "gear")
        table.add_row(key, _numbers(item.thresholds), _saving(item.certificate))
    Console().print(table)


def _selection(request: Request) -> Recorded | None:
    if request.selection is None:
        return None
    return load_recorded(load_bundle(request.bundle), request.selection)


def _forecast(request: Request) -> None:
    claim, recorded = request.claim, request.recorded()
    refuse_held_out(recorded.records[0], use="A forecast")
    result = _forecast_recorded(recorded, claim, request)
    if request.write:
        write_forecast(recorded, result.median_thresholds)
    if request.as_json:
        click.echo(json.dumps(result._asdict(), indent=2))
    else:
        Console().print(_forecast_table(recorded, result))


def _forecast_recorded(recorded: Recorded, claim: Claim, request: Request) -> Forecast:
    try:
        return forecast(
            recorded.logits,
            recorded.labels,
            starting_path(recorded.bundle.spec, recorded.forms),
            n=request.size,
            epsilon=claim.epsilon,
            delta=claim.delta,
            scores=recorded.scores,
            method=claim.method,
            draws=request.draws,
            combination=recorded.combination,
            gate_scores=recorded.gate_scores,
        )
    except ValueError as error:
        raise CalibrationError(f"{recorded.bundle.folder}: {error}") from None


def _recheck(request: Request, other: Path) -> None:
    first = request.recorded()
    result = recheck(first, load_recorded(first.bundle, other))
    if request.as_json:
        click.echo(json.dumps(dataclasses.asdict(result), indent=2))
        return
    table = Table(title=f"Changed decisions, {result.n:,} samples")
    table.add_column("what")
    table.add_column("share", justify="right")
    for gate, share in enumerate(result.gates):
        table.add_row(f"gate after {first.bundle.spec.stages[gate].name}", f"{share:.3%}")
    table.add_row("answering stage", f"{result.stage:.3%}")
    table.add_row("answer", f"{result.label:.3%}")
    Console().print(table)


def _show_certificate(
    console: Console, recorded: Recorded, spec: CascadeSpec, certificate: Certificate
) -> None:
    engine = recorded.records[0].meta.engine
    state = certification(spec, recorded.forms, engine=engine, thresholds=certificate.thresholds)
    console.print(f"{spec.name}: {state}")
    table = Table(show_header=False)
    gears = len(spec.settings[recorded.key].gears)
    for name, value in _facts(spec, certificate, gears).items():
        table.add_row(name, value)
    console.print(table)


def _facts(spec: CascadeSpec, certificate: Certificate, gears: int) -> dict[str, str]:
    covers = certificate.covers
    harm = "other answers" if certificate.quantity == "disagreement" else "harm / help"
    counts = (
        [certificate.harm]
        if certificate.quantity == "disagreement"
        else [certificate.harm, certificate.help]
    )
    return {
        "thresholds": _numbers(certificate.thresholds),
        "gears above": str(gears),
        "point of the path": f"{certificate.passed} of {len(certificate.path.vectors()) - 1}",
        "method": certificate.method,
        harm: " / ".join(str(count) for count in counts) + f" of {certificate.n:,}",
        "escalated": _percent(certificate.escalation_rates),
        "MACs saved": f"{_macs_saved(spec, certificate.escalation_rates):.1%} of these",
        "MACs saved at least": _saving(certificate),
        "provenance": covers.provenance if covers else "-",
    }


def _show_budget(budget: Budget | None) -> None:
    if budget is None:
        click.echo(
            "No budget: nothing counts how often these data certify. --budget FILE begins one."
        )
    else:
        click.echo(f"Budget: {budget.spent():g} of {LIFETIME_DELTA:g} spent.")


def _forecast_table(recorded: Recorded, result: Forecast) -> Table:
    table = Table(
        title=f"Forecast for n = {result.n:,}: {result.label}",
        caption=f"{result.draws} draws, {result.refused} of them refused",
    )
    for column in ("quantile", "point", "thresholds", "escalated", "MACs saved"):
        table.add_column(column, justify="right")
    rows = zip(
        result.levels, result.passed, result.thresholds, result.escalation_rates, strict=True
    )
    for level, passed, thresholds, rates in rows:
        saved = f"{_macs_saved(recorded.bundle.spec, rates):.1%}"
        table.add_row(f"{level:g}", str(passed), _numbers(thresholds), _percent(rates), saved)
    return table


def _macs_saved(spec: CascadeSpec, rates: Sequence[float]) -> float:
    macs = [stage.macs for stage in spec.stages]
    return saved_share(macs, rates, large=spec.stages[-1].macs_alone)


def _saving(certificate: Certificate | None) -> str:
    saving = certificate.saving if certificate else None
    if saving is None:
        return "no bound"
    return f"{saving.lower_bound:.1%} with {1 - saving.delta:.0%} confidence"


def _numbers(values: Sequence[Threshold]) -> str:
    return " / ".join(map(_number, values))


def _number(value: Threshold) -> str:
    if isinstance(value, list):
        return f"{min(value):.4f} to {max(value):.4f} by class"
    return f"{value:.4f}"


def _percent(rates: Sequence[float]) -> str:
    return " / ".join(f"{rate:.1%}" for rate in rates)


if __name__ == "__main__":
    main(prog_name="python -m calibration.threshold")
