"""What training minimises: labels, a teacher's answers and its hidden states.

::

    (1 - w) * hard + w * T^2 * KL(softmax(z_teacher / T) || softmax(z / T)) + v * MSE(hidden)

``hard`` is cross-entropy, or the Gatekeeper loss. The second term is knowledge distillation
(Hinton, Vinyals, Dean, arXiv 1503.02531), the third that of hidden states (Romero et al.,
arXiv 1412.6550).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.errors import InputError
from savers.recipe import Recipe


class Answers(NamedTuple):
    """What a network says: logits ``[..., K]`` and the hidden states that are asked for."""

    logits: Tensor
    hidden: list[Tensor]


def ask(network: nn.Module, inputs: Tensor, modules: Sequence[str] = ()) -> Answers:
    """Run a network and also return the outputs of some of its modules.

    Parameters
    ----------
    modules
        Their names in ``network.named_modules()``; in an ``nn.Sequential`` that is the position.

    Raises
    ------
    InputError
        When the network has no module of a name.
    """
    if not modules:
        return Answers(network(inputs), [])
    known = dict(network.named_modules())
    for name in modules:
        if name not in known:
            raise InputError(f"hidden state {name!r}: the network has no module of that name.")
    outputs: dict[str, Tensor] = {}
    handles = [
        known[name].register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name in set(modules)
    ]
    try:
        logits = network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Answers(logits, [outputs[name] for name in modules])


def total_loss(
    found: Answers, labels: Tensor, recipe: Recipe, *, teacher: Answers | None = None
) -> Tensor:
    """Return the loss of a batch, a mean over its samples or tokens.

    Parameters
    ----------
    found
        Of the student; logits ``f32 [n, K]`` or ``f32 [n, t, K]``.
    labels
        ``i64 [n]`` or ``i64 [n, t]``.

    Raises
    ------
    InputError
        When the teacher has other classes, or a hidden state of another shape.
    """
    logits = found.logits.float().flatten(0, -2)
    loss = hard_loss(logits, labels.flatten(), recipe)
    if teacher is None:
        return loss
    w = recipe.teacher_weight
    if w > 0:
        t = recipe.temperature
        loss = (1 - w) * loss + w * t * t * divergence(logits, teacher.logits.flatten(0, -2), t)
    if recipe.hidden_weight > 0:
        loss = loss + recipe.hidden_weight * hidden_loss(found.hidden, teacher.hidden)
    return loss


def hard_loss(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss against labels ``i64 [n]`` of logits ``f32 [n, K]``."""
    if recipe.gatekeeper > 0:
        return gatekeeper_loss(logits, labels, recipe.gatekeeper)
    return functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)


def gatekeeper_loss(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Return the loss that makes right answers confident and wrong ones uniform.

    ``share * mean 1{right} CE + (1 - share) * mean 1{wrong} KL(p || uniform)``: Rabanser et al.,
    arXiv 2502.19335.

    Parameters
    ----------
    logits, labels
        ``f32 [n, K]`` and ``i64 [n]``.
    share
        In (0, 1]; the less, the more of what is wrong is sent on.
    """
    logs = functional.log_softmax(logits, 1)
    right = logits.argmax(1) == labels
    surprise = functional.nll_loss(logs, labels, reduction="none")
    peakedness = (logs.exp() * logs).sum(1) + math.log(logits.shape[1])
    return torch.where(right, share * surprise, (1 - share) * peakedness).mean()


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``KL(softmax(teacher / T) || softmax(logits / T))``, both ``f32 [n, K]``."""
    if logits.shape[1] != teacher.shape[1]:
        raise InputError(
            f"teacher: expected logits over the network's {logits.shape[1]} classes, got "
            f"{teacher.shape[1]}. Take a teacher of the same task, or train on labels alone."
        )
    return functional.kl_div(
        functional.log_softmax(logits / temperature, 1),
        functional.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def hidden_loss(found: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over pairs of the mean squared difference."""
    for mine, theirs in zip(found, teacher, strict=True):
        if mine.shape != theirs.shape:
            raise InputError(
                f"hidden state: expected the teacher's {list(theirs.shape)}, got "
                f"{list(mine.shape)}. Match modules of equal width."
            )
    each = [
        functional.mse_loss(mine.float(), theirs.float())
        for mine, theirs in zip(found, teacher, strict=True)
    ]
    return torch.stack(each).mean()
