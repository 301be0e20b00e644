"""Kronecker factors: what permutations give, before distillation and after it.

The paper's ablation cannot be told from its public tables: distillation alone may do most of it. So
each figure stands beside the same factors without permutations, with random ones, with random
factors, and beside low rank, layers left out and training from scratch, distilled alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from savers.configurations import KRONECKER, Kronecker
from savers.display import epochs_shown
from savers.distil import Epoch, Trainer
from savers.experiment import Experiment, Figures, Request, answers, right
from savers.kronecker_fit import decompose, decompose_plain
from savers.kronecker_language import language_figures
from savers.kronecker_network import Plan, Search, factor
from savers.kronecker_shapes import Factoring, Limit, Shape, propose
from savers.kronecker_training import Compression, Hidden, multi_step, one_shot
from savers.networks import count_macs
from savers.recipe import Recipe
from savers.transformer import patch_transformer
from savers.verdicts import Bar, Verdict, judge

PAPER = "TQCompressor, arXiv 2401.16367"
PLANTED_SHAPE, PLANTED_RESTARTS = Shape(4, 8, 4, 4), 30
PERMUTED, PLAIN, RANDOM = "permuted", "plain", "random factors"

Floats = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]


class Trial(NamedTuple):
    """A compressed network: its cost and the test images it answers rightly, ``bool [n]``."""

    parameters: int
    macs: int
    before: Hits
    after: Hits


class Seeded(NamedTuple):
    """What one seed gave.

    Attributes
    ----------
    errors
        Relative error of each matrix, by method, ``f64 [matrices]``, and of Gaussian matrices of
        the same sizes.
    planted
        Relative errors of shuffled Kronecker matrices, plain and permuted, ``f64 [n]`` each.
    """

    teacher: Trial
    trials: dict[str, Trial]
    errors: dict[str, Floats]
    planted: tuple[Floats, Floats]


def experiment(request: Request) -> Experiment:
    """Compress and distil every way for each seed, and judge the bars."""
    chosen = KRONECKER[request.size]
    request.images.require(chosen.teacher.batch)
    found = [_one_seed(request, seed) for seed in request.seeds]
    figures = [_accuracies(found), _errors(found)]
    if chosen.language:
        figures.append(language_figures(request))
    judged = verdicts(found) if request.size == "small" else large_verdicts(found)
    return Experiment(PAPER, judged, figures, _REMARKS)


def verdicts(found: list[Seeded]) -> list[Verdict]:
    """Hold what all seeds gave against the bars, fixed in advance."""

    def errors(method: str) -> Floats:
        return np.stack([seeded.errors[method] for seeded in found])

    return [
        judge(
            Bar("permutations lower the mean error", "the same factors, plain", 3.0, unit="%"),
            lambda permuted, plain: 100 * (1 - permuted / plain),
            errors(PERMUTED),
            errors(PLAIN),
        ),
        judge(
            Bar("before distillation, above the control", RANDOM, 20.0),
            lambda permuted, control: 100 * (permuted - control),
            np.stack([seeded.trials[PERMUTED].before for seeded in found]),
            np.stack([seeded.trials[RANDOM].before for seeded in found]),
        ),
        *_against_teacher(found, 1.45),
        judge(
            Bar(
                f"error on planted matrices, {PLANTED_RESTARTS} restarts",
                "plain",
                0.8,
                at_most=True,
                unit="x",
            ),
            lambda plain, permuted: permuted / plain,
            np.stack([seeded.planted[0] for seeded in found]),
            np.stack([seeded.planted[1] for seeded in found]),
        ),
    ]


def large_verdicts(found: list[Seeded]) -> list[Verdict]:
    """Hold what all seeds gave with the large configuration against its bars."""
    return [
        *_against_teacher(found, 1.5),
        judge(
            Bar("distilled, permutations gain", "the same factors, plain", 0.3),
            lambda permuted, plain: 100 * (permuted - plain),
            np.stack([seeded.trials[PERMUTED].after for seeded in found]),
            np.stack([seeded.trials[PLAIN].after for seeded in found]),
        ),
    ]


def _against_teacher(found: list[Seeded], fewer: float) -> list[Verdict]:
    ratio = found[0].teacher.parameters / found[0].trials[PERMUTED].parameters
    return [
        judge(
            Bar("distilled, below the teacher", "teacher", 2.0, at_most=True),
            lambda teacher, permuted: 100 * (teacher - permuted),
            np.stack([seeded.teacher.after for seeded in found]),
            np.stack([seeded.trials[PERMUTED].after for seeded in found]),
        ),
        judge(Bar("fewer parameters, all counted", "teacher", fewer, unit="x"), float, [[ratio]]),
    ]


def plan(chosen: Kronecker) -> Plan:
    """Return the factors of both matrices of each block's two-layer network."""
    return _planned(chosen, chosen.wide, chosen.narrow)


def balanced_plan(chosen: Kronecker) -> Plan:
    """Return the factors that the planner proposes for no more parameters."""
    width = chosen.width
    wide = propose(4 * width, width, Limit(parameters=chosen.wide.parameters))
    narrow = propose(width, 4 * width, Limit(parameters=chosen.narrow.parameters))
    return _planned(chosen, wide, narrow)


