"""What the demo bundle's models are: the network, recipe and seed of each, fixed in advance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import JsonValue

from savers.incubation import Plan
from savers.recipe import DEFAULTS, Recipe
from savers.stages import Architecture


@dataclass(frozen=True)
class Model:
    """A model of the zoo.

    Attributes
    ----------
    network
        Its name in `savers.networks.NETWORKS`.
    teacher
        The model whose answers it learns from; None for labels alone.
    published
        Whether it is written as ONNX with a card.
    """

    network: str
    recipe: Recipe
    teacher: str | None = None
    published: bool = True

    def described(self) -> dict[str, JsonValue]:
        """Return what the model's card says under ``recipe``."""
        return {"network": self.network, "teacher": self.teacher, **asdict(self.recipe)}

    def matches(self, described: dict[str, JsonValue]) -> bool:
        """Tell whether a card describes this model; what it does not mention has its default."""
        return _DEFAULTS | described == self.described()


# Cards from before these fields existed do not have them.
_DEFAULTS: dict[str, Any] = {"teacher": "teacher", **DEFAULTS}


def _student(epochs: int, seed: int, **options: Any) -> Recipe:
    given: dict[str, Any] = {"weight_decay": 1e-4, "teacher_weight": 0.9, "temperature": 4.0}
    return Recipe(epochs=epochs, seed=seed, **{**given, **options})


def _pupil(network: str, seed: int, **options: Any) -> Model:
    """Return a model that learns from the published large one, for as many epochs as that did."""
    return Model(network, _student(24, seed, **options), teacher="large")


ZOO: dict[str, Model] = {
    "teacher": Model(
        "large",
        Recipe(epochs=18, seed=1, label_smoothing=0.05, shift=2, cutout=8),
        published=False,
    ),
    "tiny": Model("tiny", _student(40, seed=2), "teacher"),
    "middle": Model("middle", _student(30, seed=3), "teacher"),
    "large": Model("large", _student(24, seed=5, weight_decay=5e-4, cutout=8), "teacher"),
    "strided-8": _pupil("strided-8", seed=11),
    "strided-32": _pupil("strided-32", seed=12),
    "separable-16": _pupil("separable-16", seed=13, bfloat16=False),
    "strided-64": _pupil("strided-64", seed=14),
    "plain-16": _pupil("plain-16", seed=15),
    "resnet-8": _pupil("resnet-8", seed=16),
    "resnet-12": _pupil("resnet-12", seed=17),
    "resnet-16": _pupil("resnet-16", seed=18),
    "vit-64": _pupil("vit-64", seed=19, optimiser="adamw", learning_rate=2e-3, weight_decay=0.05),
    "resnet-24": _pupil("resnet-24", seed=20),
    "separable-32": _pupil("separable-32", seed=21, bfloat16=False),
}
"""In the order in which they are trained. The teacher is the first large model; ``tiny``,
``middle`` and ``large`` learned from it, the others from ``large``. No two share a weight."""


@dataclass(frozen=True)
class Incubation:
    """What ``savers.incubate`` trains on Fashion-MNIST; every phase learns from ``large``.

    Attributes
    ----------
    meta_model
        The zoo's model that is the meta model, by the recipe ``plan.meta``; None trains one.
    """

    plan: Plan
    meta_model: str | None = None


def _incubation(
    architecture: Architecture, seed: int, *, meta_model: str | None = None, **options: Any
) -> Incubation:
    meta = ZOO[meta_model].recipe if meta_model else _student(24, seed, monitor_size=0, **options)
    module, tuning = (
        _student(epochs, seed + offset, monitor_size=0, **options)
        for offset, epochs in ((100, 6), (200, 8))
    )
    return Incubation(
        Plan(architecture, (2,) * architecture.stages, meta, module, tuning), meta_model
    )


INCUBATIONS: dict[str, Incubation] = {
    "transformer": _incubation(
        Architecture("transformer", stages=4, width=64, side=28, stem="convolutions"),
        seed=1000,
        meta_model="vit-64",
        optimiser="adamw",
        learning_rate=2e-3,
        weight_decay=0.05,
    ),
    "residual": _incubation(Architecture("residual", stages=3, width=16, side=28), seed=2000),
}
