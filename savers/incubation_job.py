"""A plan of incubation on Fashion-MNIST: its steps, and the networks they give."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor, nn

from savers.catalogue import INCUBATIONS
from savers.dataset import Split
from savers.display import epochs_shown
from savers.distil import predict, total_seconds
from savers.incubation import END_TO_END, Incubator
from savers.stages import Chain
from savers.views import Images, normalise
from savers.workshop import Trained, Workshop, held_back, trained_network

TEACHER = "large"


@dataclass(frozen=True)
class Job:
    """A plan on Fashion-MNIST, with images that no phase trains on."""

    name: str
    incubator: Incubator
    held_back: Split

    @classmethod
    def prepared(
        cls,
        name: str,
        workshop: Workshop,
        answers: Tensor,
        *,
        checkpoint: Path | None = None,
    ) -> Job:
        """Return the job.

        Parameters
        ----------
        answers
            The teacher's logits over ``workshop.training``.
        checkpoint
            Of the meta model, where that is one of the zoo.
        """
        plan, training = INCUBATIONS[name].plan, workshop.training
        held, rows = held_back(training, plan.meta)
        incubator = Incubator(
            plan,
            partial(Images, training.rows(rows)),
            workshop.work / name,
            teacher=answers[rows],
            shown=partial(epochs_shown, workshop.progress),
            given=_meta_model(name, checkpoint),
        )
        return cls(name, incubator, training.rows(held))

    def run(self, step: str, *, hybrids: bool) -> list[Trained]:
        """Do one step, and return the networks to be written."""
        if step == "meta":
            _ = self.incubator.meta
            return []
        if step.startswith("module-"):
            self.incubator.module(int(step.removeprefix("module-")))
            return []
        if step == "end-to-end":
            made = self._trained(step, self.incubator.end_to_end())
            return [made._replace(seconds=self.incubator.seconds[END_TO_END])]
        return [*self._assembled(), *(self._hybrids() if hybrids else ())]

    def _assembled(self) -> list[Trained]:
        incubator = self.incubator
        before = self._trained("deep", incubator.modules()).accuracy
        deep = self._trained("deep", incubator.tuned())
        phases = (value for name, value in incubator.seconds.items() if name != END_TO_END)
        deep = deep._replace(before=before, seconds=total_seconds(phases))
        if incubator.given:
            return [deep]
        meta = self._trained("meta", incubator.meta)._replace(seconds=incubator.seconds["meta"])
        return [meta, deep]

    def _hybrids(self) -> list[Trained]:
        """Return the networks with some modules; a 1 in their names stands for a module."""
        found = []
        for chosen in itertools.product((0, 1), repeat=len(self.incubator.plan.places)):
            if 0 < sum(chosen) < len(chosen):
                places = [place for place, is_module in enumerate(chosen) if is_module]
                bits = "".join(map(str, chosen))
                found.append(self._trained(bits, self.incubator.hybrid(places)))
        return found

    def _trained(self, end: str, stages: Sequence[nn.Module]) -> Trained:
        network = Chain(stages)
        hits = predict(network, normalise(self.held_back.images)).argmax(1).numpy()
        return Trained(f"{self.name}-{end}", network, float((hits == self.held_back.labels).mean()))


def _meta_model(name: str, checkpoint: Path | None) -> list[nn.Module] | None:
    """Return the stages of the zoo's model that is the meta model of a plan, if it is one."""
    incubation = INCUBATIONS[name]
    if incubation.meta_model is None:
        return None
    network = trained_network(incubation.meta_model, checkpoint)
    return incubation.plan.architecture.divided(network)


def described(plan: str) -> dict[str, JsonValue]:
    """Return what a card says of a plan."""
    incubation = INCUBATIONS[plan]
    return {
        "teacher": TEACHER,
        "method": "incubation",
        "meta_model": incubation.meta_model,
        **asdict(incubation.plan),
        "blocks": list(incubation.plan.blocks),
    }