def low_rank_plan(chosen: Kronecker) -> Plan:
    """Return matrices of low rank with about as many parameters: a special case of factors."""
    width, rank = chosen.width, chosen.low_rank
    wide, narrow = Shape(1, width, 4 * width, 1), Shape(1, 4 * width, width, 1)
    return _planned(chosen, Factoring(wide, rank), Factoring(narrow, rank))


def blocks(chosen: Kronecker) -> range:
    """Return the modules of the network that are blocks; in each, two matrices are factored."""
    return range(2, 2 + chosen.depth)


def _planned(chosen: Kronecker, wide: Factoring, narrow: Factoring) -> Plan:
    return {name: wide if name.endswith("1") else narrow for name in _names(blocks(chosen))}


def _names(places: Iterable[int]) -> list[str]:
    return [f"{block}.network.{place}" for block in places for place in (1, 3)]


class _Bench:
    """One seed's teacher, and what is made out of it."""

    def __init__(self, request: Request, seed: int) -> None:
        self._images, self._seed, self._request = request.images, seed, request
        self._chosen = KRONECKER[request.size]
        self.errors: dict[str, Floats] = {}
        self.teacher = self._new()
        self._learn(self.teacher, "teacher", self._teacher_recipe)
        examples = self._images.examples(self._images.train, self._pupil_recipe)
        self._logits = answers(self.teacher, examples)

    def compressed(self, name: str, whole: Plan, search: Search) -> Trial:
        """Return what factors give, before distillation from logits and after it."""
        compression = self._compression(self._logits)
        compression.run(one_shot(whole, 0), search)
        before = right(compression.network, self._images)
        compression.run(one_shot({}, self._epochs), search, report=self._report(name))
        self.errors[name] = np.array([item.error for item in compression.found.values()])
        return self.trial(compression.network, before)

    def in_two_steps(self, name: str, search: Search, before: Hits) -> Trial:
        """Return the same with the matrices of odd blocks factored first, and training between."""
        compression = self._compression(self._logits)
        odd, even = (_names(blocks(self._chosen)[start::2]) for start in (1, 0))
        steps = multi_step(plan(self._chosen), (odd, even), self._epochs)
        compression.run(steps, search, report=self._report(name))
        return self.trial(compression.network, before)

    def with_hidden_states(self, name: str, search: Search, before: Hits) -> Trial:
        """Return the same, distilled from the hidden states after each block too."""
        pairs = [(str(block), str(block)) for block in blocks(self._chosen)]
        compression = self._compression(self.teacher, pairs)
        compression.run(
            one_shot(plan(self._chosen), self._epochs), search, report=self._report(name)
        )
        return self.trial(compression.network, before)

    def layers_dropped(self) -> Trial:
        """Return the teacher without every second block, distilled alike."""
        network = copy.deepcopy(self.teacher)
        for block in blocks(self._chosen)[1::2]:
            network[block] = nn.Identity()
        before = right(network, self._images)
        self._learn(network, "layers dropped", self._pupil_recipe, self._logits)
        return self.trial(network, before)

    def from_scratch(self) -> Trial:
        """Return random factors trained on labels for as long as teacher and pupil together."""
        network = self._new()
        factor(network, plan(self._chosen), Search("random", seed=self._seed))
        before = right(network, self._images)
        longer = self._teacher_recipe.epochs + self._epochs
        self._learn(network, "from scratch", replace(self._teacher_recipe, epochs=longer))
        return self.trial(network, before)

    def trial(self, network: nn.Module, before: Hits) -> Trial:
        """Return the cost of a network and what it answers."""
        parameters = sum(item.numel() for item in network.parameters())
        macs = count_macs(copy.deepcopy(network).cpu(), self._images.shape)
        return Trial(parameters, macs, before, right(network, self._images))

    def _compression(self, teacher: torch.Tensor | nn.Module, hidden: Hidden = ()) -> Compression:
        recipe = replace(self._pupil_recipe, hidden_weight=1.0 if hidden else 0.0)
        examples = self._images.examples(self._images.train, recipe)
        network = copy.deepcopy(self.teacher)
        return Compression(network, examples, recipe, teacher=teacher, hidden=hidden)

    @property
    def _teacher_recipe(self) -> Recipe:
        """How the teacher, and what is trained from scratch, learns from labels."""
        recipe = replace(self._chosen.teacher, seed=self._seed)
        return replace(recipe, epochs=2) if self._request.quick else recipe

    @property
    def _pupil_recipe(self) -> Recipe:
        """How a compressed network learns from the teacher's logits."""
        return replace(
            self._teacher_recipe,
            epochs=self._epochs,
            learning_rate=self._chosen.pupil_rate,
            teacher_weight=0.9,
            temperature=2.0,
        )

    @property
    def _epochs(self) -> int:
        return 1 if self._request.quick else self._chosen.pupil_epochs

    def _report(self, name: str) -> Callable[[Epoch], None]:
        return epochs_shown(self._request.progress, f"seed {self._seed}: {name}", self._epochs)

    def _new(self) -> nn.Sequential:
        torch.manual_seed(self._seed)
        chosen, images = self._chosen, self._images
        network = patch_transformer(
            images.side,
            patch=chosen.patch,
            width=chosen.width,
            depth=chosen.depth,
            channels=images.channels,
            classes=images.classes,
        )
        return network.to(self._request.device)

    def _learn(
        self, network: nn.Module, name: str, recipe: Recipe, teacher: torch.Tensor | None = None
    ) -> None:
        examples = self._images.examples(self._images.train, recipe)
        report = epochs_shown(self._request.progress, f"seed {self._seed}: {name}", recipe.epochs)
        Trainer(network, examples, recipe, teacher=teacher).run(report=report)


