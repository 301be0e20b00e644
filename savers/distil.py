"""The one training loop: cross-entropy, with or without a teacher's logits.

With a teacher the loss is knowledge distillation (Hinton, Vinyals, Dean, arXiv 1503.02531)::

    (1 - w) * CE(z, y) + w * T^2 * KL(softmax(z_teacher / T) || softmax(z / T))

The teacher answers once for each image and its mirror image, and any number of students and epochs
reads the mean. A student sees shifted, mirrored and partly erased views with that answer (noisy
student, Xie et al., arXiv 1911.04252).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.errors import InputError
from savers.dataset import Split

MEAN = 0.2860
STD = 0.3530
"""Of the Fashion-MNIST training images scaled to [0, 1]."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes
    ----------
    shift
        Largest random translation in pixels, each direction.
    cutout
        Side of a square erased at a random place, in pixels; 0 erases nothing.
    teacher_weight
        ``w`` of the loss; 0 trains on labels alone.
    monitor_size
        Training images held back for early stopping.
    patience
        Epochs without a new best accuracy on those images after which training stops.
    optimiser
        ``sgd`` with Nesterov momentum 0.9, or ``adamw``.
    bfloat16
        Whether convolutions and products are computed in bfloat16. Depthwise convolutions are
        three times as fast in float32 on a CPU.
    """

    epochs: int
    seed: int
    batch: int = 256
    learning_rate: float = 0.15
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    shift: int = 1
    mirror: bool = True
    cutout: int = 0
    teacher_weight: float = 0.0
    temperature: float = 4.0
    monitor_size: int = 2_000
    patience: int = 10
    optimiser: Literal["sgd", "adamw"] = "sgd"
    bfloat16: bool = True


class Epoch(NamedTuple):
    """What one epoch gave; ``accuracy`` is on the monitor images."""

    number: int
    loss: float
    accuracy: float


class Views:
    """Shifted and mirrored views of images ``u8 [n, 28, 28, 1]``, numbered.

    View ``v`` of image ``i`` is image ``i`` moved by ``v // 2`` (row-major over the
    ``(2 * shift + 1)^2`` translations) and mirrored when ``v`` is odd.
    """

    def __init__(self, images: npt.NDArray[np.uint8], shift: int) -> None:
        side = images.shape[1]
        padded = np.pad(images[..., 0], ((0, 0), (shift, shift), (shift, shift)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
        self._windows = windows
        self._steps = 2 * shift + 1
        self.count = 2 * self._steps**2

    def pixels(self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Tensor:
        """Return normalised ``f32 [n, 1, 28, 28]`` of the given view of each row."""
        down, right = np.divmod(views // 2, self._steps)
        chosen = self._windows[rows, down, right]
        chosen = np.where((views % 2 == 1)[:, None, None], chosen[..., ::-1], chosen)
        return normalise(chosen[..., None])


def normalise(images: npt.NDArray[np.uint8]) -> Tensor:
    """Return ``f32 [n, 1, h, w]``, zero mean and unit variance, of ``u8 [n, h, w, 1]``."""
    scaled = (images.transpose(0, 3, 1, 2).astype(np.float32) / 255.0 - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(scaled))


def predict(network: nn.Module, images: Tensor, batch: int = 500) -> Tensor:
    """Return logits ``f32 [n, K]`` in evaluation mode."""
    network.eval()
    with torch.no_grad():
        parts = [
            network(part.contiguous(memory_format=torch.channels_last))
            for part in images.split(batch)
        ]
    return torch.cat(parts)


def teacher_logits(teacher: nn.Module, images: npt.NDArray[np.uint8]) -> Tensor:
    """Return the teacher's logits f32 [n, K], the mean over each image and its mirror image."""
    with torch.autocast("cpu", torch.bfloat16):
        plain = predict(teacher, normalise(images))
        mirrored = predict(teacher, normalise(images[:, :, ::-1]))
    return (plain.float() + mirrored.float()) / 2


