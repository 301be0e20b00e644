"""``python -m savers.kronecker``: a model of the zoo with its matrices in Kronecker factors."""

from __future__ import annotations

import copy
import fnmatch
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from pydantic import JsonValue
from rich.progress import Progress
from torch import Tensor, nn

from runtime.errors import InputError
from runtime.terminal import Command, progress_bar
from savers import checkpoint
from savers.catalogue import ZOO
from savers.dataset import DEFAULT_FOLDER, Split, read_fashion_mnist, split_training_images
from savers.display import epochs_shown
from savers.distil import predict
from savers.kronecker_network import Search, factor, factorable, merge
from savers.kronecker_orders import absorb_orders
from savers.kronecker_plan import Budget, plan_network
from savers.kronecker_shapes import Factoring
from savers.kronecker_training import Compression, Step, multi_step, one_shot
from savers.networks import NETWORKS, count_macs
from savers.recipe import Recipe
from savers.views import Images, normalise
from savers.workshop import Trained, write_model

_PATH = click.Path(path_type=Path)
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


@click.command(cls=Command)
@click.argument("model", type=click.Choice(list(ZOO)))
@click.option("--macs", type=click.IntRange(1), help="Most multiply-accumulates, all counted.")
@click.option("--parameters", type=click.IntRange(1), help="Most parameters, all counted.")
@click.option(
    "--modules",
    default="*.network.*",
    show_default=True,
    help="Which to factor: a pattern of names.",
)
@click.option(
    "--method",
    type=click.Choice(["permuted", "plain", "shuffled", "random"]),
    default="permuted",
    show_default=True,
    help="Orders searched for, kept, or drawn; or random factors. The last two are controls.",
)
@click.option("--restarts", type=click.IntRange(0), default=4, show_default=True)
@click.option("--epochs", type=click.IntRange(0), default=12, show_default=True)
@click.option("--seed", type=int, default=31, show_default=True)
@click.option("--by-block", is_flag=True, help="Factor block by block, training after each.")
@click.option(
    "--hidden-weight",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Of the difference to the dense model's hidden states in the loss.",
)
@click.option("--merged", is_flag=True, help="Write the matrices multiplied out, not factors.")
@click.option("--name", help="Of the new model.  [default: MODEL-kronecker]")
@click.option("--checkpoint", type=_PATH, help="Of MODEL.  [default: build/train/MODEL.ckpt]")
@click.option("--data", type=_PATH, default=DEFAULT_FOLDER, show_default=True)
@click.option("--out", type=_PATH, default=Path("zoo/fashion"), show_default=True)
@click.option("--work", type=_PATH, default=Path("build/kronecker"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(model: str, macs: int | None, parameters: int | None, **options: Any) -> None:
    """Factor MODEL of the zoo under a budget, distil it from itself, and write it with a card.

    The budget counts everything in the network, factored or not. Needs the extra train, and the
    checkpoint that python -m savers.train zoo MODEL leaves. Interrupted, it goes on where it was.

    Factors are fewer numbers, and fewer multiplications if the budget asks for that, in more and
    smaller matrix products: measure which is faster. --merged has the dense model's speed and size.

    \b
    Examples
      python -m savers.kronecker vit-64 --macs 6500000
      python -m savers.kronecker vit-64 --parameters 100000 --by-block --hidden-weight 1
      python -m savers.kronecker vit-64 --macs 6500000 --method random --name vit-64-random
    """
    order = Order(
        model,
        options["modules"],
        Budget(parameters, macs),
        Search(options["method"], options["restarts"], options["seed"]),
        recipe(options["seed"], options["epochs"], options["hidden_weight"]),
        options["by_block"],
    )
    if macs is None and parameters is None:
        raise InputError("budget: expected --macs or --parameters, got neither.")
    torch.set_num_threads(1)
    dense = dense_network(model, options["checkpoint"] or Path(f"build/train/{model}.ckpt"))
    training = split_training_images(read_fashion_mnist(options["data"])[0])["train"]
    name = options["name"] or f"{model}-kronecker"
    with progress_bar() as progress:
        made = make(order, dense, training, options["work"] / name, progress)
    if options["merged"]:
        merge(made.network)
    trained = Trained(name, made.network, made.after)
    write_model(trained, options["out"], recipe=described(order, made), seed=options["seed"])
    _print(summary(name, dense, made), options["out"], as_json=options["as_json"])


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
        When there is none, or it is damaged or of another recipe.
    """
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


def _print(found: dict[str, JsonValue], out: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"Wrote {out / 'models' / str(found['name'])}.onnx")
    for key, value in found.items():
        click.echo(f"  {key.replace('_', ' '):26} {value}")


if __name__ == "__main__":
    main()
