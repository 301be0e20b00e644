"""Shared depth: how few steps the same weights stand, by how they were trained.

Whether scaling the steps is worth anything, and whether training for it is, can be seen in minutes,
on digits. What cannot is a use for twelve steps: a network that is trained for two alone is as good
there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from savers.configurations import SHARED_DEPTH
from savers.depth_design import TRAININGS, Design, Training
from savers.depth_network import SharedDepth, euler_errors
from savers.depth_training import Lesson, fit
from savers.display import epochs_shown
from savers.experiment import Experiment, Figures, Request, right
from savers.networks import count_macs
from savers.verdicts import Bar, Verdict, judge

PAPER = "Parameter-shared PLMs as ODEs, arXiv 2310.12818"
STEPS = SHARED_DEPTH["small"].steps
SCALED: tuple[tuple[Training, int], ...] = (("small-step", 4), ("step-randomised", 4))
"""Where scaled steps are held against steps left out."""

EULER = (6, 12, 24)
EULER_IMAGES = 50

Hits = npt.NDArray[np.bool_]


class Asked(NamedTuple):
    """A network as it is asked: how it was trained, with how many steps, of which size."""

    training: str
    scaled: bool
    steps: int


class Seeded(NamedTuple):
    """What one seed gave.

    Attributes
    ----------
    hits
        Which test images are answered rightly, ``bool [n]``.
    ratios
        By training, the error with 6 steps over that with 12, and with 12 over that with 24.
    """

    hits: dict[Asked, Hits]
    ratios: dict[str, tuple[float, float]]


def experiment(request: Request) -> Experiment:
    """Train the three ways and the controls for each seed, and judge the bars."""
    request.images.require(SHARED_DEPTH[request.size].recipe.batch)
    found = [_one_seed(request, seed) for seed in request.seeds]
    hits = {asked: np.stack([seeded.hits[asked] for seeded in found]) for asked in found[0].hits}
    ratios = {
        training: np.mean([seeded.ratios[training] for seeded in found], axis=0)
        for training in TRAININGS
    }
    judged = verdicts(hits) if request.size == "small" else _large_verdicts(hits)
    return Experiment(PAPER, judged, [_accuracies(hits, request), _orders(ratios)], _remarks())


def verdicts(hits: dict[Asked, Hits]) -> list[Verdict]:
    """Hold right answers ``bool [seeds, images]`` against the bars, fixed in advance."""

    def of(training: Training, steps: int, *, scaled: bool = True) -> Hits:
        return hits[Asked(training, scaled, steps)]

    return [
        judge(
            Bar("step-randomised, 4 steps", "12 steps, same weights", -1.0),
            lambda few, all_: 100 * (few - all_),
            of("step-randomised", 4),
            of("step-randomised", 12),
        ),
        judge(
            Bar("loss from 12 to 4 steps: plain - small-step", "plain training", 3.0),
            lambda plain, few, small, small_few: 100 * (plain - few - (small - small_few)),
            of("plain", 12),
            of("plain", 4),
            of("small-step", 12),
            of("small-step", 4),
        ),
        *(
            judge(
                Bar(f"{training}, {steps} steps, scaled", "steps left out, not scaled", 0.0),
                lambda scaled, unscaled: 100 * (scaled - unscaled),
                of(training, steps),
                of(training, steps, scaled=False),
            )
            for training, steps in SCALED
        ),
    ]


def _large_verdicts(hits: dict[Asked, Hits]) -> list[Verdict]:
    whole, training = SHARED_DEPTH["large"].steps[0], "step-randomised"
    return [
        judge(
            Bar(f"{training}, {steps} steps", f"{whole} steps, same weights", bound),
            lambda few, all_: 100 * (few - all_),
            hits[Asked(training, True, steps)],
            hits[Asked(training, True, whole)],
        )
        for steps, bound in ((6, -1.0), (4, -2.5))
    ]


def _one_seed(request: Request, seed: int) -> Seeded:
    images, all_steps = request.images, SHARED_DEPTH[request.size].steps
    hits: dict[Asked, Hits] = {}
    ratios: dict[str, tuple[float, float]] = {}
    for training in TRAININGS:
        network = _fit(_design(request, training, all_steps[0]), seed, request)
        size = network.time / network.steps
        for steps in all_steps:
            hits[Asked(training, True, steps)] = right(network.at(steps), images)
            unscaled = network.at(steps, time=steps * size)
            hits[Asked(training, False, steps)] = right(unscaled, images)
        ratios[training] = _ratios(network, request)
    for steps in all_steps:
        # The first is the plain training itself.
        alone = hits[Asked("plain", True, steps)]
        if steps != all_steps[0]:
            alone = right(_fit(_design(request, "plain", steps), seed, request), images)
        hits[Asked("dedicated", True, steps)] = alone
    return Seeded(hits, ratios)


def _design(request: Request, training: Training, steps: int) -> Design:
    chosen = SHARED_DEPTH[request.size]
    return Design(training, steps, chosen.width, chosen.heads, chosen.hidden)


def _network(request: Request, design: Design) -> SharedDepth:
    """Return an untrained classifier of the images."""
    images, patch = request.images, SHARED_DEPTH[request.size].patch
    network = design.images(
        images.side, classes=images.classes, patch=patch, channels=images.channels
    )
    network.to(request.device)
    return network


def _fit(planned: Design, seed: int, request: Request) -> SharedDepth:
    images, recipe = request.images, replace(SHARED_DEPTH[request.size].recipe, seed=seed)
    recipe = replace(recipe, epochs=1) if request.quick else recipe
    name = f"seed {seed}: {planned.training}, {planned.steps} steps"
    return fit(
        partial(_network, request),
        planned,
        Lesson(images.examples(images.train, recipe), recipe),
        report=epochs_shown(request.progress, name, recipe.epochs),
    ).network


def _ratios(network: SharedDepth, request: Request) -> tuple[float, float]:
    images = request.images
    examples = images.examples(images.test, SHARED_DEPTH[request.size].recipe)
    inputs = examples.plain(np.arange(min(EULER_IMAGES, len(examples.labels))))
    coarse, middle, fine = euler_errors(network, inputs.to(request.device), EULER)
    return coarse / middle, middle / fine


def _accuracies(hits: dict[Asked, Hits], request: Request) -> Figures:
    """Return mean accuracy in percent: a row for each way to be asked, a column for each N."""
    all_steps, on_host = SHARED_DEPTH[request.size].steps, replace(request, device="cpu")
    rows: list[tuple[str | float, ...]] = []
    for training, scaled in dict.fromkeys((asked.training, asked.scaled) for asked in hits):
        means = [100 * float(hits[Asked(training, scaled, steps)].mean()) for steps in all_steps]
        rows.append((training if scaled else f"{training}, unscaled", *means))
    networks = [_network(on_host, _design(request, "plain", steps)) for steps in all_steps]
    macs = [count_macs(network, request.images.shape) for network in networks]
    rows.append(("kMACs", *(count / 1000 for count in macs)))
    columns = ("training", *(f"N={steps}" for steps in all_steps))
    tested = len(request.images.test.labels)
    return Figures(f"Accuracy in % on {tested} test images, mean of seeds", columns, rows)


def _orders(ratios: dict[Training, npt.NDArray[np.float64]]) -> Figures:
    """Return by how much the error of the last state falls as N doubles, against N = 192."""
    rows: list[tuple[str | float, ...]] = [
        (training, *map(float, ratio)) for training, ratio in ratios.items()
    ]
    columns = ("training", "N=6 to 12", "N=12 to 24")
    return Figures("Error over that with twice the steps (order 1: 2.1)", columns, rows)


def _remarks() -> list[str]:
    return [
        "Only the paper's abstract could be read. Scaled steps and training with small steps are "
        "our reconstruction; step-randomised training is our own and not the paper's.",
        "Rows of one training are one set of weights. Dedicated networks are trained plainly, for "
        "their number of steps alone.",
    ]
