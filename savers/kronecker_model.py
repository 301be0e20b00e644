"""A model of the zoo with its matrices in Kronecker factors, trained and described."""

from __future__ import annotations

import copy
import fnmatch
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from runtime.errors import InputError
from savers.catalogue import ZOO
from savers.dataset import Split
from savers.display import epochs_shown
from savers.distil import predict
from savers.kronecker_network import Search, factor, factorable
from savers.kronecker_orders import absorb_orders
from savers.kronecker_plan import Budget, plan_network
from savers.kronecker_shapes import Factoring
from savers.kronecker_training import Compression, Step, multi_step, one_shot
from savers.networks import count_macs
from savers.recipe import Recipe
from savers.views import Images, normalise
from savers.workshop import Workshop, held_back

Control = Literal["scratch", "layers-dropped"]


@dataclass(frozen=True)
class Order:
    """What is to be made of a model.

    Attributes
    ----------
    modules
        Pattern of the names of the modules to factor.
    by_block
        Whether the modules of one block after the other are factored, each followed by training.
    control
        What `savers.kronecker_controls` trains in place of the factored network, at its cost.
    """

    model: str
    modules: str
    budget: Budget
    search: Search
    recipe: Recipe
    by_block: bool
    control: Control | None = None


class Made(NamedTuple):
    """A network in place of a dense one, and accuracies on the training images held back.

    Attributes
    ----------
    plan
        Its factors; none where it has none.
    before, after, dense
        Accuracy before and after it was trained, and that of the dense network.
    recipe
        How it was trained.
    seconds
        CPU time of that.
    """

    network: nn.Module
    plan: dict[str, Factoring]
    before: float
    after: float
    dense: float
    recipe: Recipe
    seconds: float | None


def recipe(seed: int, epochs: int, hidden_weight: float) -> Recipe:
    """Return how the factored network learns from the dense one."""
    return Recipe(
        epochs=epochs,
        seed=seed,
        learning_rate=1e-3,
        weight_decay=0.05,
        teacher_weight=0.9,
        temperature=2.0,
        monitor_size=0,
        optimiser="adamw",
        hidden_weight=hidden_weight,
    )


def planned(order: Order, dense: nn.Module) -> dict[str, Factoring]:
    """Return the factors of each module that fit the budget.

    Raises
    ------
    InputError
        When no module is meant, or no factors fit.
    """
    names = fnmatch.filter(factorable(dense), order.modules)
    if not names:
        raise InputError(
            f"--modules {order.modules}: expected a pattern of some of "
            f"{', '.join(factorable(dense)) or 'none'}."
        )
    return plan_network(dense, names, order.budget)


def make(order: Order, dense: nn.Module, workshop: Workshop) -> Made:
    """Factor a copy of a network and train it on all but the training images held back."""
    plan = planned(order, dense)
    training = workshop.training
    held, rest = (training.rows(rows) for rows in held_back(training, ZOO[order.model].recipe))
    untrained = copy.deepcopy(dense)
    factor(untrained, plan, order.search)
    compression = _compression(order, dense, rest)
    compression.run(
        steps(order, plan),
        order.search,
        kept=workshop.work,
        report=epochs_shown(workshop.progress, order.model, order.recipe.epochs),
    )
    network = compression.network
    absorb_orders(network)
    before, after, there = (accuracy(item, held) for item in (untrained, network, dense))
    return Made(network, plan, before, after, there, order.recipe, compression.seconds)


def steps(order: Order, plan: dict[str, Factoring]) -> list[Step]:
    """Return all modules in one step, or those of a block in each."""
    if not order.by_block:
        return one_shot(plan, order.recipe.epochs)
    blocks = dict.fromkeys(name.partition(".")[0] for name in plan)
    groups = [[name for name in plan if name.partition(".")[0] == block] for block in blocks]
    return multi_step(plan, groups, order.recipe.epochs)


def accuracy(network: nn.Module, split: Split) -> float:
    """Return the share of images whose class a network names."""
    found = predict(network, normalise(split.images)).argmax(-1)
    hits: Tensor = found == torch.from_numpy(split.labels)
    return float(hits.float().mean())


def described(order: Order, made: Made) -> dict[str, JsonValue]:
    """Return what the card says under ``recipe``."""
    factors: dict[str, JsonValue] = {
        name: f"{item.terms} x {item.shape.text()}" for name, item in made.plan.items()
    }
    return {
        "network": ZOO[order.model].network,
        "teacher": ZOO[order.model].teacher if order.control == "scratch" else order.model,
        "factors": factors,
        "method": order.control or order.search.method,
        "restarts": order.search.restarts,
        "by_block": order.by_block,
        **asdict(made.recipe),
    }


def summary(name: str, dense: nn.Module, made: Made) -> dict[str, JsonValue]:
    """Return what is printed: costs with everything, and accuracy on images held back."""
    return {
        "name": name,
        "dense_parameters": sum(item.numel() for item in dense.parameters()),
        "parameters": sum(item.numel() for item in made.network.parameters()),
        "dense_macs": count_macs(dense),
        "macs": count_macs(made.network),
        "dense_accuracy": made.dense,
        "accuracy_before_training": made.before,
        "accuracy": made.after,
    }


def _compression(order: Order, dense: nn.Module, split: Split) -> Compression:
    hidden = []
    if order.recipe.hidden_weight > 0:
        blocks = dict.fromkeys(
            name.partition(".")[0] for name in fnmatch.filter(factorable(dense), order.modules)
        )
        hidden = [(block, block) for block in blocks]
    network, examples = copy.deepcopy(dense), Images(split, order.recipe)
    return Compression(network, examples, order.recipe, teacher=dense, hidden=hidden)
