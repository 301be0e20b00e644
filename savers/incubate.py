"""``python -m savers.incubate``: a deep network from modules that were trained apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runtime.errors import InputError
from runtime.terminal import Command, progress_bar
from savers.dataset import DEFAULT_FOLDER, read_fashion_mnist, split_training_images

_PATH = click.Path(path_type=Path)
PLANS = ("transformer", "residual")
"""Of the catalogue, whose module needs torch; help must not."""


@click.command(cls=Command)
@click.argument("plan", type=click.Choice(PLANS))
@click.argument("steps", nargs=-1)
@click.option(
    "--data",
    type=_PATH,
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Folder with the four idx .gz files of Fashion-MNIST.",
)
@click.option(
    "--out",
    type=_PATH,
    default=Path("zoo/fashion"),
    show_default=True,
    help="Bundle folder: the teacher is read from its models/, and ours are written there.",
)
@click.option(
    "--work",
    type=_PATH,
    default=Path("build/incubate"),
    show_default=True,
    help="Checkpoints and finished modules, in a folder for each plan.",
)
@click.option(
    "--checkpoint",
    type=_PATH,
    help="Of the zoo's model that is the meta model.  [default: build/train/MODEL.ckpt]",
)
@click.option("--hybrids", is_flag=True, help="Also write every partly assembled network.")
def main(plan: str, steps: tuple[str, ...], **options: Any) -> None:
    """Incubate PLAN on Fashion-MNIST: a shallow meta model, modules in its stages, all assembled.

    STEPS are meta, module-0, module-1, ..., assemble and end-to-end; without any, all but the last
    that are not finished. The meta model of transformer is the zoo's vit-64, whose checkpoint
    python -m savers.train zoo vit-64 leaves; residual trains its own. Once the meta model is
    there, modules do not need each other: train them in processes of their own, on one machine or
    on several that share --work. An interrupted step goes on where it was. Needs the extra train.

    assemble writes the deep model with a card (<plan>-deep), and a meta model that the zoo does
    not have (<plan>-meta): a saver that costs nothing more to train. end-to-end is the control,
    the deep model trained at once at the cost of all phases (<plan>-end-to-end).

    \b
    Examples
      python -m savers.incubate transformer
      python -m savers.incubate transformer assemble end-to-end
      for i in 0 1 2 3; do python -m savers.incubate transformer module-$i & done; wait
      python -m savers.incubate residual assemble --hybrids --out /tmp/pool
    """
    import torch

    from savers.catalogue import INCUBATIONS
    from savers.incubation_job import TEACHER, Job, described
    from savers.workshop import Workshop, write_model

    whole = INCUBATIONS[plan].plan
    _check_steps(len(whole.places), steps)
    torch.set_num_threads(1)
    training = split_training_images(read_fashion_mnist(options["data"])[0])["train"]
    with progress_bar() as progress:
        workshop = Workshop(training, options["work"], options["out"], 1, progress)
        answers = workshop.answers(TEACHER)
        job = Job.prepared(plan, workshop, answers, checkpoint=options["checkpoint"])
        for step in steps or ("assemble",):
            for trained in job.run(step, hybrids=options["hybrids"]):
                write_model(trained, options["out"], recipe=described(plan), seed=whole.tuning.seed)
                click.echo(f"Wrote {options['out'] / 'models' / trained.name}.onnx")


def _check_steps(modules: int, steps: tuple[str, ...]) -> None:
    known = ["meta", *(f"module-{place}" for place in range(modules)), "assemble", "end-to-end"]
    unknown = [step for step in steps if step not in known]
    if unknown:
        raise InputError(f"{', '.join(unknown)}: unknown; expected some of {', '.join(known)}.")


if __name__ == "__main__":
    main()
