"""Deep incubation: whether modules that were trained apart fit together, and if it pays.

The paper's networks are a hundred times larger and its gains are on ImageNet. What can be seen in
minutes, on digits, is its mechanism: a network assembled from modules that never saw each other
works before any fine-tuning, if they grew inside the same meta model, and not otherwise.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from savers.configurations import INCUBATION
from savers.digits import NAME as DIGITS
from savers.display import epochs_shown
from savers.experiment import Experiment, Figures, Request, right
from savers.image_set import ImageSet
from savers.incubation import Incubator, Plan
from savers.recipe import Recipe
from savers.stages import Architecture, Chain
from savers.verdicts import Bar, Verdict, judge
from savers.views import Images

PAPER = "Deep Model Assembling / Deep Incubation, arXiv 2212.04129"
FEW = 4
"""A comparison with little data takes one training image in so many."""

Hits = npt.NDArray[np.bool_]


class Seeded(NamedTuple):
    """Which test images each network of one seed answers rightly, ``bool [n]`` by name.

    ``quarter`` is the same for networks that saw a quarter of the training images.
    """

    full: dict[str, Hits]
    quarter: dict[str, Hits]


def experiment(request: Request) -> Experiment:
    """Train a meta model, modules and controls for each seed, and judge the bars."""
    images, recipe = request.images, INCUBATION[request.size].recipe
    images.require(FEW * recipe.batch)
    found = [_one_seed(request, seed) for seed in request.seeds]
    stacked = {name: np.stack([seeded.full[name] for seeded in found]) for name in found[0].full}
    few = {name: np.stack([seeded.quarter[name] for seeded in found]) for name in found[0].quarter}
    judged = _verdicts(stacked, images) if request.size == "small" else _large_verdicts(stacked)
    figures = [_accuracies(stacked, few, images), _escalation(stacked)]
    return Experiment(PAPER, judged, figures, _remarks(request))


def plan(request: Request, seed: int) -> Plan:
    """Return what is incubated for one seed."""
    chosen, images = INCUBATION[request.size], request.images
    architecture = Architecture(
        "transformer",
        stages=len(chosen.blocks),
        width=chosen.width,
        side=images.side,
        patch=chosen.patch,
        heads=chosen.heads,
        classes=images.classes,
        channels=images.channels,
        widening=chosen.widening,
    )
    recipes = [
        dataclasses.replace(
            chosen.recipe, epochs=1 if request.quick else epochs, seed=100 * seed + 10 * place
        )
        for place, epochs in enumerate(chosen.epochs)
    ]
    return Plan(architecture, chosen.blocks, *recipes)


def _verdicts(hits: dict[str, Hits], images: ImageSet) -> list[Verdict]:
    chance = f"none (chance is {100 / images.classes:g} %)"
    return [
        judge(
            Bar("assembled network before fine-tuning", chance, 60.0, unit="%"),
            lambda assembled: 100 * assembled,
            hits["assembled"],
        ),
        judge(
            Bar("assembled network before fine-tuning", "no meta model in common", 20.0),
            lambda assembled, control: 100 * (assembled - control),
            hits["assembled"],
            hits["assembled, meta models apart"],
        ),
    ]


def _large_verdicts(hits: dict[str, Hits]) -> list[Verdict]:
    return [
        judge(
            Bar("fine-tuned network", "end to end, at equal cost", 1.0),
            lambda tuned, control: 100 * (tuned - control),
            hits["fine-tuned"],
            hits["end to end"],
        )
    ]


def _one_seed(request: Request, seed: int) -> Seeded:
    whole, images = plan(request, seed), request.images
    quarter = images.first(len(images.train.labels) // FEW)
    return Seeded(
        {**_incubated(images, whole, request), **_controls(images, whole, request)},
        {
            "fine-tuned": _incubated(quarter, whole, request)["fine-tuned"],
            "end to end": _end_to_end(quarter, whole, request),
        },
    )


def _incubated(images: ImageSet, whole: Plan, request: Request) -> dict[str, Hits]:
    with _incubator(images, whole, request) as incubator:
        return {
            "meta model": _right(incubator.meta, images),
            "assembled": _right(incubator.modules(), images),
            "fine-tuned": _right(incubator.tuned(), images),
        }


def _controls(images: ImageSet, whole: Plan, request: Request) -> dict[str, Hits]:
    stages = [_apart(images, whole, place, request) for place in whole.places]
    other = dataclasses.replace(whole, meta=_other_seed(whole.meta, 1))
    with _incubator(images, other, request) as incubator:
        independent = _right(incubator.meta, images)
    return {
        "assembled, meta models apart": _right(stages, images),
        "end to end": _end_to_end(images, whole, request),
        "another meta model": independent,
    }


def _apart(images: ImageSet, whole: Plan, place: int, request: Request) -> nn.Module:
    """Return a module that was incubated in a meta model of its own."""
    own = dataclasses.replace(whole, meta=_other_seed(whole.meta, place + 1))
    with _incubator(images, own, request) as incubator:
        return incubator.module(place)


@contextmanager
def _incubator(images: ImageSet, whole: Plan, request: Request) -> Iterator[Incubator]:
    def examples(recipe: Recipe) -> Images:
        return images.examples(images.train, recipe)

    with tempfile.TemporaryDirectory(prefix="tinysaver-") as folder:
        yield Incubator(
            whole,
            examples,
            Path(folder),
            shown=lambda name, total: epochs_shown(request.progress, name, total),
            device=request.device,
        )


def _end_to_end(images: ImageSet, whole: Plan, request: Request) -> Hits:
    with _incubator(images, whole, request) as incubator:
        return _right(incubator.end_to_end(), images)


def _right(stages: Sequence[nn.Module], images: ImageSet) -> Hits:
    return right(Chain(stages), images)


def _other_seed(recipe: Recipe, number: int) -> Recipe:
    return dataclasses.replace(recipe, seed=recipe.seed + 10_000 * number)


def _accuracies(full: dict[str, Hits], few: dict[str, Hits], images: ImageSet) -> Figures:
    rows: list[tuple[str | float, ...]] = [
        (name, *_spread(hits), *_spread(few.get(name))) for name, hits in full.items()
    ]
    fewer = f"with {len(images.train.labels) // FEW} images %"
    columns = ("network", "accuracy %", "per seed", fewer, "per seed ")
    return Figures(f"Accuracy on the {len(images.test.labels)} test images", columns, rows)


def _spread(hits: Hits | None) -> tuple[str, str]:
    """Return the mean over seeds and each seed's accuracy, in per cent."""
    if hits is None:
        return "-", "-"
    each = 100 * hits.mean(1)
    return f"{each.mean():.1f}", " ".join(f"{value:.1f}" for value in each)


def _escalation(full: dict[str, Hits]) -> Figures:
    """Return how often the assembled network is right where a saver is wrong."""
    large = full["fine-tuned"]
    rows: list[tuple[str | float, ...]] = []
    for name, kinship in (("meta model", "its own"), ("another meta model", "a stranger")):
        wrong = ~full[name]
        share = float(large[wrong].mean()) if wrong.any() else float("nan")
        rows.append((name, kinship, int(wrong.sum()), f"{100 * share:.0f}"))
    columns = ("saver", "to the large network", "its errors", "of them the large one is right %")
    return Figures("What escalating to the fine-tuned network repairs", columns, rows)


def _remarks(request: Request) -> list[str]:
    costs = plan(dataclasses.replace(request, quick=False), 0)
    remarks = [
        f"End to end costs what all phases cost together, {costs.block_epochs} block-epochs: "
        f"{costs.epochs_end_to_end} epochs of {sum(costs.blocks)} blocks.",
    ]
    if request.images.name == DIGITS:
        remarks.append(
            "The gains that the paper reports are on ImageNet and CIFAR-100; on digits 4 blocks "
            "are enough, so a gain of the deep network is not to be expected and no bar asks for "
            "one."
        )
    return remarks
