"""Shared depth on digits: how few steps the same weights stand, by how they were trained.

Whether scaling the steps is worth anything, and whether training for it is, can be seen in minutes.
What cannot is a use for twelve steps: on digits a network that is trained for two alone is as good.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from savers.depth_design import TRAININGS, Design, Training
from savers.depth_network import SharedDepth, euler_errors
from savers.depth_tasks import digits_network, digits_recipe
from savers.depth_training import Lesson, fit
from savers.digits import SIDE, Digits, read_digits
from savers.display import epochs_shown
from savers.experiment import Experiment, Figures, Request, right
from savers.networks import count_macs
from savers.verdicts import Bar, Verdict, judge

PAPER = "Parameter-shared PLMs as ODEs, arXiv 2310.12818"
WIDTH, HEADS, HIDDEN = 32, 4, 128
STEPS = (12, 8, 6, 4, 3, 2)
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
        Which test images are answered rightly, ``bool [500]``.
    ratios
        By training, the error with 6 steps over that with 12, and with 12 over that with 24.
    """

    hits: dict[Asked, Hits]
    ratios: dict[str, tuple[float, float]]


def experiment(request: Request) -> Experiment:
    """Train the three ways and the controls for each seed, and judge the bars."""
    digits = read_digits()
    found = [_one_seed(digits, seed, request) for seed in request.seeds]
    hits = {asked: np.stack([seeded.hits[asked] for seeded in found]) for asked in found[0].hits}
    ratios = {
        training: np.mean([seeded.ratios[training] for seeded in found], axis=0)
        for training in TRAININGS
    }
    return Experiment(PAPER, verdicts(hits), [_accuracies(hits), _orders(ratios)], _remarks())


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


def design(training: Training, steps: int = STEPS[0]) -> Design:
    """Return the network that is trained."""
    return Design(training, steps, WIDTH, HEADS, HIDDEN)


def _one_seed(digits: Digits, seed: int, request: Request) -> Seeded:
    hits: dict[Asked, Hits] = {}
    ratios: dict[str, tuple[float, float]] = {}
    for training in TRAININGS:
        network = _fit(design(training), digits, seed, request)
        size = network.time / network.steps
        for steps in STEPS:
            hits[Asked(training, True, steps)] = right(network.at(steps), digits)
            unscaled = network.at(steps, time=steps * size)
            hits[Asked(training, False, steps)] = right(unscaled, digits)
        ratios[training] = _ratios(network, digits, seed)
    for steps in STEPS:
        # The first is the plain training itself.
        alone = hits[Asked("plain", True, steps)]
        if steps != STEPS[0]:
            alone = right(_fit(design("plain", steps), digits, seed, request), digits)
        hits[Asked("dedicated", True, steps)] = alone
    return Seeded(hits, ratios)


def _fit(planned: Design, digits: Digits, seed: int, request: Request) -> SharedDepth:
    recipe = digits_recipe(seed, epochs=1) if request.quick else digits_recipe(seed)
    name = f"seed {seed}: {planned.training}, {planned.steps} steps"
    return fit(
        digits_network,
        planned,
        Lesson(digits.examples(digits.train, recipe), recipe),
        report=epochs_shown(request.progress, name, recipe.epochs),
    )


def _ratios(network: SharedDepth, digits: Digits, seed: int) -> tuple[float, float]:
    inputs = digits.examples(digits.test, digits_recipe(seed)).plain(np.arange(EULER_IMAGES))
    coarse, middle, fine = euler_errors(network, inputs, EULER)
    return coarse / middle, middle / fine


def _accuracies(hits: dict[Asked, Hits]) -> Figures:
    """Return mean accuracy in percent: a row for each way to be asked, a column for each N."""
    rows: list[tuple[str | float, ...]] = []
    for training, scaled in dict.fromkeys((asked.training, asked.scaled) for asked in hits):
        means = [100 * float(hits[Asked(training, scaled, steps)].mean()) for steps in STEPS]
        rows.append((training if scaled else f"{training}, unscaled", *means))
    macs = [count_macs(digits_network(design("plain", steps)), (1, SIDE, SIDE)) for steps in STEPS]
    rows.append(("kMACs", *(count / 1000 for count in macs)))
    columns = ("training", *(f"N={steps}" for steps in STEPS))
    return Figures("Accuracy in % on 500 test images, mean of seeds", columns, rows)


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
