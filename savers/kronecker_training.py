"""Factoring a network step by step, each step followed by training, or all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from savers.distil import Epoch, Trainer, total_seconds
from savers.kronecker_fit import Decomposition
from savers.kronecker_network import Plan, Search, factor
from savers.recipe import Recipe
from savers.views import Examples

Hidden = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Step:
    """Modules that are factored together, and how many epochs of training follow."""

    plan: Plan
    epochs: int


def one_shot(plan: Plan, epochs: int) -> list[Step]:
    """Return the one step in which everything is factored."""
    return [Step(plan, epochs)]


def multi_step(plan: Plan, groups: Iterable[Iterable[str]], epochs: int) -> list[Step]:
    """Return a step for each group of modules, with as many epochs together as `one_shot`.

    Epochs that do not divide go to the last steps, which have most to mend.
    """
    parts = [{name: plan[name] for name in group} for group in groups]
    each, over = divmod(epochs, len(parts))
    first_longer = len(parts) - over
    return [Step(part, each + (place >= first_longer)) for place, part in enumerate(parts)]


class Compression:
    """Factors a network in steps and trains it after each to answer as a teacher does.

    Parameters
    ----------
    network
        Changed in place.
    recipe
        Of each step, but for its epochs. Its learning rate rises and falls once a step.
    teacher
        Logits ``f32 [n, K]`` of ``examples``, or a network; None trains on labels alone.
    hidden
        Pairs of modules of the network and the teacher whose outputs are to agree.

    Attributes
    ----------
    found
        What `kronecker_fit` found for each module so far.
    """

    def __init__(
        self,
        network: nn.Module,
        examples: Examples,
        recipe: Recipe,
        *,
        teacher: Tensor | nn.Module | None,
        hidden: Hidden = (),
    ) -> None:
        self.network, self._examples, self._recipe = network, examples, recipe
        self._teacher, self._hidden = teacher, hidden
        self.found: dict[str, Decomposition] = {}
        self._seconds: list[float | None] = []

    @property
    def seconds(self) -> float | None:
        """CPU time of all training so far; None where a step was not measured."""
        return total_seconds(self._seconds)

    def run(
        self,
        steps: Sequence[Step],
        search: Search,
        *,
        kept: Path | None = None,
        report: Callable[[Epoch], None] = lambda epoch: None,
    ) -> nn.Module:
        """Take all steps and return the network.

        Parameters
        ----------
        kept
            Folder of a checkpoint for each step, ``step-1.ckpt`` on; training goes on from them.

        Raises
        ------
        InputError
            When factors do not fit, or a checkpoint is of another training.
        """
        done = 0
        for number, step in enumerate(steps, 1):
            self.found |= factor(self.network, step.plan, search)
            if step.epochs > 0:
                self._train(step.epochs, kept and kept / f"step-{number}.ckpt", _from(done, report))
            done += step.epochs
        return self.network.eval()

    def _train(self, epochs: int, kept: Path | None, report: Callable[[Epoch], None]) -> None:
        recipe = replace(self._recipe, epochs=epochs)
        trainer = Trainer(
            self.network, self._examples, recipe, teacher=self._teacher, hidden=self._hidden
        )
        trainer.run(kept, report)
        self._seconds.append(trainer.seconds)


def _from(done: int, report: Callable[[Epoch], None]) -> Callable[[Epoch], None]:
    """Return a report whose epochs are numbered on."""
    return lambda epoch: report(epoch._replace(number=done + epoch.number))
