"""Training a network of shared depth, and what it answers with other numbers of steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
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


def fit(
    build: Build,
    design: Design,
    lesson: Lesson,
    *,
    kept: Path | None = None,
    report: Callable[[Epoch], None] = lambda epoch: None,
) -> SharedDepth:
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
    return network


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

    def train(self, design: Design) -> SharedDepth:
        """Train a network, or go on from its checkpoint.

        Raises
        ------
        InputError
            When the checkpoint is damaged or of another recipe.
        """
        name = f"{design.training}, {design.steps} steps"
        report = epochs_shown(self.progress, name, self.lesson.recipe.epochs)
        return fit(self.build, design, self.lesson, kept=self.checkpoint(design), report=report)

    def checkpoint(self, design: Design) -> Path:
        """Return where the training of a design keeps its state."""
        text = json.dumps([self.task, asdict(design)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f"{design.training}-{design.steps}-seed-{self.lesson.recipe.seed}-{digest}"
        return self.work / f"{name}.ckpt"

    def rows(self, network: SharedDepth, control: SharedDepth) -> list[Row]:
        """Return what a network scores with fewer and fewer steps, and the control beside it.

        Parameters
        ----------
        control
            A network that was trained with its number of steps and no others.
        """
        counts = {*shares(network.steps), network.steps, control.steps}
        rows = [Row(count, False, self.score(network.at(count))) for count in counts]
        rows.sort(reverse=True)
        return [*rows, Row(control.steps, True, self.score(control))]
