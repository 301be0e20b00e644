"""Training a network of shared depth, and what it answers with other numbers of steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from savers.depth_design import Design, shares
from savers.depth_network import SharedDepth
from savers.display import epochs_shown
from savers.distil import Epoch, Trainer, predict
from savers.recipe import Recipe
from savers.views import Examples

Build = Callable[[Design], SharedDepth]
Score = Callable[[SharedDepth], float]


class Lesson(NamedTuple):
    """What a network learns from; ``teacher`` is logits ``f32 [n, K]`` over all examples."""

    examples: Examples
    recipe: Recipe
    teacher: Tensor | None = None


class Fitted(NamedTuple):
    """A trained network, its accuracy on the examples held back, and the CPU time in seconds."""

    network: SharedDepth
    accuracy: float | None
    seconds: float | None


def fit(
    build: Build,
    design: Design,
    lesson: Lesson,
    *,
    kept: Path | None = None,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> Fitted:
    """Train a network of a design, or go on from its checkpoint.

    Raises
    ------
    InputError
        When the checkpoint is damaged or of another recipe or network.
    """
    examples, recipe, teacher = lesson
    torch.manual_seed(recipe.seed)
    network = build(design)
    trainer = Trainer(network, examples, recipe, teacher=teacher, vary=design.vary(network))
    trainer.run(kept, report)
    return Fitted(network, trainer.monitored_accuracy, trainer.seconds)


def accuracy(network: SharedDepth, examples: Examples) -> float:
    """Return the share of examples that a network classifies right."""
    rows = np.arange(len(examples.labels))
    found = predict(network, examples.plain(rows)).argmax(-1)
    return float((found == examples.labels).float().mean())


class Row(NamedTuple):
    """What a network scores with a number of steps; ``dedicated`` is trained for it alone."""

    steps: int
    dedicated: bool
    score: float


@dataclass(frozen=True)
class Study:
    """A task on which networks of shared depth are trained.

    Attributes
    ----------
    task
        What distinguishes its checkpoints from those of other tasks.
    score
        Of a network, on samples that it was not trained on.
    work
        Folder of the checkpoints.
    """

    task: str
    build: Build
    lesson: Lesson
    score: Score
    work: Path
    progress: Progress

    def train(self, design: Design, *, epochs: int | None = None) -> Fitted:
        """Train a network, or go on from its checkpoint.

        Parameters
        ----------
        epochs
            In place of those of the lesson's recipe.

        Raises
        ------
        InputError
            When the checkpoint is damaged or of another recipe.
        """
        lesson, kept = self.lesson, self.checkpoint(design, epochs)
        if epochs is not None:
            lesson = lesson._replace(recipe=replace(lesson.recipe, epochs=epochs))
        name = f"{design.training}, {design.steps} steps"
        report = epochs_shown(self.progress, name, lesson.recipe.epochs)
        return fit(self.build, design, lesson, kept=kept, report=report)

    def checkpoint(self, design: Design, epochs: int | None = None) -> Path:
        """Return where the training of a design keeps its state."""
        text = json.dumps([self.task, asdict(design)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f"{design.training}-{design.steps}-seed-{self.lesson.recipe.seed}-{digest}"
        name += "" if epochs is None else f"-{epochs}-epochs"
        return self.work / f"{name}.ckpt"

    def rows(self, network: SharedDepth, *controls: SharedDepth) -> list[Row]:
        """Return what a network scores with fewer and fewer steps, and controls beside it.

        Parameters
        ----------
        controls
            Networks that were trained with their number of steps and no others.
        """
        counts = {*shares(network.steps), network.steps, *(item.steps for item in controls)}
        rows = [Row(count, False, self.score(network.at(count))) for count in counts]
        rows.sort(reverse=True)
        return [*rows, *(Row(item.steps, True, self.score(item)) for item in controls)]
