"""The content of a report: figures, plots, sentences and pictures, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from calibration import report_figures as figures
from calibration import report_plots as plots
from calibration import report_words as words
from calibration.cost_table import CostTable
from calibration.costs import Costs
from calibration.report_costs import mac_costs
from calibration.report_material import Material
from calibration.report_pictures import Pictures
from calibration.standing import Standing, contest, standing
from runtime.certification import Certification, certification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_TOGETHER = 16
"""Pictures of who is right where, per group."""
SHOWN_HARMED = 8
"""Pictures of harmed samples, per class."""


class Plot(NamedTuple):
    """A drawing with its place in the page and what it means."""

    section: str
    name: str
    title: str
    words: list[str]
    caption: str
    figure: Figure

    @property
    def svg(self) -> str:
        """The drawing for the page."""
        return plots.as_svg(self.figure, self.name, f"{self.title}. {' '.join(self.words)}")


class Picture(NamedTuple):
    """A sample with its picture."""

    row: int
    uri: str
    alt: str
    caption: str


class Shown(NamedTuple):
    """Pictures of a group of samples, perhaps not of all."""

    total: int
    shown: list[Picture]


class ModelRow(NamedTuple):
    """A line of the table of models; ``steps_of`` are the costs whose static front it is on."""

    name: str
    in_cascade: bool
    form: str
    macs: int
    seconds: float | None
    accuracy: float
    steps_of: list[str]


@dataclass(frozen=True)
class Content:
    """Everything that a report shows.

    Parameters
    ----------
    timed
        Measured times; None leaves them out.
    """

    material: Material
    timed: CostTable | None

    @property
    def name(self) -> str:
        """Of the bundle."""
        return self.material.recorded.bundle.spec.name

    @property
    def description(self) -> str:
        """Of the bundle, with a note on forms other than FP32."""
        text = self.material.recorded.bundle.spec.description
        forms = set(self.material.recorded.forms)
        return text if forms == {"fp32"} else f"{text} ({self.material.recorded.key})"

    @property
    def chain(self) -> str:
        """The cascade for people."""
        return " → ".join(self.material.names)

    @property
    def split(self) -> str:
        """Name of the data."""
        return self.material.data.name

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.material.labels)

    @property
    def large(self) -> str:
        """Name of the last stage."""
        return self.material.large.name

    @cached_property
    def certification(self) -> Certification:
        """What the bundle's certificate says of the thresholds in force, on the recorded engine."""
        recorded = self.material.recorded
        return certification(
            recorded.bundle.spec,
            recorded.forms,
            engine=recorded.records[0].meta.engine,
            thresholds=recorded.setting.thresholds,
        )

    @cached_property
    def promise(self) -> list[str]:
        """What the certificate says, in plain words."""
        return list(words.certificate_words(self.certification, self.material.names))

    @cached_property
    def rule(self) -> list[str]:
        """How the gates decide, and what is combined."""
        recorded = self.material.recorded
        return list(words.rule_words(recorded.bundle.spec, recorded.setting))

    @cached_property
    def costs(self) -> list[Costs]:
        """Multiply-accumulates, and times if they were measured."""
        return [mac_costs(self.material), *([self.timed.costs()] if self.timed else [])]

    @cached_property
    def standings(self) -> list[Standing]:
        """The cascade beside the cheapest single model as accurate, by each kind of cost."""
        material = self.material
        right = {model.name: model.label == material.labels for model in material.singles}
        found = contest(
            material.names, material.simulation, material.thresholds, material.labels, right
        )
        return [standing(found, costs) for costs in self.costs]

    @cached_property
    def trades(self) -> list[figures.Trade]:
        """Accuracy against multiply-accumulates, and time if it was measured."""
        walked = figures.walks(self.material)
        return [figures.trade(self.material, one, walked) for one in self.costs]

    @cached_property
    def flows(self) -> list[figures.Flow]:
        """What each stage answers."""
        return figures.flows(self.material)

    @cached_property
    def rankings(self) -> list[figures.Ranking]:
        """How well scores order errors, per gate."""
        return figures.rankings(self.material)

    @cached_property
    def confidences(self) -> list[figures.Confidence]:
        """Calibration of each stage."""
        return [figures.confidence(self.material, i) for i in range(len(self.material.stages))]

    @cached_property
    def changed(self) -> figures.Changed:
        """Where the cascade is right and the large model wrong, or the reverse."""
        return figures.changed(self.material)

    @cached_property
    def rows(self) -> Mapping[str, figures.Rows]:
        """Samples on which saver and large model, one of them, or neither are right."""
        return figures.agreement(self.material)

    @property
    def counts(self) -> dict[str, int]:
        """How many these are."""
        return {key: len(rows) for key, rows in self.rows.items()}

    @cached_property
    def pictures(self) -> Pictures:
        """Of the data."""
        return Pictures(self.material.data, self.material.recorded.bundle.spec.input)

    @cached_property
    def tiles(self) -> list[tuple[str, str]]:
        """The few numbers to begin with."""
        found = [
            (
                words.percent(self.trades[0].here.accuracy),
                f"of {self.n:,} {self.split} images right; {self.large} alone "
                f"{words.percent(self.material.accuracy(self.material.large.label))}",
            )
        ]
        for trade, text in zip(
            self.trades,
            ("fewer multiply-accumulates than {}", "as fast as {} alone, measured here"),
            strict=False,
        ):
            ratio = self._alone(trade) / trade.here.cost
            found.append((f"{ratio:.1f}x", text.format(self.large)))
        certificate = self.certification.certificate
        if certificate and self.certification.state == "certified":
            confidence = words.percent(1 - certificate.delta)
            found.append(
                (f"≤ {100 * certificate.epsilon:.3g}", f"points lost, certified: {confidence} sure")
            )
            if certificate.saving:
                bound = words.percent(certificate.saving.lower_bound, 1)
                sure = words.percent(1 - certificate.saving.delta, 0)
                found.append((f"≥ {bound}", f"of MACs saved, certified: {sure} sure"))
        return found

    @cached_property
    def plots(self) -> list[Plot]:
        """All drawings."""
        return [
            *self._trade_plots(),
            self._flow_plot(),
            *self._ranking_plots(),
            *self._confidence_plots(),
            self._agreement_plot(),
            self._classes_plot(),
        ]

    @cached_property
    def agreement(self) -> dict[str, Shown]:
        """Pictures of who is right where, spread over each group."""
        found = {}
        for key, rows in self.rows.items():
            places = np.linspace(0, len(rows) - 1, min(SHOWN_TOGETHER, len(rows))).round()
            chosen = rows[places.astype(int)]
            found[key] = Shown(len(rows), [self._compared(int(row)) for row in chosen])
        return found

    @cached_property
    def harmed(self) -> dict[str, Shown]:
        """Pictures of harmed samples by class, the classes with most of them first."""
        rows = self.changed.harmed
        truth = self.material.labels[rows]
        labels = self.material.recorded.bundle.spec.labels
        counts = np.bincount(truth, minlength=len(labels))
        found = {}
        classes = min(np.count_nonzero(counts), plots.CLASSES)
        for label in np.argsort(-counts, kind="stable")[:classes]:
            mine = rows[truth == label]
            chosen = [self._harmed(int(row)) for row in mine[:SHOWN_HARMED]]
            found[labels[label]] = Shown(len(mine), chosen)
        return found

    @cached_property
    def models(self) -> list[ModelRow]:
        """Every model, cheapest first."""
        material, units = self.material, {"macs": "MACs", "time": "time"}
        rows = []
        for model in sorted(material.singles, key=lambda one: one.stage.macs):
            steps = [
                units[trade.unit]
                for trade in self.trades
                if model.name in {single.name for single in trade.front}
            ]
            seconds = self.timed.costs().alone(model.name) if self.timed else None
            accuracy = material.accuracy(model.label)
            row = (model.name, model.in_cascade, model.form, model.stage.macs, seconds, accuracy)
            rows.append(ModelRow(*row, steps))
        return rows

    @property
    def models_words(self) -> list[str]:
        """What the table of models shows."""
        found = ["Stages of the cascade are coloured; front: the costs by which none beats it."]
        if self.timed:
            found.append(
                f"Time is of inference alone, per image at each model's best batch, on "
                f"{self.timed.device}."
            )
        else:
            found.append("No times were measured.")
        return found

    @property
    def origin(self) -> str:
        """Where the numbers come from."""
        recorded = self.material.recorded
        meta = recorded.records[0].meta
        return (
            f"{recorded.bundle.folder.name or self.name}, setting {recorded.key}, thresholds "
            f"{' / '.join(map(words.threshold_words, self.material.thresholds))}. Logits by "
            f"{meta.engine} {meta.engine_version}; {self.split} data, sha256 {meta.data_sha256}. "
            "Made by python -m calibration.report."
        )

    def _alone(self, trade: figures.Trade) -> float:
        costs = {single.name: single.cost for single in trade.singles}
        return costs.get(self.large, self.material.large.stage.macs)

    def _trade_plots(self) -> Iterator[Plot]:
        titles = {"macs": "By multiply-accumulates", "time": "By measured time"}
        state = self.certification.state
        mark = "certified" if state == "certified" else "in force"
        for trade, stands in zip(self.trades, self.standings, strict=True):
            caption = ""
            if trade.unit == "time" and self.timed:
                caption = (
                    f"{self.timed.device}: the first stage at batches of {self.timed.batch}, "
                    "later ones at as many as reach them; single models at their best batch."
                )
            yield Plot(
                "cost",
                f"cost-{trade.unit}",
                titles[trade.unit],
                [*words.trade_words(trade, self.large), words.share_words(stands)],
                caption,
                plots.trade_plot(trade, self.chain, mark),
            )

    def _flow_plot(self) -> Plot:
        text = [*self.rule, *words.flow_words(self.flows)]
        drawn = plots.flow_plot(self.flows)
        return Plot("gates", "gates", "Images by the stage that answers", text, "", drawn)

    def _ranking_plots(self) -> Iterator[Plot]:
        for ranking in self.rankings:
            yield Plot(
                "scores",
                f"scores-{ranking.stage}",
                f"The gate after {ranking.stage}",
                list(words.ranking_words(ranking)),
                f"Of the {ranking.n:,} images that reach this gate.",
                plots.ranking_plot(ranking),
            )

    def _confidence_plots(self) -> Iterator[Plot]:
        for facts in self.confidences:
            yield Plot(
                "confidence",
                f"confidence-{facts.stage}",
                facts.stage,
                [words.confidence_words(facts)],
                "",
                plots.confidence_plot(facts),
            )

    def _agreement_plot(self) -> Plot:
        saver = self.material.names[0]
        text = words.agreement_words(self.counts, saver, self.large)
        drawn = plots.agreement_plot(self.counts, saver, self.large)
        caption = "Each model alone, whatever the gates do."
        return Plot("agreement", "agreement", "Who is right", [text], caption, drawn)

    def _classes_plot(self) -> Plot:
        labels = self.material.recorded.bundle.spec.labels
        text = [
            *words.changed_words(self.changed, self.large),
            words.hardest_class(self.changed, self.material.labels, labels),
        ]
        drawn = plots.classes_plot(self.changed, self.material.labels, labels)
        caption = f"By true class: only {self.large} right to the left, only the cascade right."
        return Plot("harmed", "harmed", "Harmed and helped, by class", text, caption, drawn)

    def _compared(self, row: int) -> Picture:
        name = self.material.recorded.bundle.spec.labels
        truth = name[self.material.labels[row]]
        answers = (self.material.stages[0], self.material.large)
        said = [name[model.label[row]] for model in answers]
        wrong = [
            f"{model.name}: {text}" for model, text in zip(answers, said, strict=True)
            if text != truth
        ]  # fmt: skip
        return self._picture(row, truth, "; ".join([truth, *wrong]))

    def _harmed(self, row: int) -> Picture:
        name = self.material.recorded.bundle.spec.labels
        said = name[self.changed.label[row]]
        stage = self.material.names[self.changed.stage[row]]
        return self._picture(row, name[self.material.labels[row]], f"{stage}: {said}")

    def _picture(self, row: int, truth: str, caption: str) -> Picture:
        return Picture(row, self.pictures.uri(row), truth, caption)
