"""What a factored network must beat at equal cost: training from scratch, layers left out.

Cost is multiply-accumulates of a sample times epochs, that of the dense network's own training
included.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from runtime.errors import InputError
from savers.catalogue import ZOO
from savers.display import epochs_shown
from savers.distil import Trainer
from savers.kronecker_model import Made, Order, accuracy, planned
from savers.kronecker_network import Search, factor
from savers.networks import NETWORKS, count_macs
from savers.recipe import Recipe
from savers.transformer import Block
from savers.views import Images
from savers.workshop import Workshop, held_back


def make_control(order: Order, dense: nn.Module, workshop: Workshop) -> Made:
    """Train what ``order.control`` names."""
    made = from_scratch if order.control == "scratch" else layers_dropped
    return made(order, dense, workshop)


def from_scratch(order: Order, dense: nn.Module, workshop: Workshop) -> Made:
    """Train random factors by the dense network's recipe, for what that and the factors cost."""
    model = ZOO[order.model]
    torch.manual_seed(order.recipe.seed)
    network, plan = NETWORKS[model.network](), planned(order, dense)
    factor(network, plan, Search("random", seed=order.recipe.seed))
    cost = model.recipe.epochs * count_macs(dense) + order.recipe.epochs * count_macs(network)
    recipe = replace(
        model.recipe,
        epochs=round(cost / count_macs(network)),
        seed=order.recipe.seed,
        monitor_size=0,
    )
    teacher = workshop.answers(model.teacher) if model.teacher and recipe.needs_teacher else None
    return _trained(order, network, dense, recipe, workshop, teacher=teacher)._replace(plan=plan)


def layers_dropped(order: Order, dense: nn.Module, workshop: Workshop) -> Made:
    """Leave out every second block and distil what is left, for what the factors cost.

    Raises
    ------
    InputError
        When the network has not two blocks of a transformer to leave one out of.
    """
    blocks = [name for name, module in dense.named_children() if isinstance(module, Block)]
    if len(blocks) < 2:
        raise InputError(
            f"--control layers-dropped: expected a transformer of at least 2 blocks, {order.model} "
            f"has {len(blocks)}. --control scratch is for any network."
        )
    network, factored = copy.deepcopy(dense), copy.deepcopy(dense)
    factor(factored, planned(order, dense), Search("random"))
    for name in blocks[1::2]:
        setattr(network, name, nn.Identity())
    cost = order.recipe.epochs * count_macs(factored)
    recipe = replace(order.recipe, epochs=round(cost / count_macs(network)))
    return _trained(order, network, dense, recipe, workshop, teacher=dense)


def _trained(
    order: Order,
    network: nn.Module,
    dense: nn.Module,
    recipe: Recipe,
    workshop: Workshop,
    *,
    teacher: Tensor | nn.Module | None,
) -> Made:
    held, rest = held_back(workshop.training, ZOO[order.model].recipe)
    scored = workshop.training.rows(held)
    before = accuracy(network, scored)
    examples = Images(workshop.training.rows(rest), recipe)
    given = teacher[torch.from_numpy(rest)] if isinstance(teacher, Tensor) else teacher
    trainer = Trainer(network, examples, recipe, teacher=given)
    report = epochs_shown(workshop.progress, order.model, recipe.epochs)
    trainer.run(workshop.work / "control.ckpt", report)
    after, there = accuracy(network, scored), accuracy(dense, scored)
    return Made(network, {}, before, after, there, recipe, trainer.seconds)