def _one_seed(request: Request, seed: int) -> Seeded:
    bench, chosen = _Bench(request, seed), KRONECKER[request.size]
    search = Search(restarts=0 if request.quick else chosen.restarts, seed=seed)
    whole, plain = plan(chosen), Search("plain")
    permuted = bench.compressed(PERMUTED, whole, search)
    trials = {
        PERMUTED: permuted,
        PLAIN: bench.compressed(PLAIN, whole, plain),
        "shuffled": bench.compressed("shuffled", whole, Search("shuffled", seed=seed)),
        RANDOM: bench.compressed(RANDOM, whole, Search("random", seed=seed)),
        "balanced shapes": bench.compressed("balanced shapes", balanced_plan(chosen), search),
        "low rank": bench.compressed("low rank", low_rank_plan(chosen), plain),
        "in two steps": bench.in_two_steps("in two steps", search, permuted.before),
        "hidden states too": bench.with_hidden_states("hidden states", search, permuted.before),
        "layers dropped": bench.layers_dropped(),
        "from scratch, equal total": bench.from_scratch(),
    }
    teacher = bench.trial(bench.teacher, right(bench.teacher, request.images))
    errors = bench.errors | _gaussian_errors(whole, search)
    return Seeded(teacher, trials, errors, _planted_errors(chosen.planted, seed))


def _gaussian_errors(whole: Plan, search: Search) -> dict[str, Floats]:
    """Return the errors on matrices without any structure, of the same sizes."""
    rng = np.random.default_rng(search.seed)
    found: dict[str, list[float]] = {"gaussian, permuted": [], "gaussian, plain": []}
    for factoring in whole.values():
        matrix = rng.standard_normal((factoring.shape.rows, factoring.shape.columns))
        found["gaussian, permuted"].append(search.run(matrix, factoring).error)
        found["gaussian, plain"].append(decompose_plain(matrix, factoring).error)
    return {name: np.array(errors) for name, errors in found.items()}


def _planted_errors(count: int, seed: int) -> tuple[Floats, Floats]:
    """Return errors on one Kronecker product each with its rows and columns shuffled."""
    rng, factoring = np.random.default_rng(seed), Factoring(PLANTED_SHAPE, 1)
    m1, n1, m2, n2 = PLANTED_SHAPE
    plain, permuted = [], []
    for number in range(count):
        product = np.kron(rng.standard_normal((m1, n1)), rng.standard_normal((m2, n2)))
        shuffled = rng.permutation(rng.permutation(product, axis=0), axis=1)
        plain.append(decompose_plain(shuffled, factoring).error)
        found = decompose(shuffled, factoring, restarts=PLANTED_RESTARTS, seed=number)
        permuted.append(found.error)
    return np.array(plain), np.array(permuted)


def _accuracies(found: list[Seeded]) -> Figures:
    rows: list[tuple[str | float, ...]] = [_row("teacher", [item.teacher for item in found])]
    rows += [_row(name, [item.trials[name] for item in found]) for name in found[0].trials]
    return Figures(
        "Test accuracy, %, mean over seeds; parameters and MACs with everything",
        ("network", "parameters", "MACs", "before", "distilled"),
        rows,
    )


def _row(name: str, trials: list[Trial]) -> tuple[str | float, ...]:
    before, after = (
        round(100 * float(np.mean([getattr(trial, when) for trial in trials])), 2)
        for when in ("before", "after")
    )
    return name, trials[0].parameters, trials[0].macs, before, after


def _errors(found: list[Seeded]) -> Figures:
    rows: list[tuple[str | float, ...]] = [
        (name, round(float(np.mean([item.errors[name] for item in found])), 4))
        for name in found[0].errors
    ]
    planted = [float(np.mean([item.planted[place] for item in found])) for place in (0, 1)]
    rows += [("planted, plain", round(planted[0], 4)), ("planted, permuted", round(planted[1], 4))]
    return Figures(
        "Relative error of a matrix, mean over layers and seeds", ("method", "error"), rows
    )


_REMARKS = [
    "The gain on Gaussian matrices comes of the freedom of the search, not of structure found.",
    "Distilled from logits but for the row that says otherwise; epochs are the same in all rows.",
]
