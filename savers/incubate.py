"""``python -m savers.incubate``: a deep network from modules that were trained apart."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from pydantic import JsonValue
from rich.progress import Progress
from torch import Tensor, nn

from runtime.errors import InputError
from runtime.terminal import Command, progress_bar
from savers.catalogue import INCUBATIONS
from savers.dataset import DEFAULT_FOLDER, Split, read_fashion_mnist, split_training_images
from savers.display import epochs_shown
from savers.distil import predict
from savers.incubation import Incubator
from savers.stages import Chain
from savers.views import Images, normalise
from savers.workshop import Trained, Workshop, write_model

_PATH = click.Path(path_type=Path)
TEACHER = "large"
HELD_BACK = 2_000
"""Training images by which cards tell the accuracy; no phase sees them."""


@click.command(cls=Command)
@click.argument("plan", type=click.Choice(list(INCUBATIONS)))
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
@click.option("--hybrids", is_flag=True, help="Also write every partly assembled network.")
def main(plan: str, steps: tuple[str, ...], **options: Any) -> None:
    """Incubate PLAN on Fashion-MNIST: a shallow meta model, modules in its stages, all assembled.

    STEPS are meta, module-0, module-1, ... and assemble; without any, all that are not finished.
    Once the meta model is there, modules do not need each other: train them in processes of their
    own, on one machine or on several that share --work. An interrupted step goes on where it was.
    Needs the extra train.

    assemble writes two models with a card each: the meta model (<plan>-meta), a saver that costs
    nothing more to train, and the deep one (<plan>-deep).

    \b
    Examples
      python -m savers.incubate transformer
      python -m savers.incubate transformer meta
      for i in 0 1 2 3; do python -m savers.incubate transformer module-$i & done; wait
      python -m savers.incubate residual assemble --hybrids --out /tmp/pool
    """
    _check_steps(plan, steps)
    torch.set_num_threads(1)
    training = split_training_images(read_fashion_mnist(options["data"])[0])["train"]
    with progress_bar() as progress:
        answers = Workshop(training, options["work"], options["out"], 1, progress).answers(TEACHER)
        job = Job.prepared(plan, training, answers, options["work"], progress)
        for step in steps or ("assemble",):
            for trained in job.run(step, hybrids=options["hybrids"]):
                recipe, seed = _described(plan), INCUBATIONS[plan].meta.seed
                write_model(trained, options["out"], recipe=recipe, seed=seed)
                click.echo(f"Wrote {options['out'] / 'models' / trained.name}.onnx")


def _check_steps(plan: str, steps: tuple[str, ...]) -> None:
    known = ["meta", *(f"module-{place}" for place in INCUBATIONS[plan].places), "assemble"]
    unknown = [step for step in steps if step not in known]
    if unknown:
        raise InputError(f"{', '.join(unknown)}: unknown; expected some of {', '.join(known)}.")


@dataclass(frozen=True)
class Job:
    """A plan on Fashion-MNIST, with images that no phase trains on."""

    name: str
    incubator: Incubator
    held_back: Split

    @classmethod
    def prepared(
        cls, name: str, training: Split, answers: Tensor, work: Path, progress: Progress
    ) -> Job:
        """Return the job; ``answers`` are the teacher's logits over ``training``."""
        plan = INCUBATIONS[name]
        order = np.random.default_rng(plan.meta.seed).permutation(len(training.labels))
        held, rows = order[:HELD_BACK], order[HELD_BACK:]
        incubator = Incubator(
            plan,
            partial(Images, training.rows(rows)),
            work / name,
            teacher=answers[rows],
            shown=partial(epochs_shown, progress),
        )
        return cls(name, incubator, training.rows(held))

    def run(self, step: str, *, hybrids: bool) -> list[Trained]:
        """Do one step, and return the networks to be written."""
        if step == "meta":
            _ = self.incubator.meta
            return []
        if step != "assemble":
            self.incubator.module(int(step.removeprefix("module-")))
            return []
        networks = {"meta": self.incubator.meta, "deep": self.incubator.tuned()}
        if hybrids:
            networks |= self._hybrids()
        return [self._trained(f"{self.name}-{key}", Chain(s)) for key, s in networks.items()]

    def _hybrids(self) -> dict[str, list[nn.Module]]:
        """Return the networks with some modules; a 1 in their names stands for a module."""
        found = {}
        for chosen in itertools.product((0, 1), repeat=len(self.incubator.plan.places)):
            if 0 < sum(chosen) < len(chosen):
                places = [place for place, is_module in enumerate(chosen) if is_module]
                found["".join(map(str, chosen))] = self.incubator.hybrid(places)
        return found

    def _trained(self, name: str, network: Chain) -> Trained:
        hits = predict(network, normalise(self.held_back.images)).argmax(1).numpy()
        return Trained(name, network, float((hits == self.held_back.labels).mean()))


def _described(plan: str) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", {"teacher": TEACHER, **asdict(INCUBATIONS[plan])})


if __name__ == "__main__":
    main()
