"""What an experiment of `savers.reproduce` gives: verdicts, the figures behind them, remarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from savers.configurations import Size
from savers.distil import predict
from savers.image_set import ImageSet
from savers.recipe import Recipe
from savers.verdicts import Verdict
from savers.views import Examples

BATCH = 500


class Figures(NamedTuple):
    """A table of what was measured; a row is a list of a text or number per column."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str | float, ...]]

    def described(self) -> dict[str, JsonValue]:
        """Return what ``--json`` prints."""
        rows: list[JsonValue] = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows}


@dataclass(frozen=True)
class Request:
    """What is asked of an experiment.

    Attributes
    ----------
    seeds
        Of the trainings, fixed in advance: 0, 1, 2.
    quick
        Whether it is only to run from end to end, with too few epochs to mean anything.
    progress
        Where it shows how far it is.
    images
        What it trains on and tests on.
    size
        Which configuration of the experiment.
    device
        Of PyTorch.
    """

    seeds: Sequence[int]
    quick: bool
    progress: Progress
    images: ImageSet
    size: Size = "small"
    device: str = "cpu"


@dataclass(frozen=True)
class Experiment:
    """What an experiment found.

    Attributes
    ----------
    paper
        Title and number of the paper.
    remarks
        What a reader must know to read the figures.
    """

    paper: str
    verdicts: list[Verdict]
    figures: list[Figures]
    remarks: list[str] = field(default_factory=list)

    def described(self) -> dict[str, JsonValue]:
        """Return what ``--json`` prints."""
        return {
            "paper": self.paper,
            "verdicts": [verdict.described() for verdict in self.verdicts],
            "figures": [figures.described() for figures in self.figures],
            "remarks": list(self.remarks),
        }

    def unjudged(self) -> Experiment:
        """Return the same with figures beside the bars and no verdicts."""
        verdicts = [replace(verdict, judged=False) for verdict in self.verdicts]
        return replace(self, verdicts=verdicts)

    def show(self, console: Console) -> None:
        """Print the tables, the verdicts last."""
        console.print(self.paper, style="bold", highlight=False)
        for figures in self.figures:
            console.print(_table(figures.title, figures.columns, figures.rows))
        columns = ("claim", "control", "bar", "found", "95 %", "verdict")
        console.print(_table("Verdicts", columns, [_verdict_row(item) for item in self.verdicts]))
        for remark in self.remarks:
            console.print(remark, highlight=False)


Runner = Callable[[Request], Experiment]


def right(network: nn.Module, images: ImageSet) -> npt.NDArray[np.bool_]:
    """Return for each test image whether a network names its class, ``bool [n]``."""
    examples = images.examples(images.test, Recipe(epochs=0, seed=0))
    found = answers(network, examples).argmax(-1)
    hits: npt.NDArray[np.bool_] = torch.eq(found, examples.labels).numpy()
    return hits


def answers(network: nn.Module, examples: Examples) -> torch.Tensor:
    """Return a network's logits ``f32 [n, K]`` of all examples, on the host."""
    device = next(network.parameters()).device
    starts = np.arange(0, len(examples.labels), BATCH)
    parts = np.split(np.arange(len(examples.labels)), starts[1:])
    return torch.cat([predict(network, examples.plain(rows).to(device)).cpu() for rows in parts])


def _verdict_row(verdict: Verdict) -> tuple[str | float, ...]:
    value, low, high = (round(number, 3) for number in verdict.estimate)
    bar = verdict.bar
    return bar.claim, bar.control, bar.text(), value, f"{low:g} to {high:g}", verdict.outcome


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1))
    for place, column in enumerate(columns):
        number = all(not isinstance(row[place], str) for row in rows)
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str) else f"{cell:,.6g}" for cell in row))
    return table
