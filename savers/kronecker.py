"""``python -m savers.kronecker``: a model of the zoo with its matrices in Kronecker factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from pydantic import JsonValue

from runtime.errors import InputError
from runtime.terminal import Command, progress_bar
from savers.dataset import DEFAULT_FOLDER, read_fashion_mnist, split_training_images

_PATH = click.Path(path_type=Path)


@click.command(cls=Command)
@click.argument("model")
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
@click.option(
    "--control",
    type=click.Choice(["scratch", "layers-dropped"]),
    help="Train this instead, at equal cost: the factored network, or every second block left out.",
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
      python -m savers.kronecker vit-64 --macs 6500000 --control scratch
    """
    if macs is None and parameters is None:
        raise InputError("budget: expected --macs or --parameters, got neither.")
    if options["control"] and (options["by_block"] or options["hidden_weight"]):
        raise InputError(
            f"--control {options['control']}: expected neither --by-block nor --hidden-weight, "
            "which are for factoring a trained network. Leave them out."
        )
    found = _run(model, macs, parameters, **options)
    _print(found, options["out"], as_json=options["as_json"])


def _run(
    model: str, macs: int | None, parameters: int | None, **options: Any
) -> dict[str, JsonValue]:
    """Do it, and return what is printed."""
    import torch

    from savers import kronecker_model as factored
    from savers.kronecker_controls import make_control
    from savers.kronecker_network import Search, merge
    from savers.kronecker_plan import Budget
    from savers.workshop import Trained, Workshop, trained_network, write_model

    # On one thread weights do not depend on how many there are.
    torch.set_num_threads(1)
    order = factored.Order(
        model,
        options["modules"],
        Budget(parameters, macs),
        Search(options["method"], options["restarts"], options["seed"]),
        factored.recipe(options["seed"], options["epochs"], options["hidden_weight"]),
        options["by_block"],
        options["control"],
    )
    dense = trained_network(model, options["checkpoint"])
    name = options["name"] or "-".join(filter(None, (model, "kronecker", order.control)))
    training = split_training_images(read_fashion_mnist(options["data"])[0])["train"]
    with progress_bar() as progress:
        workshop = Workshop(training, options["work"] / name, options["out"], 1, progress)
        made = (make_control if order.control else factored.make)(order, dense, workshop)
    if options["merged"]:
        merge(made.network)
    trained = Trained(name, made.network, made.after, made.before, made.seconds)
    write_model(
        trained, options["out"], recipe=factored.described(order, made), seed=options["seed"]
    )
    return factored.summary(name, dense, made)


def _print(found: dict[str, JsonValue], out: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"Wrote {out / 'models' / str(found['name'])}.onnx")
    for key, value in found.items():
        click.echo(f"  {key.replace('_', ' '):26} {value}")


if __name__ == "__main__":
    main()
