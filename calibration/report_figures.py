"""The figures of a report: what its plots and sentences say, computed from stored logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.costs import Costs
from calibration.front import Single, static_front
from calibration.readings import read
from calibration.recorded import starting_path
from calibration.report_material import Material, Model
from calibration.risk_coverage import Ordering, ordering
from calibration.scores import words
from kernels import reference
from runtime.schema import Score, ThresholdPath
from runtime.simulation import Simulation, Vector

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Path = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

SCORES = (Score(), Score(name="margin"), Score(name="entropy"), Score(name="p_norm", p=2.0))
"""That every gate's is shown beside."""
POINTS = 120
"""Of a curve along a path."""
BINS = 15
"""Of confidence, equally wide."""
Z95 = 1.959964


class Point(NamedTuple):
    """A cost per sample and an accuracy."""

    cost: float
    accuracy: float


class Walk(NamedTuple):
    """A cascade along a path: accuracy f64 [points] and shares sent on f64 [points, gates]."""

    names: tuple[str, ...]
    accuracy: Floats
    rates: Floats


class Trade(NamedTuple):
    """Accuracy against one kind of cost.

    Attributes
    ----------
    unit
        ``macs`` or ``time``, in seconds.
    singles, front
        Models alone, and those of them that none as cheap is as accurate as.
    cascade
        f64 [points, 2], cost and accuracy of the bundle's cascade along its path.
    pairs
        The same of each cheaper model before the large one, by the model's name.
    here, gears
        The thresholds in force, and the bundle's gears above them.
    """

    unit: str
    singles: list[Single]
    front: list[Single]
    cascade: Floats
    pairs: dict[str, Floats]
    here: Point
    gears: list[Point]


class Flow(NamedTuple):
    """What one stage does at the thresholds in force.

    Attributes
    ----------
    reached, answered
        Samples that come to it, and those it answers.
    right, large_right
        Of those it answers: how many it gets right, and how many the large model would.
    """

    name: str
    reached: int
    answered: int
    right: int
    large_right: int


class Ranking(NamedTuple):
    """How well each score orders the samples that reach a gate.

    What is risked is harm: the stage is wrong where the large model is right. By it the search
    chooses scores, too.

    Attributes
    ----------
    scores
        By a name for people.
    used
        The name of the score that the gate uses.
    perfect
        The curve of a score that puts all errors last.
    """

    stage: str
    n: int
    scores: dict[str, Ordering]
    used: str
    perfect: Ordering


class Confidence(NamedTuple):
    """A stage's largest softmax probability on all samples, and how far it can be believed.

    Attributes
    ----------
    edges
        f64 [bins + 1].
    right, wrong
        i64 [bins], samples.
    mean, accuracy
        f64 [bins], NaN where a bin is empty.
    error
        Expected calibration error: the mean over samples of the bins' gap between the two.
    threshold
        Of its gate; None where it has none, or one per class, or the gate uses another score.
    """

    stage: str
    edges: Floats
    right: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.int64]
    mean: Floats
    accuracy: Floats
    error: float
    threshold: float | None


class Changed(NamedTuple):
    """Where the cascade is not right as often as the large model.

    Attributes
    ----------
    harmed, helped
        Samples where only the large model is right, or only the cascade.
    label, stage
        The cascade's answer and the stage that gave it, i32 [n] and i8 [n].
    """

    harmed: Rows
    helped: Rows
    label: npt.NDArray[np.int32]
    stage: npt.NDArray[np.int8]

    @property
    def n(self) -> int:
        """Samples in all."""
        return len(self.label)

    @property
    def drop(self) -> float:
        """How much lower the cascade's accuracy is than the large model's."""
        return (len(self.harmed) - len(self.helped)) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The drop's 95 % interval, by a normal approximation."""
        changed = (len(self.harmed) + len(self.helped)) / self.n
        half = Z95 * float(np.sqrt(max(changed - self.drop**2, 0.0) / self.n))
        return self.drop - half, self.drop + half


def walk(names: Sequence[str], simulation: Simulation, accuracy: float, path: Path) -> Walk:
    """Return a cascade at points along a path.

    Parameters
    ----------
    accuracy
        Of its large model alone.
    path
        f32 [points, gates] or [points, gates, K], thresholds.
    """
    chosen = path[np.unique(np.linspace(0, len(path) - 1, POINTS).round().astype(int))]
    drops = [float(simulation.drops(point).mean()) for point in chosen]
    rates = [simulation.escalation_rates(point) for point in chosen]
    return Walk(tuple(names), accuracy - np.array(drops), np.array(rates))


def walks(material: Material) -> tuple[Walk, list[Walk]]:
    """Return the bundle's cascade along its path, and each cheaper model before the large one."""
    recorded, large = material.recorded, material.large
    alone = material.accuracy(large.label)
    path = recorded.setting.path or starting_path(recorded.bundle.spec, recorded.forms)
    cascade = walk(material.names, material.simulation, alone, path.vectors())
    pairs = [
        walk((model.name, large.name), pair, alone, ThresholdPath().vectors())
        for model in material.singles
        if large.stage.reads_frames
        and model.stage.macs < large.stage.macs
        and (model.name, large.name) != material.names
        for pair in [Simulation([model.logits, large.logits], material.labels)]
    ]
    return cascade, pairs


