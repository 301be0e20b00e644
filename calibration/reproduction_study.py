"""What is reproduced for one large model: the paper's protocol, and our search beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from calibration.candidates import load_selection
from calibration.cost_table import CostTable
from calibration.costs import Costs, MacCosts
from calibration.errors import CalibrationError
from calibration.front import Single, static_front
from calibration.paper import PaperScore
from calibration.pool import Card
from calibration.ranking import Estimate
from calibration.recorded import Recorded
from calibration.reproduction import HALF_A_POINT, TEST, Line, Protocol, Split, played
from calibration.saver_search import Found, SaverSearch, Scope
from calibration.standing import Standing, contest, standing
from runtime.schema import Certificate
from runtime.simulation import Simulation


class Ranked(NamedTuple):
    """A cascade and its expected cost per sample at the claim, estimated on selection."""

    names: tuple[str, ...]
    cost: float


class Study(NamedTuple):
    """What was found for one large model.

    Attributes
    ----------
    macs, accuracy, n
        Of the large model: per sample, and on the test split of n samples.
    lines
        Ways to a cascade, judged on the test split: the paper's, then ours.
    oracle
        The saver that saves most on the test split where half a point may be lost.
    certificate
        Of our line; None where it is a forecast.
    scores
        The paper's score of every saver by split, best first.
    pairs, best
        Our ranking: one saver before the large model, cheapest first, and the best cascade of all;
        None where no saver pays. Their cost is in ``unit``, as ``alone``, the large model's.
    standings
        Our line beside the cheapest single model as accurate, by each kind of cost.
    front
        Static front of all single models by multiply-accumulates, with test accuracy.
    """

    large: str
    macs: int
    accuracy: float
    n: int
    lines: list[Line]
    oracle: Line
    certificate: Certificate | None
    scores: dict[str, list[PaperScore]]
    pairs: list[Ranked]
    best: Ranked | None
    unit: str
    alone: float
    standings: list[Standing]
    front: list[Single]


@dataclass(frozen=True)
class Sources:
    """What studies are made from.

    Attributes
    ----------
    folder, cards
        The pool.
    records
        Folder of records, with those of each split below it.
    splits
        Records by name of the split.
    bundle
        With its records of the test split; its setting is the certified cascade.
    timed
        Measured times; None compares multiply-accumulates only.
    scope
        Of our search.
    """

    folder: Path
    cards: Mapping[str, Card]
    records: Path
    splits: Mapping[str, Split]
    bundle: Recorded
    timed: CostTable | None
    scope: Scope

    @property
    def costs(self) -> list[Costs]:
        """Multiply-accumulates of every model and stage, and times."""
        stages = {stage.name: stage.macs for stage in self.bundle.bundle.spec.stages}
        macs = {**{name: card.macs for name, card in self.cards.items()}, **stages}
        return [MacCosts(macs), *([self.timed.costs()] if self.timed else [])]

    def study(self, large: str, progress: Progress) -> Study:
        """Reproduce the paper for one large model.

        Raises
        ------
        CalibrationError
            When the pool has no such model or no cheaper one, or records do not fit.
        """
        macs = {name: card.macs for name, card in self.cards.items()}
        protocol = Protocol(large, macs, self.splits)
        test = self.splits[TEST]
        found = self._search(large, progress)
        if not protocol.savers:
            raise CalibrationError(
                f"{self.folder}: no model has fewer multiply-accumulates than {large}, so none can "
                "be its saver. Name another --large."
            )
        ours = self._ours(large, found)
        accuracy = {name: float(right.mean()) for name, right in test.right.items()}
        singles = [Single(name, float(macs[name]), accuracy[name]) for name in macs]
        return Study(
            large,
            macs[large],
            accuracy[large],
            len(test.labels),
            [*protocol.lines(), *([ours.line] if ours else [])],
            protocol.best_oracle(HALF_A_POINT),
            ours.certificate if ours else None,
            {split: protocol.scores(split) for split in self.splits},
            [Ranked(item.names, item.cost) for item in found.ranking if len(item.names) == 2],
            Ranked(found.paying[0].names, found.paying[0].cost) if found.paying else None,
            found.costs.unit,
            found.alone,
            self._standings(ours) if ours else [],
            static_front(singles),
        )

    def _search(self, large: str, progress: Progress) -> Found:
        selection = load_selection(self.folder, large, self.records / "selection")
        return SaverSearch(selection, self.costs[-1], self.scope, progress).run()

    def _ours(self, large: str, found: Found) -> Ours | None:
        """Return the certified cascade, for another large model the one that search found."""
        if large == self.bundle.bundle.spec.stages[-1].name:
            return _certified(self.bundle)
        return self._forecast(found.paying[0]) if found.paying else None

    def _forecast(self, estimate: Estimate) -> Ours:
        test, options = self.splits[TEST], estimate.candidate.options
        combined = options.combination
        weighted = (estimate.names.index(combined.stage), combined.weight) if combined else None
        simulation = Simulation(
            [test.logits[name] for name in estimate.names],
            test.labels,
            scores=options.scores,
            combination=weighted,
        )
        line = played(
            "forecast",
            self.scope.claim.epsilon,
            estimate.names,
            simulation,
            estimate.thresholds,
            combination=combined,
        )
        return Ours(line, simulation, None)

    def _standings(self, ours: Ours) -> list[Standing]:
        test = self.splits[TEST]
        found = contest(
            ours.line.names, ours.simulation, ours.line.thresholds, test.labels, test.right
        )
        return [standing(found, costs) for costs in self.costs if ours.line.is_counted(costs)]


class Ours(NamedTuple):
    """A cascade of ours on the test split."""

    line: Line
    simulation: Simulation
    certificate: Certificate | None


def _certified(recorded: Recorded) -> Ours:
    setting, certificate = recorded.setting, recorded.setting.certificate
    spec = recorded.bundle.spec
    names = [stage.name for stage in spec.stages]
    simulation = recorded.simulation()
    way, drop = ("certified", certificate.epsilon) if certificate else ("forecast", None)
    line = played(way, drop, names, simulation, setting.thresholds, combination=spec.combination)
    return Ours(line, simulation, certificate)
