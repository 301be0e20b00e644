"""A model of the zoo with its matrices in Kronecker factors, trained and described."""

from __future__ import annotations

import copy
import fnmatch
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import JsonValue
from rich.progress import Progress
from torch import Tensor, nn

from runtime.errors import InputError
from savers import checkpoint
from savers.catalogue import ZOO
from savers.dataset import Split
from savers.display import epochs_shown
from savers.distil import predict
from savers.kronecker_network import Search, factor, factorable
from savers.kronecker_orders import absorb_orders
from savers.kronecker_plan import Budget, plan_network
from savers.kronecker_shapes import Factoring
from savers.kronecker_training import Compression, Step, multi_step, one_shot
from savers.networks import NETWORKS, count_macs
from savers.recipe import Recipe
from savers.views import Images, normalise

HELD_BACK = 2_000
"""Training images by which accuracy is told; the factors are not trained on them."""


@dataclass(frozen=True)
class Order:
    """What is to be made of a model.

    Attributes
    ----------
    modules
        Pattern of the names of the modules to factor.
    by_block
        Whether the modules of one block after the other are factored, each followed by training.
    """

    model: str
    modules: str
    budget: Budget
    search: Search
    recipe: Recipe
    by_block: bool


class Made(NamedTuple):
    """A factored network and its accuracy on the training images held back."""

    network: nn.Module
    plan: dict[str, Factoring]
    before: float
    after: float
    dense: float


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


def dense_network(model: str, path: Path) -> nn.Module:
    """Read a trained model of the zoo from its checkpoint.

    Raises
    ------
    InputError
        When the zoo has no such model, or there is no checkpoint, or a damaged one, or one of
        another recipe.
    """
    if model not in ZOO:
        raise InputError(f"{model}: unknown; expected one of {', '.join(ZOO)}.")
    if not path.exists():
        raise InputError(
            f"{path}: not found. Train the model first, python -m savers.train zoo {model}, or "
            "name its checkpoint with --checkpoint."
        )
    state = checkpoint.load(path, ZOO[model].recipe)
    network = NETWORKS[ZOO[model].network]()
    network.load_state_dict(state.get("averaged") or state["network"])
    return network.eval()


def make(order: Order, dense: nn.Module, training: Split, work: Path, progress: Progress) -> Made:
    """Factor a copy of a network and train it on all but the training images held back."""
    names = fnmatch.filter(factorable(dense), order.modules)
    if not names:
        raise InputError(
            f"--modules {order.modules}: expected a pattern of some of "
            f"{', '.join(factorable(dense)) or 'none'}."
        )
    plan = plan_network(dense, names, order.budget)
    rows = np.random.default_rng(order.recipe.seed).permutation(len(training.labels))
    held, rest = training.rows(rows[:HELD_BACK]), training.rows(rows[HELD_BACK:])
    untrained = copy.deepcopy(dense)
    factor(untrained, plan, order.search)
    compression = _compression(order, dense, rest)
    compression.run(
        steps(order, plan),
        order.search,
        kept=work,
        report=epochs_shown(progress, order.model, order.recipe.epochs),
    )
    network = compression.network
    absorb_orders(network)
    scores = [accuracy(item, held) for item in (untrained, network, dense)]
    return Made(network, plan, *scores)


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
        "teacher": order.model,
        "factors": factors,
        "method": order.search.method,
        "restarts": order.search.restarts,
        "by_block": order.by_block,
        **asdict(order.recipe),
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
