"""What networks of shared depth are trained on: digits, Fashion-MNIST, text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from savers.dataset import (
    DEFAULT_FOLDER,
    LABELS,
    Split,
    read_fashion_mnist,
    split_training_images,
)
from savers.depth_design import Design
from savers.depth_export import Pictures, write_cascade
from savers.depth_network import SharedDepth
from savers.depth_training import Build, Fitted, Lesson, Study, accuracy
from savers.digits import CLASSES, SIDE, read_digits
from savers.recipe import Recipe
from savers.text import perplexity, read_topics, sequences
from savers.views import MEAN, STD, Images
from savers.workshop import Trained, Workshop, write_model

TEACHER = "large"
PATCH = 4
"""Of digits, whose images then are four tokens."""


def digits_recipe(seed: int, *, epochs: int = 15) -> Recipe:
    """Return how networks learn the digits: all images, as they are."""
    return Recipe(
        epochs=epochs,
        seed=seed,
        batch=32,
        learning_rate=3e-3,
        weight_decay=0.01,
        shift=0,
        mirror=False,
        monitor_size=0,
        optimiser="adamw",
        bfloat16=False,
    )


def digits_network(design: Design) -> SharedDepth:
    """Return an untrained classifier of digits."""
    return design.images(SIDE, classes=CLASSES, patch=PATCH)


@dataclass(frozen=True)
class ImageTask:
    """Pictures, the network for them, how it is trained, and what it is scored on.

    Attributes
    ----------
    teacher
        Logits ``f32 [n, K]`` over the training images, or None.
    """

    pictures: Pictures
    build: Build
    recipe: Recipe
    scored: Split
    teacher: Tensor | None = None

    def examples(self, split: Split) -> Images:
        """Return a split as the network reads it."""
        return Images(split, self.recipe, mean=self.pictures.mean, std=self.pictures.std)

    def study(self, work: Path, progress: Progress) -> Study:
        """Return the task with a place for checkpoints."""
        scored = self.examples(self.scored)
        taught = "" if self.teacher is None else f", from {TEACHER}"
        return Study(
            self.pictures.name + taught,
            self.build,
            Lesson(self.examples(self.pictures.train), self.recipe, self.teacher),
            lambda network: accuracy(network, scored),
            work,
            progress,
        )


def image_task(data: str, folder: Path | None, *, epochs: int | None, seed: int) -> ImageTask:
    """Return the task of a data set, ``digits`` or ``fashion``.

    Raises
    ------
    FileNotFoundError
        When the files of Fashion-MNIST are missing; the message says where to get them.
    """
    if data == "digits":
        return _digits(epochs, seed)
    return _fashion(folder or DEFAULT_FOLDER, epochs, seed)


def _digits(epochs: int | None, seed: int) -> ImageTask:
    digits = read_digits()
    names = tuple(map(str, range(CLASSES)))
    pictures = Pictures("digits", digits.train, names, digits.mean, digits.std)
    recipe = digits_recipe(seed, epochs=epochs or 15)
    return ImageTask(pictures, digits_network, recipe, digits.test)


def _fashion(folder: Path, epochs: int | None, seed: int) -> ImageTask:
    splits = split_training_images(read_fashion_mnist(folder)[0])
    recipe = Recipe(
        epochs=epochs or 24,
        seed=seed,
        learning_rate=2e-3,
        weight_decay=0.05,
        optimiser="adamw",
    )
    return ImageTask(
        Pictures("fashion", splits["train"], LABELS, MEAN, STD),
        lambda design: design.images(28, classes=len(LABELS)),
        recipe,
        splits["selection"],
    )


def pupil_task(pool: Path, task: ImageTask, work: Path, progress: Progress) -> ImageTask:
    """Return a task of Fashion-MNIST whose network learns from the pool's model ``large``.

    Raises
    ------
    InputError
        When the pool has no such model, or not by its present recipe.
    """
    answers = Workshop(task.pictures.train, work, pool, 1, progress).answers(TEACHER)
    return replace(
        task, recipe=replace(task.recipe, teacher_weight=0.9, temperature=4.0), teacher=answers
    )


def publish_steps(
    fitted: Fitted, steps: tuple[int, ...], out: Path, design: Design, recipe: Recipe
) -> list[str]:
    """Write a network of 28x28 images to a pool, once for each number of steps; return the names.

    Each ONNX file holds all weights. The search takes it for a model of its own. The accuracy on
    images held back is known for the number of steps that was monitored.
    """
    names = []
    for count in steps:
        end = "-alone" if design.steps == count and design.training == "plain" else ""
        name = f"depth-{design.width}-{count}{end}"
        described = {"method": "shared depth", "asked": count, **asdict(design), **asdict(recipe)}
        reached = fitted.accuracy if count == design.steps else None
        trained = Trained(name, fitted.network.at(count), reached, seconds=fitted.seconds)
        write_model(trained, out, recipe=described, seed=recipe.seed)
        names.append(name)
    return names


def text_study(
    file: Path | None, *, tokens: int, epochs: int, seed: int, work: Path, progress: Progress
) -> Study:
    """Return the task of a byte-level language model, scored by its perplexity.

    Raises
    ------
    InputError
        When the text is too short, or this Python comes without the default.
    """
    text = read_topics(file)
    recipe = Recipe(
        epochs=epochs,
        seed=seed,
        batch=32,
        learning_rate=3e-3,
        weight_decay=0.01,
        monitor_size=0,
        optimiser="adamw",
        bfloat16=False,
    )
    held_out = sequences(text.held_out, tokens)
    return Study(
        f"text, {tokens} tokens",
        lambda design: design.text(tokens),
        Lesson(sequences(text.train, tokens), recipe),
        lambda network: perplexity(network, held_out),
        work,
        progress,
    )


def random_cascade(width: int, out: Path, *, steps: tuple[int, int] = (4, 12)) -> Path:
    """Write a bundle of a network of random weights for 28x28 images; return its folder."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
    split = Split(noise, np.arange(16, dtype=np.int32) % 10)
    torch.manual_seed(0)
    design = Design("step-randomised", 12, width, 12, 4 * width)
    network = design.images(28, classes=10)
    write_cascade(network, Pictures("noise", split, LABELS, MEAN, STD), steps, out)
    return out
