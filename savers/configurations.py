"""How large each paper's experiment is: ``small``, minutes on a CPU, and ``large``, for a GPU.

``small`` is the experiment on digits, whose results docs/savers.md holds. ``large`` is for images
of 32x32 and more, CIFAR-100 or pictures: transformers of the widths of DeiT (Touvron et al.,
arXiv 2012.12877), and of its recipe the optimiser, rate, decay and label smoothing. Its other
augmentations (RandAugment, mixup, CutMix, random depth) are not here; images are shifted, mirrored
and partly erased. Both were fixed before any result, and ``large`` has not been run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from savers.depth_tasks import PATCH, digits_recipe
from savers.kronecker_shapes import Factoring, Shape
from savers.recipe import Recipe

Size = Literal["small", "large"]

_LARGE_RECIPE = Recipe(
    epochs=300,
    seed=0,
    batch=512,
    learning_rate=5e-4,
    weight_decay=0.05,
    label_smoothing=0.1,
    shift=4,
    cutout=16,
    monitor_size=0,
    optimiser="adamw",
)


@dataclass(frozen=True)
class Incubation:
    """What is incubated: a transformer with a module for each number of ``blocks``.

    Attributes
    ----------
    widening
        How much wider a block's two-layer network is inside.
    epochs
        Of the meta model, of each module, of fine-tuning.
    recipe
        Of each of them, but for epochs and seed.
    """

    blocks: tuple[int, ...]
    width: int
    heads: int
    widening: int
    patch: int
    epochs: tuple[int, int, int]
    recipe: Recipe


@dataclass(frozen=True)
class SharedDepth:
    """The network whose block is shared.

    Attributes
    ----------
    steps
        Numbers of steps that it is asked for; the first is the one that it is trained with.
    """

    width: int
    heads: int
    hidden: int
    patch: int
    steps: tuple[int, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Kronecker:
    """The transformer that is factored, and with what.

    Attributes
    ----------
    wide, narrow
        Factors of the two matrices ``[4 * width, width]`` and ``[width, 4 * width]`` of a block.
    low_rank
        Of a matrix of low rank with about as many parameters.
    restarts
        Of the search for orders.
    planted
        How many shuffled Kronecker matrices are searched besides.
    teacher
        Also of what is trained from scratch.
    pupil_epochs, pupil_rate
        Of distillation, which otherwise trains as the teacher did.
    language
        Whether a small language model is factored too.
    """

    width: int
    depth: int
    patch: int
    wide: Factoring
    narrow: Factoring
    low_rank: int
    teacher: Recipe
    pupil_epochs: int
    pupil_rate: float
    restarts: int = 4
    planted: int = 8
    language: bool = False


INCUBATION: dict[Size, Incubation] = {
    "small": Incubation(
        blocks=(3, 3, 3, 3),
        width=32,
        heads=4,
        widening=2,
        patch=4,
        epochs=(16, 6, 6),
        # Batch, rate and shift were chosen with seed 100 on 297 training images held back.
        recipe=Recipe(
            epochs=0,
            seed=0,
            batch=32,
            learning_rate=5e-3,
            weight_decay=0.05,
            shift=0,
            mirror=False,
            monitor_size=0,
            optimiser="adamw",
            bfloat16=False,
        ),
    ),
    # DeiT-Tiny of 32 blocks, the paper's DeiT-T-32, with the phases of its ImageNet schedule.
    "large": Incubation(
        blocks=(8, 8, 8, 8),
        width=192,
        heads=3,
        widening=4,
        patch=4,
        epochs=(300, 100, 100),
        recipe=_LARGE_RECIPE,
    ),
}

SHARED_DEPTH: dict[Size, SharedDepth] = {
    "small": SharedDepth(
        width=32,
        heads=4,
        hidden=128,
        patch=PATCH,
        steps=(12, 8, 6, 4, 3, 2),
        recipe=digits_recipe(0),
    ),
    # One block of DeiT-Small.
    "large": SharedDepth(
        width=384,
        heads=6,
        hidden=1536,
        patch=4,
        steps=(12, 8, 6, 4, 3, 2),
        recipe=_LARGE_RECIPE,
    ),
}

KRONECKER: dict[Size, Kronecker] = {
    "small": Kronecker(
        width=32,
        depth=4,
        patch=4,
        wide=Factoring(Shape(64, 16, 2, 2), 2),
        narrow=Factoring(Shape(16, 64, 2, 2), 2),
        low_rank=12,
        teacher=Recipe(
            epochs=80,
            seed=0,
            batch=64,
            learning_rate=2e-3,
            weight_decay=0.05,
            mirror=False,
            monitor_size=0,
            optimiser="adamw",
            bfloat16=False,
        ),
        pupil_epochs=6,
        pupil_rate=1e-3,
        language=True,
    ),
    # DeiT-Tiny, but for four heads in place of three; distilled for a tenth of its epochs.
    "large": Kronecker(
        width=192,
        depth=12,
        patch=4,
        wide=Factoring(Shape(192, 96, 4, 2), 3),
        narrow=Factoring(Shape(96, 192, 2, 4), 3),
        low_rank=57,
        teacher=_LARGE_RECIPE,
        pupil_epochs=30,
        pupil_rate=2.5e-4,
    ),
}
