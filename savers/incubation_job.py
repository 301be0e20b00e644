"""A plan of incubation on Fashion-MNIST: its steps, and the networks they give."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import JsonValue
from rich.progress import Progress
from torch import Tensor, nn

from savers.catalogue import INCUBATIONS
from savers.dataset import Split
from savers.display import epochs_shown
from savers.distil import predict
from savers.incubation import Incubator
from savers.stages import Chain
from savers.views import Images, normalise
from savers.workshop import Trained

TEACHER = "large"
HELD_BACK = 2_000
"""Training images by which cards tell the accuracy; no phase sees them."""


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


def described(plan: str) -> dict[str, JsonValue]:
    """Return what a card says of a plan."""
    return cast("dict[str, JsonValue]", {"teacher": TEACHER, **asdict(INCUBATIONS[plan])})
