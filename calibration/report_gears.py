"""The gears of a report's cascade: the thresholds in force and those above them, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from calibration.report_figures import Point, Trade
from calibration.report_material import Material
from calibration.report_words import percent, threshold_words
from runtime.schema import Disagreement, Threshold


class GearRow(NamedTuple):
    """A line of the table of gears.

    Attributes
    ----------
    rates
        Share of all samples that each gate sends on.
    costs
        Per sample, of each trade.
    disagreement
        What a drift guard compares with at this gear, if anything.
    """

    name: str
    thresholds: tuple[Threshold, ...]
    rates: tuple[float, ...]
    costs: list[float]
    accuracy: float
    disagreement: Disagreement | None


def gear_rows(material: Material, trades: Sequence[Trade], state: str) -> list[GearRow]:
    """Return the thresholds in force and every gear, the cheapest first.

    Parameters
    ----------
    state
        Of the certification of the thresholds in force.
    """
    setting = material.recorded.setting
    mark = "certified" if state == "certified" else "in force"
    points: list[list[Point]] = [[trade.here, *reversed(trade.gears)] for trade in trades]
    vectors = [setting.thresholds, *reversed(setting.gears)]
    names = [mark, *(f"gear {number}" for number in range(1, len(vectors)))]
    bounds = {_frozen(item.thresholds): item for item in setting.disagreements}
    rows = []
    for name, vector, *costs in zip(names, vectors, *points, strict=True):
        rates = material.simulation.escalation_rates(vector)
        spent = [point.cost for point in costs]
        bound = bounds.get(_frozen(vector))
        rows.append(GearRow(name, vector, rates, spent, costs[0].accuracy, bound))
    return rows


def gear_words(rows: Sequence[GearRow], *, certified: bool) -> Iterator[str]:
    """Say what gears are, and what a drift guard would compare with."""
    if len(rows) > 1:
        yield "A cascade may shift to a gear under load or doubt, whatever the images are."
        if certified:
            yield "Each is an earlier point of the path that was certified, and promises the same."
    bound = rows[0].disagreement
    if bound:
        yield (
            f"Drift: of {bound.n:,} {bound.data} images an earlier stage answered "
            f"{bound.count:,} otherwise than the last one would have; a drift guard is alarmed "
            f"where that share is, beyond chance and tolerance, more than "
            f"{percent(bound.upper_bound)}."
        )


def gear_cells(row: GearRow) -> list[str]:
    """Return the cells of a row that need no unit: thresholds, sent on, accuracy, drift bound."""
    return [
        " / ".join(map(threshold_words, row.thresholds)),
        " / ".join(f"{100 * rate:.1f}" for rate in row.rates) + " %",
        percent(row.accuracy),
        percent(row.disagreement.upper_bound) if row.disagreement else "",
    ]


def _frozen(vector: Sequence[Threshold]) -> tuple[object, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in vector)