def trade(material: Material, costs: Costs, walked: tuple[Walk, list[Walk]]) -> Trade:
    """Return accuracy against cost of models, cascades and the thresholds in force."""
    cascade, pairs = walked
    singles = sorted(
        (_single(material, costs, model) for model in material.singles), key=lambda one: one.cost
    )
    return Trade(
        costs.unit,
        singles,
        static_front(singles),
        _curve(costs, cascade),
        {pair.names[0]: _curve(costs, pair) for pair in pairs},
        point_at(material, costs, material.thresholds),
        [point_at(material, costs, gear) for gear in material.recorded.setting.gears],
    )


def point_at(material: Material, costs: Costs, thresholds: Vector) -> Point:
    """Return cost and accuracy of the bundle's cascade at thresholds."""
    simulation = material.simulation
    rates = np.array(simulation.escalation_rates(thresholds))
    label = simulation.answers(thresholds).label
    return Point(float(costs.cascade(material.names, rates)), material.accuracy(label))


def flows(material: Material) -> list[Flow]:
    """Return what each stage does at the thresholds in force."""
    label, stage = material.simulation.answers(material.thresholds)
    right, large_right = label == material.labels, material.large.label == material.labels
    found = []
    for index, name in enumerate(material.names):
        mine = stage == index
        reached, answered = int((stage >= index).sum()), int(mine.sum())
        found.append(
            Flow(name, reached, answered, int(right[mine].sum()), int(large_right[mine].sum()))
        )
    return found


def rankings(material: Material) -> list[Ranking]:
    """Return how each score orders the samples that reach each gate; none for an idle gate."""
    stage = material.simulation.answers(material.thresholds).stage
    found = []
    for index in range(len(material.recorded.scores)):
        rows = stage >= index
        if rows.any():
            found.append(_ranking(material, index, rows))
    return found


def confidence(material: Material, index: int) -> Confidence:
    """Return a stage's confidence on all samples, in equally wide bins."""
    model, gates = material.stages[index], material.recorded.scores
    score = gates[index] if index < len(gates) else Score()
    value = reference.softmax(model.logits, score.temperature).confidence
    right = model.label == material.labels
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, value, side="left") - 1, 0, BINS - 1)
    total, hits = np.bincount(place, minlength=BINS), np.bincount(place[right], minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, value, BINS) / total
        accuracy = hits / total
    error = float(np.nansum(np.abs(mean - accuracy) * total) / len(value))
    gated = index < len(gates) and score.name == "max_softmax"
    threshold = material.thresholds[index] if gated else None
    single = None if isinstance(threshold, list) else threshold
    return Confidence(model.name, edges, hits, total - hits, mean, accuracy, error, single)


def agreement(material: Material) -> dict[str, Rows]:
    """Return the samples on which both, one, or neither of saver and large model are right."""
    saver = material.stages[0].label == material.labels
    large = material.large.label == material.labels
    return {
        "both": np.flatnonzero(saver & large),
        "large": np.flatnonzero(~saver & large),
        "saver": np.flatnonzero(saver & ~large),
        "neither": np.flatnonzero(~saver & ~large),
    }


def changed(material: Material) -> Changed:
    """Return where the cascade is wrong and the large model right, and the reverse."""
    label, stage = material.simulation.answers(material.thresholds)
    drops = material.simulation.drops(material.thresholds)
    return Changed(np.flatnonzero(drops > 0), np.flatnonzero(drops < 0), label, stage)


def _single(material: Material, costs: Costs, model: Model) -> Single:
    return Single(model.name, costs.alone(model.name), material.accuracy(model.label))


def _curve(costs: Costs, walked: Walk) -> Floats:
    cost = costs.cascade(walked.names, walked.rates)
    return np.stack([cost, walked.accuracy], axis=1)


def _ranking(material: Material, index: int, rows: Flags) -> Ranking:
    model, gate = material.stages[index], material.recorded.scores[index]
    right, large_right = (one.label == material.labels for one in (model, material.large))
    harmless = (right | ~large_right)[rows]
    scores = {}
    for score in _shown(gate):
        learned = material.recorded.gate_scores[index] if score.name == "learned" else None
        value = _sureness(model.logits, score) if learned is None else learned.astype(np.float64)
        scores[words(score)] = ordering(np.where(np.isnan(value), -np.inf, value)[rows], harmless)
    perfect = ordering(harmless.astype(np.float64) + np.linspace(0, 0.5, len(harmless)), harmless)
    return Ranking(model.name, int(rows.sum()), scores, words(gate), perfect)


def _shown(gate: Score) -> list[Score]:
    """Return a score of each kind, the gate's own among them."""
    kinds = {score.name: score for score in (*SCORES, gate)}
    return list(kinds.values())


def _sureness(logits: npt.NDArray[np.float32], score: Score) -> Floats:
    """Return f64 [n], greater is surer."""
    value = read(logits, score).value
    return -value if score.name == "max_softmax" else value
