"""Kronecker factors in a small byte-level language model, as the paper has them in GPT-2."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from savers.display import epochs_shown
from savers.distil import Trainer
from savers.experiment import Figures, Request
from savers.kronecker_network import Search, factor, parameters_with
from savers.kronecker_shapes import Factoring, Shape
from savers.kronecker_training import Compression, multi_step
from savers.recipe import Recipe
from savers.text import VOCABULARY, perplexity, read_topics, sequences
from savers.transformer import language_transformer
from savers.views import Sequences

TOKENS, WIDTH, DEPTH = 64, 64, 2
WIDE, NARROW = Factoring(Shape(128, 32, 2, 2), 2), Factoring(Shape(32, 128, 2, 2), 2)
EMBEDDING = Factoring(Shape(VOCABULARY, WIDTH // 2, 1, 2), 1)
MATRICES = {
    f"{2 + block}.network.{place}": factoring
    for block in range(DEPTH)
    for place, factoring in ((1, WIDE), (3, NARROW))
}
PLAN = {"0": EMBEDDING, **MATRICES}
SEED = 0


def language_figures(request: Request) -> Figures:
    """Return perplexity per byte on the last tenth of Python's help topics, one seed."""
    text = read_topics()
    train, held_out = sequences(text.train, TOKENS), sequences(text.held_out, TOKENS)
    if request.quick:
        train, held_out = _first(train, 320), _first(held_out, 64)
    teacher = _teacher(train, request)
    rows: list[tuple[str | float, ...]] = [
        ("dense", _parameters(teacher), round(perplexity(teacher, held_out), 3), "")
    ]
    restarts = 0 if request.quick else 4
    for name, search in (
        ("permuted", Search("permuted", restarts, SEED)),
        ("plain", Search("plain")),
    ):
        network = copy.deepcopy(teacher)
        before = perplexity(_factored(network, search), held_out)
        _distil(network, teacher, train, search, request)
        counted = parameters_with(teacher, PLAN)
        rows.append((name, counted, round(before, 3), round(perplexity(network, held_out), 3)))
    return Figures(
        "Byte-level language model, perplexity per byte, seed 0; the output matrix is counted",
        ("network", "parameters", "before", "distilled"),
        rows,
    )


def recipe(*, quick: bool) -> Recipe:
    """Return how the dense model is trained."""
    return Recipe(
        epochs=1 if quick else 6,
        seed=SEED,
        batch=64,
        learning_rate=3e-3,
        weight_decay=0.05,
        monitor_size=0,
        optimiser="adamw",
        bfloat16=False,
    )


def pupil_recipe(*, quick: bool) -> Recipe:
    """Return how factors learn from the dense model's logits and hidden states."""
    return replace(
        recipe(quick=quick),
        epochs=2,
        learning_rate=1e-3,
        teacher_weight=0.9,
        temperature=2.0,
        hidden_weight=1.0,
    )


def _teacher(train: Sequences, request: Request) -> nn.Module:
    torch.manual_seed(SEED)
    network = language_transformer(VOCABULARY, TOKENS, width=WIDTH, depth=DEPTH)
    plan = recipe(quick=request.quick)
    report = epochs_shown(request.progress, "language model", plan.epochs)
    return Trainer(network, train, plan).run(report=report)


def _factored(network: nn.Module, search: Search) -> nn.Module:
    copied = copy.deepcopy(network)
    factor(copied, PLAN, search)
    return copied


def _distil(
    network: nn.Module, teacher: nn.Module, train: Sequences, search: Search, request: Request
) -> None:
    """Factor the embedding, then the matrices, each followed by training, as the paper does."""
    plan = pupil_recipe(quick=request.quick)
    report = epochs_shown(request.progress, f"language model, {search.method}", plan.epochs)
    pairs = [(str(2 + block), str(2 + block)) for block in range(DEPTH)]
    steps = multi_step(PLAN, (["0"], MATRICES), plan.epochs)
    Compression(network, train, plan, teacher=teacher, hidden=pairs).run(
        steps, search, report=report
    )


def _parameters(network: nn.Module) -> int:
    return sum(item.numel() for item in network.parameters())


def _first(examples: Sequences, count: int) -> Sequences:
    rows = torch.arange(count).numpy()
    return Sequences(examples.plain(rows).numpy(), examples.labels[rows].numpy())
