"""TinySaver's own experiments (arXiv 2403.17726) on the records of a pool, and ours beside them.

Everything here is judged on the test split, and some of it is chosen there too, because the paper's
protocol does: nothing from this module may go into a cascade.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.costs import Costs
from calibration.errors import CalibrationError
from calibration.oracle import Operating, cheapest_within, pareto_points
from calibration.paper import PaperScore, paper_score
from calibration.pool import Card
from calibration.records import Labels, load_records, refuse_foreign_labels
from kernels import reference
from runtime.schema import Combination, Score, Threshold
from runtime.simulation import Simulation

Flags = npt.NDArray[np.bool_]
Logits = npt.NDArray[np.float32]

HALF_A_POINT = 0.005
QUOTED_DROPS = (0.0001, HALF_A_POINT, 0.01)
"""At which the paper quotes its results."""
TEST = "test"


class Facts(NamedTuple):
    """A model on a split: where it is right, bool [n], and its confidence, f32 [n]."""

    right: Flags
    confidence: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Split:
    """What the models of a pool answer on one split.

    Attributes
    ----------
    logits
        f32 [n, K] by model.
    labels
        i32 [n].
    """

    name: str
    logits: Mapping[str, Logits]
    labels: Labels

    @cached_property
    def facts(self) -> Mapping[str, Facts]:
        """Of each model; the paper's records keep confidences as float32."""
        found = {name: reference.softmax(z) for name, z in self.logits.items()}
        return {
            name: Facts(one.label == self.labels, one.confidence.astype(np.float32))
            for name, one in found.items()
        }

    @property
    def right(self) -> dict[str, Flags]:
        """Where each model alone is right."""
        return {name: facts.right for name, facts in self.facts.items()}


class Line(NamedTuple):
    """One way to a cascade, and what came of it on the test split.

    Attributes
    ----------
    way
        ``oracle``, ``first violation``, ``sweep``, ``certified`` or ``forecast``.
    drop
        What was to be lost at most; None where the way has no such number.
    chosen_on
        The split that thresholds and, for the paper's ways, the saver were chosen on.
    rates
        Share of all test samples that each gate sends on.
    harm, help
        Test samples where only the large model is right, and only the cascade.
    scores, combination
        What gates read, none for max-softmax, and what the last stage adds to its logits.
    """

    way: str
    drop: float | None
    chosen_on: str
    names: tuple[str, ...]
    thresholds: tuple[Threshold, ...]
    rates: tuple[float, ...]
    harm: int
    help: int
    scores: tuple[Score, ...] = ()
    combination: Combination | None = None

    def saved(self, costs: Costs) -> float:
        """Return which share of the large model's cost is saved.

        Raises
        ------
        KeyError
            When a stage has no cost: one that reads another's tensors is not timed alone.
        """
        cost = costs.cascade(self.names, np.array(self.rates))
        return 1 - float(cost) / costs.alone(self.names[-1])

    def is_counted(self, costs: Costs) -> bool:
        """Tell whether every stage has such a cost."""
        try:
            self.saved(costs)
        except KeyError:
            return False
        return True


@dataclass(frozen=True)
class Protocol:
    """The paper's method for one large model.

    Attributes
    ----------
    macs
        Multiply-accumulates by model.
    splits
        Records by name of the split; ``test`` judges.
    """

    large: str
    macs: Mapping[str, int]
    splits: Mapping[str, Split]

    def scores(self, split: str) -> list[PaperScore]:
        """Return the paper's score of every saver on a split, best first."""
        records, limit = self.splits[split], self.macs[self.large]
        scores = [
            paper_score(
                name,
                records.logits[name],
                records.logits[self.large],
                records.labels,
                cost_ratio=self.macs[name] / limit,
            )
            for name in self.savers
        ]
        return sorted(scores, key=lambda score: score.delta_c)

    @property
    def savers(self) -> list[str]:
        """Models that have fewer multiply-accumulates than the large one."""
        limit = self.macs[self.large]
        return [name for name in self.splits[TEST].logits if self.macs[name] < limit]

    def lines(self) -> Iterator[Line]:
        """Yield what the paper quotes, its zero-loss rule, and the same thresholds carried over."""
        theirs = self.scores(TEST)[0].saver
        for drop in QUOTED_DROPS:
            yield self.played("oracle", drop, TEST, theirs, self.sweep(theirs, TEST, drop))
        for split in self.splits:
            score = self.scores(split)[0]
            yield self.played("first violation", None, split, score.saver, score.threshold)
        for split in self.splits:
            if split != TEST:
                saver = self.scores(split)[0].saver
                chosen = self.sweep(saver, split, HALF_A_POINT)
                yield self.played("sweep", HALF_A_POINT, split, saver, chosen)

    def best_oracle(self, drop: float) -> Line:
        """Return the saver that an oracle would take: the one that saves most on the test split."""
        lines = [
            self.played("oracle", drop, TEST, name, self.sweep(name, TEST, drop))
            for name in self.savers
        ]
        limit = self.macs[self.large]
        return min(lines, key=lambda line: self.macs[line.names[0]] / limit + line.rates[0])

    def sweep(self, saver: str, split: str, drop: float) -> float:
        """Return the threshold that keeps most on a split and loses no more than ``drop`` there."""
        points: Sequence[Operating] = pareto_points(
            self.splits[split].facts[saver].confidence,
            self.splits[split].facts[saver].right,
            self.splits[split].facts[self.large].right,
        )
        return cheapest_within(points, drop).threshold

    def played(
        self, way: str, drop: float | None, split: str, saver: str, threshold: float
    ) -> Line:
        """Return a saver and a threshold that were chosen on a split, judged on the test split."""
        test = self.splits[TEST].facts
        # The paper's rule, in its own precision; ours differs at exact hits.
        kept = test[saver].confidence.astype(np.float64) > threshold
        harm = int((kept & ~test[saver].right & test[self.large].right).sum())
        help_ = int((kept & test[saver].right & ~test[self.large].right).sum())
        names, rate = (saver, self.large), float((~kept).mean())
        return Line(way, drop, split, names, (threshold,), (rate,), harm, help_)


def load_split(cards: Mapping[str, Card], folder: Path) -> Split:
    """Read what the models of a pool answered on a split.

    Raises
    ------
    CalibrationError
        When a record is missing, damaged, or of another model, data or split than the others and
        the folder's name, or the data have no labels or labels that are no class.
    """
    records = load_records(folder, [card.stage() for card in cards.values()])
    name, labels = records[0].meta.data, records[0].labels
    if name != folder.name:
        raise CalibrationError(f"{folder}: expected records of {folder.name}, got of {name}.")
    if labels is None:
        raise CalibrationError(f"{folder}: expected labels, the records have none.")
    refuse_foreign_labels(folder, records[0])
    logits = {name: record.logits for name, record in zip(cards, records, strict=True)}
    return Split(name, logits, labels)


def played(
    way: str,
    drop: float | None,
    names: Sequence[str],
    simulation: Simulation,
    thresholds: Sequence[Threshold],
    *,
    combination: Combination | None,
) -> Line:
    """Return a cascade of ours, chosen on the selection split, judged on the test split.

    Parameters
    ----------
    simulation
        Of the cascade on the test split.
    """
    drops = simulation.drops(thresholds)
    rates = simulation.escalation_rates(thresholds)
    harm, help_ = int((drops > 0).sum()), int((drops < 0).sum())
    chosen = (tuple(names), tuple(thresholds), rates, harm, help_, simulation.scores, combination)
    return Line(way, drop, "selection", *chosen)
