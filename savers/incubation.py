"""Deep incubation: a deep network from modules that were trained apart (arXiv 2212.04129).

1. A shallow *meta* model, one block a stage, is trained from end to end.
2. Each *module*, a stage of the deep network, is trained alone in the place of the meta model's
   stage, by the loss of the whole; the meta model's other stages do not change. Modules may be
   trained in any order or at the same time, since none sees another.
3. The modules are *assembled* to the deep network, and that is fine-tuned.

The meta model is a saver of the assembled one that costs nothing more to train, and so is every
*hybrid* with only some stages replaced. The method is the subject of a patent application, US
2026/0010800 A1.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels.files import replacing
from runtime.errors import InputError
from savers.distil import Epoch, Trainer
from savers.recipe import Recipe
from savers.stages import Architecture, Chain
from savers.views import Examples

END_TO_END = "end to end"
Report = Callable[[Epoch], None]


@dataclass(frozen=True)
class Plan:
    """What is incubated, and how.

    Attributes
    ----------
    blocks
        Of each module. The meta model has one block a stage.
    meta, module, tuning
        How each phase is trained. Module i has the seed of ``module`` plus i.
    """

    architecture: Architecture
    blocks: tuple[int, ...]
    meta: Recipe
    module: Recipe
    tuning: Recipe

    @property
    def places(self) -> range:
        """Of the stages."""
        return range(self.architecture.stages)

    def recipe_of(self, place: int) -> Recipe:
        """Return how the module of one place is trained."""
        return dataclasses.replace(self.module, seed=self.module.seed + place)

    @property
    def block_epochs(self) -> int:
        """Blocks run forwards, times epochs, over all phases: what end-to-end training may cost."""
        stages, deep = self.architecture.stages, sum(self.blocks)
        modules = sum(self.module.epochs * (stages - 1 + blocks) for blocks in self.blocks)
        return self.meta.epochs * stages + modules + self.tuning.epochs * deep

    @property
    def epochs_end_to_end(self) -> int:
        """Epochs of the deep network that cost what all phases cost."""
        return max(1, round(self.block_epochs / sum(self.blocks)))


@dataclass
class Incubator:
    """Runs the phases of a plan; each takes up where it was left.

    Parameters
    ----------
    examples
        Returns the training samples with the views of a recipe.
    work
        Folder of checkpoints and finished modules.
    teacher
        Logits ``f32 [n, K]`` of the training samples, for recipes that learn from them.
    shown
        Returns what reports the epochs of a phase, from its name and how many there are.
    device
        Of PyTorch, on which stages are trained.
    given
        Stages of a meta model that was trained already; None trains one.

    Attributes
    ----------
    seconds
        CPU time of each phase that was run or found finished; None where it was not measured.
    """

    plan: Plan
    examples: Callable[[Recipe], Examples]
    work: Path
    teacher: Tensor | None = None
    shown: Callable[[str, int], Report] = lambda name, total: lambda epoch: None
    device: str = "cpu"
    given: Sequence[nn.Module] | None = None
    seconds: dict[str, float | None] = field(default_factory=dict, init=False)

    @cached_property
    def meta(self) -> list[nn.Module]:
        """Stages of the meta model, which is trained the first time that they are asked for."""
        if self.given is not None:
            return list(self.given)
        recipe = self.plan.meta
        torch.manual_seed(recipe.seed)
        chain = Chain(self.plan.architecture.network([1] * self.plan.architecture.stages))
        return self._fit("meta", chain, recipe)

    def module(self, place: int) -> nn.Module:
        """Incubate the module of one place, or return it if it is finished.

        Raises
        ------
        InputError
            When there is no such place, or a finished module is of another plan or meta model.
        """
        if place not in self.plan.places:
            last = self.plan.places[-1]
            raise InputError(f"module {place}: expected a place from 0 to {last}.")
        meta = self.meta
        found = self._finished(place, meta)
        return self._incubated(place, meta) if found is None else found

    def modules(self) -> list[nn.Module]:
        """Incubate the modules that are not finished, and return all."""
        return [self.module(place) for place in self.plan.places]

    def tuned(self) -> list[nn.Module]:
        """Return the stages of the assembled network after fine-tuning."""
        return self._fit("tuning", Chain(self.modules()), self.plan.tuning)

    def end_to_end(self) -> list[nn.Module]:
        """Return the control: the deep network trained at once, at the cost of all phases."""
        plan = self.plan
        recipe = dataclasses.replace(plan.tuning, epochs=plan.epochs_end_to_end)
        torch.manual_seed(recipe.seed)
        return self._fit(END_TO_END, Chain(plan.architecture.network(plan.blocks)), recipe)

    def hybrid(self, places: Iterable[int]) -> list[nn.Module]:
        """Return the meta model's stages with modules at the given places."""
        chosen = set(places)
        stages = self.meta
        return [
            self.module(place) if place in chosen else stages[place] for place in self.plan.places
        ]

    def _incubated(self, place: int, meta: Sequence[nn.Module]) -> nn.Module:
        recipe = self.plan.recipe_of(place)
        torch.manual_seed(recipe.seed)
        stages = copy.deepcopy(list(meta))
        stages[place] = self._new(place)
        # A checkpoint of another meta model has another name: nothing goes on from it.
        kept = f"module-{place}.{digest(meta)[:12]}"
        module = self._fit(f"module-{place}", Chain(stages, [place]), recipe, kept=kept)[place]
        content = {
            "belongs_to": self._identity(place, meta),
            "module": module.state_dict(),
            "seconds": self.seconds[f"module-{place}"],
        }
        with replacing(self._path(place)) as stream:
            torch.save(content, stream)
        return module

    def _finished(self, place: int, meta: Sequence[nn.Module]) -> nn.Module | None:
        path = self._path(place)
        if not path.exists():
            return None
        module = self._new(place)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            owner, state = content["belongs_to"], content["module"]
        except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise InputError(f"{path}: damaged ({error}). Delete it to train it again.") from None
        if owner != self._identity(place, meta):
            raise InputError(
                f"{path}: expected a module of this plan and meta model, got one of another. "
                "Give the plan a folder of its own, or delete the module to train it again."
            )
        module.load_state_dict(state)
        self.seconds[f"module-{place}"] = content.get("seconds")
        return module.eval()

    def _new(self, place: int) -> nn.Module:
        return self.plan.architecture.stage(place, self.plan.blocks[place]).to(self.device)

    def _fit(
        self, phase: str, chain: Chain, recipe: Recipe, *, kept: str | None = None
    ) -> list[nn.Module]:
        """Train a phase; ``kept`` names its checkpoint, where that is not the phase itself."""
        trainer = Trainer(
            chain.to(self.device),
            self.examples(recipe),
            recipe,
            teacher=self.teacher if recipe.needs_teacher else None,
        )
        trainer.run(self.work / f"{kept or phase}.ckpt", self.shown(phase, recipe.epochs))
        self.seconds[phase] = trainer.seconds
        return list(chain.stages)

    def _path(self, place: int) -> Path:
        return self.work / f"module-{place}.pt"

    def _identity(self, place: int, meta: Sequence[nn.Module]) -> str:
        plan = self.plan
        described = (plan.architecture, plan.blocks[place], plan.recipe_of(place), digest(meta))
        return repr(described)


def digest(stages: Iterable[nn.Module]) -> str:
    """Return the sha256 of every parameter and running mean of some stages, in their order."""
    found = hashlib.sha256()
    for stage in stages:
        for name, value in stage.state_dict().items():
            found.update(f"{name} {list(value.shape)} {value.dtype}".encode())
            found.update(value.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()