class Trainer:
    """Trains one network on one split; a checkpoint after each epoch lets it go on later.

    Parameters
    ----------
    network
        Gives logits ``[n, K]`` for ``f32 [n, 1, 28, 28]``. Trained in place.
    split
        The training images; ``recipe.monitor_size`` of them are held back.
    teacher
        Logits ``f32 [n, K]`` over the rows of ``split``, from `teacher_logits`.
    """

    def __init__(
        self, network: nn.Module, split: Split, recipe: Recipe, *, teacher: Tensor | None = None
    ) -> None:
        if (teacher is None) != (recipe.teacher_weight == 0):
            raise ValueError("teacher logits and recipe.teacher_weight > 0 go together")
        self._recipe = recipe
        self._teacher = teacher
        self._rng = np.random.default_rng(recipe.seed)
        rows = self._rng.permutation(len(split.labels))
        self._monitor, self._rows = rows[: recipe.monitor_size], rows[recipe.monitor_size :]
        self._split = split
        self._views = Views(split.images, recipe.shift)
        self._labels = torch.from_numpy(split.labels.astype(np.int64))
        self._network = network.to(memory_format=torch.channels_last)
        self._optimiser = _optimiser(network, recipe)
        steps = recipe.epochs * (len(self._rows) // recipe.batch)
        warm_up = max(1, steps // 6)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser,
            lambda step: min((step + 1) / warm_up, max(0.0, (steps - step) / (steps - warm_up))),
        )
        self._accuracies: list[float] = []

    def run(
        self,
        checkpoint: Path,
        report: Callable[[Epoch], None],
        *,
        proceed: Callable[[], object] = lambda: None,
    ) -> nn.Module:
        """Train to the last epoch, or until patience ends, and return the network.

        Parameters
        ----------
        proceed
            Called before each step. What it raises ends the training; the checkpoint of the last
            whole epoch stays.

        Raises
        ------
        InputError
            When the checkpoint is of another recipe.
        """
        self._resume(checkpoint)
        while len(self._accuracies) < self._recipe.epochs and not self._out_of_patience():
            loss = self._train_epoch(proceed)
            images = normalise(self._split.images[self._monitor])
            hits = predict(self._network, images).argmax(1) == self._labels[self._monitor]
            self._accuracies.append(float(hits.float().mean()))
            self._save(checkpoint)
            report(Epoch(len(self._accuracies), loss, self._accuracies[-1]))
        return self._network.eval()

    @property
    def monitored_accuracy(self) -> float:
        """Accuracy of the network on the held-back training images after its last epoch."""
        return self._accuracies[-1]

    def _out_of_patience(self) -> bool:
        best = int(np.argmax(self._accuracies)) if self._accuracies else 0
        return len(self._accuracies) - 1 - best >= self._recipe.patience

    def _train_epoch(self, proceed: Callable[[], object]) -> float:
        self._network.train()
        losses = []
        for pixels, rows in self._batches():
            proceed()
            with torch.autocast("cpu", torch.bfloat16, enabled=self._recipe.bfloat16):
                logits = self._network(pixels.contiguous(memory_format=torch.channels_last))
            loss = self._loss(logits.float(), rows)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            self._schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def _batches(self) -> Iterator[tuple[Tensor, npt.NDArray[np.int64]]]:
        recipe, order = self._recipe, self._rng.permutation(self._rows)
        for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
            rows = order[start : start + recipe.batch]
            views = self._rng.integers(0, self._views.count, len(rows))
            if not recipe.mirror:
                views -= views % 2
            pixels = self._views.pixels(rows, views)
            yield (self._cut_out(pixels) if recipe.cutout else pixels), rows

    def _cut_out(self, pixels: Tensor) -> Tensor:
        side, place = self._recipe.cutout, torch.arange(pixels.shape[-1])
        corner = torch.from_numpy(self._rng.integers(-side // 2, 28 - side // 2, (2, len(pixels))))
        inside = (place >= corner[..., None]) & (place < corner[..., None] + side)
        erased = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return pixels.masked_fill(erased, 0.0)

    def _loss(self, logits: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        recipe = self._recipe
        loss = functional.cross_entropy(
            logits, self._labels[rows], label_smoothing=recipe.label_smoothing
        )
        if self._teacher is None:
            return loss
        t = recipe.temperature
        divergence = functional.kl_div(
            functional.log_softmax(logits / t, 1),
            functional.log_softmax(self._teacher[rows] / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - recipe.teacher_weight) * loss + recipe.teacher_weight * t * t * divergence

    def _save(self, checkpoint: Path) -> None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": asdict(self._recipe),
            "accuracies": self._accuracies,
            "network": self._network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "rng": self._rng.bit_generator.state,
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        if not checkpoint.exists():
            return
        state = torch.load(checkpoint, weights_only=True)
        if state.get("recipe") != asdict(self._recipe):
            raise InputError(
                f"{checkpoint}: expected a checkpoint of this recipe, got one of another. "
                "Delete it to train from the start."
            )
        self._network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._accuracies = state["accuracies"]
        self._rng.bit_generator.state = state["rng"]


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(network.parameters(), rate, weight_decay=decay)
    return torch.optim.SGD(
        network.parameters(), rate, momentum=0.9, weight_decay=decay, nesterov=True
    )
