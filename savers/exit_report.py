"""What a study of exits found, as tables for people and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from calibration.certificates import FORECAST_LABEL
from kernels import reference
from savers.exit_choice import REST, Screened, exit_name, exit_positions
from savers.exit_study import Found, Study
from savers.exit_table import Row, as_json

Measured = tuple[list[Row], dict[str, Any]]
"""The rows of a comparison, and what is said of the large model alone."""


def show(console: Console, study: Study, found: Found, table: Measured, out: Path | None) -> None:
    """Print the grid, what was chosen, and the comparison where there is one."""
    large = study.models.large.card
    claim = study.plan.claim
    console.print(
        f"{FORECAST_LABEL.capitalize()}: exits in {large.name} behind "
        f"{study.models.savers[-1].card.name}, at a drop of at most {claim.epsilon:g}, delta "
        f"{claim.delta:g}, {study.plan.size} samples",
        _grid(found),
        *(_exits(found) if found.best else ()),
        *_verdict(found, large.name),
        *([_comparison(table, large.macs)] if table[0] else ()),
        *([f"Wrote {out}. Not certified."] if out else ()),
        sep="\n",
        highlight=False,
    )


def summary(study: Study, found: Found, table: Measured, out: Path | None) -> dict[str, Any]:
    """Return everything that was found, for JSON."""
    question = found.question
    chosen = [
        as_json(Row(item, question.costs(item.trial).stages(item.names)), question.blocks[-1])
        for item in found.chosen.values()
    ]
    return {
        "label": FORECAST_LABEL,
        "savers": question.savers,
        "large": study.models.large.card.name,
        "large_macs": question.blocks[-1],
        "block_macs": question.blocks[:-1],
        "claim": {
            "epsilon": question.claim.epsilon,
            "delta": question.claim.delta,
            "n": question.size,
        },
        "grid": [
            {"exits": title, "stages": item.names, "macs": item.cost}
            for title, items in _best_by_trial(found).items()
            for item in items
        ],
        "chosen": chosen,
        "exit_accuracies": _accuracies(found),
        "table": [as_json(row, question.blocks[-1]) for row in table[0]],
        "large_alone": table[1],
        "bundle": None if out is None else str(out),
    }


def _best_by_trial(found: Found) -> dict[str, list[Screened]]:
    """Return each trial's cheapest cascade for each number of exits."""
    best: dict[str, dict[int, Screened]] = {}
    for item in found.screened:
        if item.trial is not None:
            counts = best.setdefault(item.trial.title, {})
            counts.setdefault(len(exit_positions(item.names)), item)
    return {title: [counts[key] for key in sorted(counts)] for title, counts in best.items()}


def _grid(found: Found) -> Table:
    rows = _best_by_trial(found)
    counts = max(len(items) for items in rows.values())
    table = Table("heads", *(f"{count} exit(s): MMAC" for count in range(1, counts + 1)))
    for title, items in sorted(rows.items()):
        cells = [f"{_blocks(item.names)}: {item.cost / 1e6:.3f}" for item in items]
        table.add_row(title, *cells)
    return table


def _blocks(names: tuple[str, ...]) -> str:
    return "after " + ", ".join(map(str, exit_positions(names)))


def _accuracies(found: Found) -> dict[str, float]:
    """Return the accuracy on the selection split of savers, the best heads' exits and the rest."""
    question, best = found.question, found.best
    trial = best.trial if best else None
    exits = {exit_name(n): z for n, z in enumerate(trial.logits, 1)} if trial else {}
    saver = {name: question.answers[name] for name in question.savers}
    answers = {**saver, **exits, REST: question.answers[REST]}
    labels = question.labels
    return {
        name: float((reference.softmax(logits).label == labels).mean())
        for name, logits in answers.items()
    }


def _exits(found: Found) -> list[Any]:
    best = found.best
    assert best is not None and best.trial is not None
    shares = (f"{name} {accuracy:.2%}" for name, accuracy in _accuracies(found).items())
    return [f"Right alone, heads of {best.trial.title}: {', '.join(shares)}"]


def _verdict(found: Found, large: str) -> list[str]:
    best = found.best
    if best is None:
        return ["No cascade with exits passes a forecast at this claim: exits do not pay here."]
    question = found.question
    plain = question.plain((*question.savers, REST), draws=best.forecast.draws)
    names = " -> ".join(best.names)
    text = f"Cheapest with exits: {names}, {best.cost / 1e6:.3f} MMAC a sample"
    if plain is None:
        return [f"{text}. Without them no forecast passes."]
    change = best.cost / plain.cost - 1
    pays = "exits pay" if change < 0 else "exits do not pay"
    return [
        f"{text}; without exits {plain.cost / 1e6:.3f}: {change:+.1%}, so {pays} here, in "
        f"multiply-accumulates. {large} alone: {question.blocks[-1] / 1e6:.2f}."
    ]


def _comparison(measured: Measured, large_macs: int) -> Table:
    rows, alone = measured
    title = f"Cascades; large alone {alone['milliseconds']:.4f} ms per image"
    if "test_accuracy" in alone:
        title += f", test accuracy {alone['test_accuracy']:.2%}"
    table = Table(
        "stages",
        "answered by each",
        "MMAC, 10 to 90 % of draws",
        "saved",
        "ms",
        "speedup",
        "test drop (95 %)",
        "test MMAC",
        title=title,
    )
    for row in rows:
        table.add_row(*_cells(row, large_macs))
    return table


def _cells(row: Row, large_macs: int) -> list[str]:
    estimate, seen = row.estimate, row.seen
    cells = [
        " -> ".join(row.names) + (f" ({estimate.trial.title})" if estimate.trial else ""),
        ", ".join(f"{share:.1%}" for share in estimate.accept_rates),
        f"{estimate.cost / 1e6:.3f} ({min(estimate.costs) / 1e6:.3f} to "
        f"{max(estimate.costs) / 1e6:.3f})",
        f"{1 - estimate.cost / large_macs:.1%}",
        f"{row.milliseconds:.4f}",
        f"{row.speedup:.2f}x",
    ]
    if seen is None:
        return [*cells, "-", "-"]
    low, high = seen.interval
    return [
        *cells,
        f"{100 * seen.drop:.2f} ({100 * low:.2f} to {100 * high:.2f})",
        f"{seen.macs / 1e6:.3f}",
    ]
