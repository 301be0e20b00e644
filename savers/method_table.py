"""What models of a method cost and reach, row by row, each with its controls below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from calibration.bootstrap import Interval
from calibration.cost_table import CostTable
from calibration.pool import Card
from calibration.reproduction import Split
from calibration.saver_search import Found, Ranked
from savers.origins import Made, origin
from savers.verdicts import Estimate, paired_bootstrap

MADE_FROM, CONTROL = "made from", "control"


@dataclass(frozen=True)
class Source:
    """What the rows are made from.

    Attributes
    ----------
    folder, cards
        The pool.
    test
        What its models answer on the test split.
    found
        Every model as the saver of the large one, on the selection split.
    """

    folder: Path
    cards: Mapping[str, Card]
    test: Split
    times: CostTable
    found: Found

    @cached_property
    def pairs(self) -> dict[str, Ranked]:
        """Cascades of one saver and the large model that are forecast to pay, cheapest first."""
        paying = {estimate.names for estimate in self.found.paying}
        return {item.names[0]: item for item in self.found.ranking if item.names in paying}


class Share(NamedTuple):
    """A share of the large model's time, with the bootstrap's interval of the screen."""

    value: float
    interval: Interval


class Row(NamedTuple):
    """A model of a method, what it was made from, or one of its controls.

    Attributes
    ----------
    role
        The method, ``made from`` or ``control``.
    milliseconds
        Per sample, in batches of the cost table.
    size
        Of the ONNX file in bytes.
    before, after
        Accuracy on training images held back, before and after its last training; None where that
        is not known, or there was nothing to compare before.
    accuracy
        On the test split.
    ahead
        By how many points of test accuracy the method's model is ahead of this one.
    as_saver
        Cost of the cascade of it and the large model, by time; None where that does not pay.
    minutes
        Of one CPU thread; without the training of what it was made from.
    """

    role: str
    model: str
    parameters: int
    macs: int
    milliseconds: float
    size: int
    before: float | None
    after: float | None
    accuracy: float
    ahead: Estimate | None
    as_saver: Share | None
    minutes: float | None


def method_rows(methods: Sequence[Made], source: Source) -> list[Row]:
    """Return a row for each model of the methods, then for what it was made from, and controls."""
    rows = []
    for made in methods:
        rows.append(_row(made.model, source, made.method))
        if made.source:
            rows.append(_row(made.source, source, MADE_FROM, beside=made.model))
        rows += [_row(control, source, CONTROL, beside=made.model) for control in made.controls]
    return rows


def _row(model: str, source: Source, role: str, *, beside: str = "") -> Row:
    card, right = source.cards[model], source.test.right
    by_size = source.times.models[model].by_size
    ahead = None
    if beside:
        hits = (right[beside][None], right[model][None])
        ahead = paired_bootstrap(lambda ours, theirs: 100 * (ours - theirs), *hits)
    return Row(
        role,
        model,
        card.parameters,
        card.macs,
        1000 * by_size[source.times.batch] / source.times.batch,
        (source.folder / card.file).stat().st_size,
        card.accuracy_before,
        card.monitored_accuracy,
        float(right[model].mean()),
        ahead,
        _as_saver(model, source),
        None if card.training_seconds is None else card.training_seconds / 60,
    )


def _as_saver(model: str, source: Source) -> Share | None:
    pair, alone = source.pairs.get(model), source.found.alone
    if pair is None:
        return None
    return Share(pair.cost / alone, Interval(*(end / alone for end in pair.interval)))


def best_pairs(source: Source) -> dict[str, Ranked]:
    """Return the cheapest cascade of one saver and the large model by the origin of the saver."""
    best: dict[str, Ranked] = {}
    for saver, item in source.pairs.items():
        best.setdefault(origin(saver), item)
    return best


def markdown(rows: Sequence[Row], source: Source) -> str:
    """Return the table and what it says of savers, as Markdown."""
    return "\n".join([*_table(rows), "", *_sentences(rows, source)])


def _table(rows: Sequence[Row]) -> Iterator[str]:
    columns = (
        "",
        "what",
        "parameters",
        "MMAC",
        "µs",
        "kB",
        "before",
        "after",
        "test %",
        "ahead, points",
        "as saver",
        "minutes",
    )
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    yield from (f"| {' | '.join(_cells(row))} |" for row in rows)


def _cells(row: Row) -> Iterator[str]:
    yield f"**{row.model}**" if row.ahead is None else row.model
    yield row.role
    yield f"{row.parameters:,}"
    yield f"{row.macs / 1e6:.2f}"
    yield f"{1000 * row.milliseconds:.0f}"
    yield f"{row.size / 1e3:.0f}"
    yield _percent(row.before)
    yield _percent(row.after)
    yield f"{100 * row.accuracy:.2f}"
    yield _points(row.ahead) if row.ahead else ""
    yield _share(row.as_saver) if row.as_saver else "no"
    yield "" if row.minutes is None else f"{row.minutes:.0f}"


def _sentences(rows: Sequence[Row], source: Source) -> Iterator[str]:
    first, alone = next(iter(source.found.ranking), None), source.found.alone
    best = best_pairs(source)
    for name, item in best.items():
        saver, large = item.names
        beside = "the cheapest"
        if first and item is not first:
            low, high = item.to_best
            beside = f"{item.cost / first.cost:.2f} times the cheapest ({low:.2f} to {high:.2f})"
        yield f"- {name}: {saver} at {item.cost / alone:.3f} of {large} alone, {beside}"
    made = dict.fromkeys(row.role for row in rows if row.role not in (MADE_FROM, CONTROL))
    yield from (f"- {method}: no saver that pays" for method in made if method not in best)


def plain(rows: Sequence[Row], source: Source) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    best = {method: list(item.names) for method, item in best_pairs(source).items()}
    return {
        "large": source.found.selection.pool.large,
        "batch": source.times.batch,
        "device": source.times.device,
        "rows": [_plain_row(row) for row in rows],
        "best": best,
    }


def _plain_row(row: Row) -> dict[str, Any]:
    found = row._asdict()
    found["ahead"] = row.ahead and row.ahead._asdict()
    share = row.as_saver
    found["as_saver"] = share and {"value": share.value, **share.interval._asdict()}
    return found


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _points(found: Estimate) -> str:
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _share(found: Share) -> str:
    return f"{found.value:.3f} ({found.interval.low:.3f} to {found.interval.high:.3f})"
