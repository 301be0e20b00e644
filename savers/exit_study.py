"""The whole work on exits: features, training of a grid, choice on the selection split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.progress import Progress

from calibration.pool import Card, load_pool
from calibration.provenance import sample_digests
from calibration.recorded import Claim
from calibration.recorder import frame_format
from calibration.records import Data
from runtime.errors import InputError
from runtime.preprocess import Preprocessor
from runtime.session import HostModel
from savers.exit_choice import (
    REST,
    Estimate,
    Logits,
    Question,
    Screened,
    Trial,
    choose_exits,
    screen_trials,
)
from savers.exit_features import Backbone, Observer, open_backbone
from savers.exit_training import (
    ExitRecipe,
    Tensors,
    as_tensors,
    exit_logits,
    trained_exits,
)

BATCH = 250


@dataclass(frozen=True)
class Plan:
    """What is tried.

    Attributes
    ----------
    widths, layers
        The grid of exits.
    epochs, views
        Of the training.
    most
        Exits of a cascade at most.
    size, draws
        Samples that will certify, and resamplings of each forecast.
    """

    claim: Claim
    widths: Sequence[int] = (8, 32, 128)
    layers: Sequence[int] = (0, 1, 2)
    epochs: int = 12
    views: int = 4
    most: int = 2
    size: int = 8000
    draws: int = 100


@dataclass(frozen=True)
class Models:
    """The models that take part, from one pool.

    Attributes
    ----------
    savers
        Before the exits, in their order; the exits go on from the last.
    middles
        Cards of models to compare the exits with.
    """

    folder: Path
    savers: tuple[Backbone, ...]
    large: Backbone
    middles: tuple[Card, ...] = ()

    @property
    def cards(self) -> dict[str, Card]:
        """Of all, by name."""
        cards = (*(item.card for item in self.savers), *self.middles, self.large.card)
        return {card.name: card for card in cards}


@dataclass(frozen=True)
class Found:
    """What a study found.

    Attributes
    ----------
    screened
        Every cascade with exits, cheapest first.
    chosen
        The cascade with exits of least forecast cost, by its number of exits; may be empty.
    """

    question: Question
    screened: list[Screened]
    chosen: dict[int, Estimate]

    @property
    def best(self) -> Estimate | None:
        """The cheapest of the chosen."""
        return min(self.chosen.values(), key=lambda item: item.cost, default=None)


def open_models(folder: Path, savers: Sequence[str], large: str, middles: Sequence[str]) -> Models:
    """Read models of a pool by their names.

    Raises
    ------
    InputError
        When one is not there, is named twice, or a saver costs as much as the large model.
    UnsupportedModel
        When the large model or a saver cannot be cut.
    """
    cards = load_pool(folder)
    names = [*savers, large, *middles]
    absent = [name for name in names if name not in cards]
    if absent:
        raise InputError(f"{folder}: no model {absent[0]!r}; it has {', '.join(cards)}.")
    if len(set(names)) < len(names):
        raise InputError(f"expected each model once, got {', '.join(names)}.")
    costly = [name for name in savers if cards[name].macs >= cards[large].macs]
    if costly:
        raise InputError(
            f"{costly[0]} costs {cards[costly[0]].macs:,} multiply-accumulates, {large} "
            f"{cards[large].macs:,}: a saver must cost less. Take another --saver."
        )
    return Models(
        folder,
        tuple(open_backbone(folder, cards[name]) for name in savers),
        open_backbone(folder, cards[large]),
        tuple(cards[name] for name in middles),
    )


@dataclass
class Study:
    """Trains and chooses exits.

    Attributes
    ----------
    training, selection
        Images that train exits, and that choose among them.
    work
        Folder of kept features and weights.
    """

    models: Models
    training: Data
    selection: Data
    plan: Plan
    work: Path
    threads: int
    progress: Progress
    _trials: list[Trial] = field(default_factory=list)

    def run(self) -> Found:
        """Train the grid, or read what was trained before, and choose.

        Raises
        ------
        InputError
            When the two sets of images share one, or have no labels or labels that are no class of
            the large model, or kept files do not fit.
        """
        self._check_data()
        trials = self.train()
        task = self.progress.add_task("choosing", total=len(trials))
        screened = screen_trials(
            self.question,
            trials,
            most=self.plan.most,
            advance=lambda: self.progress.advance(task),
        )
        chosen = choose_exits(self.question, screened, draws=self.plan.draws)
        return Found(self.question, screened, chosen)

    def train(self) -> list[Trial]:
        """Return the exits of the grid with their answers on the selection split."""
        observer = Observer(self.models.savers[-1], self.models.large, threads=self.threads)
        self._check_labels(observer.classes)
        data = self._observe(observer, self.training, self.plan.views)
        unseen = self._observe(observer, self.selection, 1)
        key = observer.key(self.training, self.plan.views)
        folder = self.work / hashlib.sha256(key.encode()).hexdigest()[:16]
        trials = []
        for width in self.plan.widths:
            for layers in self.plan.layers:
                recipe = ExitRecipe(width, layers, key, epochs=self.plan.epochs)
                exits = trained_exits(folder, data, recipe, advance=self._epochs(recipe))
                trials.append(Trial(exits, exit_logits(exits, unseen)))
        return trials

    @cached_property
    def question(self) -> Question:
        """What the exits are chosen for."""
        models, answers = self.models, {}
        for name, card in models.cards.items():
            answers[REST if card is models.large.card else name] = self._answers(card)
        assert self.selection.labels is not None
        return Question(
            savers=tuple(item.card.name for item in models.savers),
            answers=answers,
            labels=self.selection.labels,
            macs={name: card.macs for name, card in models.cards.items()},
            blocks=models.large.block_macs(),
            claim=self.plan.claim,
            size=self.plan.size,
        )

    def _answers(self, card: Card) -> Logits:
        """Return a model's logits f32 [n, K] on the selection split."""
        model = HostModel(self.models.folder / card.file, threads=self.threads)
        preprocess = Preprocessor(card.preprocessing, frame_format(self.selection))
        images = self.selection.images
        parts = [
            model.run({card.input: preprocess(images[start : start + BATCH])})[card.logits]
            for start in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)

    def _observe(self, observer: Observer, data: Data, views: int) -> Tensors:
        total = 2 * views * len(data.images)
        task = self.progress.add_task(f"features, {data.name}", total=total)
        features = observer.kept_features(
            self.work, data, views=views, advance=lambda rows: self.progress.advance(task, rows)
        )
        self.progress.update(task, completed=total)
        assert data.labels is not None
        return as_tensors(features, data.labels)

    def _epochs(self, recipe: ExitRecipe) -> Callable[[float], object]:
        title = f"exits d {recipe.width}, {recipe.layers} layers"
        task = self.progress.add_task(title, total=recipe.epochs)

        def advance(loss: float) -> None:
            self.progress.update(task, advance=1, description=f"{title}, loss {loss:.3f}")

        return advance

    def _check_labels(self, classes: int) -> None:
        large = self.models.large.card.name
        for data in (self.training, self.selection):
            if data.labels is not None and data.labels.max() >= classes:
                raise InputError(
                    f"{data.name}: expected labels from 0 to {classes - 1}, one per logit of "
                    f"{large}, got {data.labels.max()}. Give data with its classes."
                )

    def _check_data(self) -> None:
        for data in (self.training, self.selection):
            if data.labels is None:
                raise InputError(f"{data.name}: no labels; exits are trained and chosen with them.")
        shared = np.intersect1d(
            sample_digests(self.training.images), sample_digests(self.selection.images)
        )
        if len(shared):
            raise InputError(
                f"{self.selection.name}: {len(shared)} of its images were trained on, so they say "
                "nothing of others. Give --selection data that trained nothing."
            )
