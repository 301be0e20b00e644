"""Training exits on kept features: the loss, the schedule, and weights on disk.

The backbones are frozen, so what they say of an image is a constant and an epoch takes seconds.
Each step takes one view of each of its images.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from kernels.files import replacing
from runtime.errors import InputError
from savers.exit_features import Features
from savers.exits import ExitSequence

_UNREADABLE = (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError)
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls to 0 as a cosine."""


@dataclass(frozen=True)
class ExitRecipe:
    """How exits are trained.

    Attributes
    ----------
    width, layers
        Of the tokens, and of the transformer over them; see `ExitSequence`.
    features
        Which features they are trained on, so that others are not mistaken for them.
    """

    width: int
    layers: int
    features: str
    seed: int = 31
    epochs: int = 12
    batch: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.05

    @property
    def name(self) -> str:
        """Of its weights on disk."""
        return f"exits-d{self.width}-l{self.layers}"


class Tensors(NamedTuple):
    """Features as tensors: pooled maps f32 [views, n, channels] each, saver logits, labels [n]."""

    pooled: tuple[Tensor, ...]
    saver: Tensor
    labels: Tensor

    def batch(self, views: Tensor, rows: Tensor) -> Tensors:
        """Return one view of each of some rows, without the axis of views."""
        return Tensors(
            tuple(part[views, rows] for part in self.pooled),
            self.saver[views, rows],
            self.labels[rows],
        )


def as_tensors(features: Features, labels: npt.NDArray[np.int32]) -> Tensors:
    """Return features and labels as tensors that share their memory where they can."""
    return Tensors(
        tuple(torch.from_numpy(part) for part in features.pooled),
        torch.from_numpy(features.saver),
        torch.from_numpy(labels.astype(np.int64)),
    )


def sample_weights(saver: Tensor) -> Tensor:
    """Return ``2 (1 - confidence)`` of each row of logits ``f32 [n, K]``: the unsure count most."""
    return 2 * (1 - saver.softmax(-1).amax(-1))


def exit_loss(answers: Tensor, batch: Tensors) -> Tensor:
    """Return the sum over exits of the mean weighted cross-entropy.

    Parameters
    ----------
    answers
        Logits ``f32 [exits, n, K]``.
    batch
        One view of each sample.
    """
    exits, n, classes = answers.shape
    labels = batch.labels.repeat(exits)
    each = functional.cross_entropy(answers.reshape(-1, classes), labels, reduction="none")
    return (each.reshape(exits, n) * sample_weights(batch.saver)).mean(1).sum()


def train_exits(
    data: Tensors, recipe: ExitRecipe, *, advance: Callable[[float], object] = lambda _: None
) -> ExitSequence:
    """Train exits and return them; the same recipe and data give the same weights on one thread.

    Parameters
    ----------
    advance
        Told the mean loss of each epoch.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    exits = _fresh(data, recipe)
    optimiser = torch.optim.AdamW(
        exits.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    views, n = data.saver.shape[:2]
    size = min(recipe.batch, n)
    schedule = _schedule(optimiser, recipe.epochs * (n // size))
    for _ in range(recipe.epochs):
        losses = []
        for rows in torch.randperm(n, generator=generator)[: n - n % size].split(size):
            batch = data.batch(torch.randint(views, (size,), generator=generator), rows)
            loss = exit_loss(exits(batch.pooled, batch.saver), batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        advance(float(np.mean(losses)))
    exits.eval()
    return exits


def trained_exits(
    folder: Path,
    data: Tensors,
    recipe: ExitRecipe,
    *,
    advance: Callable[[float], object] = lambda _: None,
) -> ExitSequence:
    """Return exits from their file in ``folder``, or train them and write it.

    Raises
    ------
    InputError
        When the file is damaged, or of another recipe.
    """
    path = folder / f"{recipe.name}.pt"
    if path.exists():
        exits = _fresh(data, recipe)
        exits.load_state_dict(_state(path, recipe))
        exits.eval()
        return exits
    exits = train_exits(data, recipe, advance=advance)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        torch.save({"recipe": asdict(recipe), "exits": exits.state_dict()}, stream)
    return exits


def exit_logits(
    exits: ExitSequence, data: Tensors, *, batch: int = 1000
) -> npt.NDArray[np.float32]:
    """Return the logits of all exits for the first view of each sample, f32 [exits, n, K]."""
    parts = []
    with torch.no_grad():
        for start in range(0, data.saver.shape[1], batch):
            rows = slice(start, start + batch)
            parts.append(exits([part[0, rows] for part in data.pooled], data.saver[0, rows]))
    found: npt.NDArray[np.float32] = torch.cat(parts, 1).numpy()
    return found


def _fresh(data: Tensors, recipe: ExitRecipe) -> ExitSequence:
    channels = [part.shape[-1] for part in data.pooled]
    return ExitSequence(channels, data.saver.shape[-1], width=recipe.width, layers=recipe.layers)


def _schedule(optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    rising = max(1, int(WARM_UP * steps))

    def rate(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + float(np.cos(np.pi * (step - rising) / max(1, steps - rising))))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def _state(path: Path, recipe: ExitRecipe) -> dict[str, Tensor]:
    try:
        kept = torch.load(path, weights_only=True)
        found, state = kept["recipe"], kept["exits"]
    except (*_UNREADABLE, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Delete it to train again.") from None
    if found != asdict(recipe):
        raise InputError(
            f"{path}: expected exits of this recipe and these backbones and images, got others. "
            "Delete it to train again, or pass another --work folder."
        )
    weights: dict[str, Tensor] = state
    return weights
