"""The one training loop: labels, a teacher's answers, its hidden states, or all of them.

A teacher is either its logits over the samples, computed once for any number of students and
epochs, or a network that is asked at each step. In the first case a student sees shifted, mirrored
and partly erased views with the answer to the image itself (noisy student, Xie et al.,
arXiv 1911.04252).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime.errors import InputError
from savers import checkpoint
from savers.losses import Answers, ask, total_loss
from savers.recipe import Recipe
from savers.views import Examples, Rows, normalise


class Epoch(NamedTuple):
    """What one epoch gave; ``accuracy`` is on the monitored samples, None where there are none."""

    number: int
    loss: float
    accuracy: float | None


def predict(network: nn.Module, inputs: Tensor, batch: int = 500) -> Tensor:
    """Return logits ``f32 [n, K]``, or ``[n, t, K]`` of tokens, in evaluation mode."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(_laid_out(part)) for part in inputs.split(batch)])


def teacher_logits(teacher: nn.Module, images: npt.NDArray[np.uint8]) -> Tensor:
    """Return the teacher's logits f32 [n, K], the mean over each image and its mirror image."""
    with torch.autocast("cpu", torch.bfloat16):
        plain = predict(teacher, normalise(images))
        mirrored = predict(teacher, normalise(images[:, :, ::-1]))
    return (plain.float() + mirrored.float()) / 2


def total_seconds(trainings: Iterable[float | None]) -> float | None:
    """Return the time of several trainings; None where one of them was not measured."""
    found = list(trainings)
    return None if None in found else sum(filter(None, found))


def is_finished(recipe: Recipe, accuracies: Sequence[float | None]) -> bool:
    """Tell whether a training of these accuracies by epoch is at its last, or out of patience."""
    found = [accuracy for accuracy in accuracies if accuracy is not None]
    best = int(np.argmax(found)) if found else 0
    return len(accuracies) >= recipe.epochs or len(found) - 1 - best >= recipe.patience


class Trainer:
    """Trains one network on examples; a checkpoint after each epoch lets it go on later.

    Going on gives the weights of a training that was never interrupted, if the network draws its
    random numbers in ``vary`` and nowhere else.

    Parameters
    ----------
    network
        Gives logits ``[n, K]``, or ``[n, t, K]``, for a batch of ``examples``. Those of its
        parameters that require a gradient are trained, in place.
    examples
        ``recipe.monitor_size`` of them are held back.
    teacher
        Logits ``f32 [n, K]`` over all ``examples``, or a network for the same inputs.
    hidden
        Pairs of modules (of the network, of the teacher) whose outputs are to agree, by name.
    vary
        Called before each step with the generator of the training: what is random in the network,
        such as its depth, is drawn here.

    Raises
    ------
    InputError
        When there are fewer samples than one batch.
    """

    def __init__(
        self,
        network: nn.Module,
        examples: Examples,
        recipe: Recipe,
        *,
        teacher: Tensor | nn.Module | None = None,
        hidden: Sequence[tuple[str, str]] = (),
        vary: Callable[[np.random.Generator], object] = lambda rng: None,
    ) -> None:
        _check_teacher(recipe, teacher, hidden)
        self._recipe, self._examples, self._vary = recipe, examples, vary
        self._teacher, self._hidden = teacher, hidden
        self._rng = np.random.default_rng(recipe.seed)
        rows = self._rng.permutation(len(examples.labels))
        self._monitor, self._rows = rows[: recipe.monitor_size], rows[recipe.monitor_size :]
        if len(self._rows) < recipe.batch:
            raise InputError(
                f"{len(rows)} samples: expected at least a batch of {recipe.batch} besides "
                f"{recipe.monitor_size} that are monitored. Lower one of the two."
            )
        self._network = network.to(memory_format=torch.channels_last)
        self._device = next(network.parameters()).device
        self._averaged = copy.deepcopy(network) if recipe.average > 0 else None
        self._optimiser = _optimiser(network, recipe)
        self._schedule = _schedule(self._optimiser, recipe, len(self._rows))
        self._accuracies: list[float | None] = []
        self._seconds: list[float] = []

    def run(
        self,
        kept: Path | None = None,
        report: Callable[[Epoch], None] = lambda epoch: None,
        *,
        proceed: Callable[[], object] = lambda: None,
    ) -> nn.Module:
        """Train to the last epoch, or until patience ends, and return the network.

        Parameters
        ----------
        kept
            The checkpoint: training goes on from it, and writes it after each epoch.
        proceed
            Called before each step. What it raises ends the training; the checkpoint of the last
            whole epoch stays.

        Raises
        ------
        InputError
            When the checkpoint is damaged or of another recipe or network, or the teacher does not
            fit.
        """
        if kept is not None and kept.exists():
            self._resume(kept)
        while not is_finished(self._recipe, self._accuracies):
            start = time.thread_time()
            loss = self._train_epoch(proceed)
            self._seconds.append(time.thread_time() - start)
            self._accuracies.append(self._accuracy())
            if kept is not None:
                checkpoint.save(kept, self._recipe, self._state())
            report(Epoch(len(self._accuracies), loss, self._accuracies[-1]))
        if self._averaged is not None:
            self._network.load_state_dict(self._averaged.state_dict())
        return self._network.eval()

    @property
    def monitored_accuracy(self) -> float | None:
        """Accuracy on the held-back samples after the last epoch; None if there is none."""
        return self._accuracies[-1] if self._accuracies else None

    @property
    def seconds(self) -> float | None:
        """CPU time of this thread over all epochs; None where none was measured.

        Epochs of a checkpoint from before they were measured are taken for the mean of the others.
        """
        return len(self._accuracies) * float(np.mean(self._seconds)) if self._seconds else None

    def _accuracy(self) -> float | None:
        if not len(self._monitor):
            return None
        inputs = self._examples.plain(self._monitor).to(self._device)
        labels = self._examples.labels[self._monitor].to(self._device)
        judged = self._network if self._averaged is None else self._averaged
        hits = predict(judged, inputs).argmax(-1) == labels
        return float(hits.float().mean())

    def _train_epoch(self, proceed: Callable[[], object]) -> float:
        self._network.train()
        losses = []
        for rows in self._batches():
            proceed()
            self._vary(self._rng)
            loss = self._loss(self._examples.training(rows, self._rng), rows)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            self._schedule.step()
            if self._averaged is not None:
                _follow(self._averaged, self._network, self._decay())
            losses.append(loss.item())
        return float(np.mean(losses))

    def _batches(self) -> Iterator[Rows]:
        size, order = self._recipe.batch, self._rng.permutation(self._rows)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]

    def _loss(self, inputs: Tensor, rows: Rows) -> Tensor:
        inputs = _laid_out(inputs.to(self._device))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.bfloat16):
            found = ask(self._network, inputs, [mine for mine, _ in self._hidden])
            teacher = self._ask_teacher(inputs, rows)
        labels = self._examples.labels[rows].to(self._device)
        return total_loss(found, labels, self._recipe, teacher=teacher)

    def _ask_teacher(self, inputs: Tensor, rows: Rows) -> Answers | None:
        if self._teacher is None:
            return None
        if isinstance(self._teacher, Tensor):
            return Answers(self._teacher[rows].to(self._device), [])
        with torch.no_grad():
            answers = ask(self._teacher.eval(), inputs, [theirs for _, theirs in self._hidden])
        return answers._replace(logits=answers.logits.float())

    def _decay(self) -> float:
        steps = int(self._schedule.last_epoch)
        return min(self._recipe.average, (1 + steps) / (10 + steps))

    def _state(self) -> dict[str, Any]:
        averaged = None if self._averaged is None else self._averaged.state_dict()
        return {
            "accuracies": self._accuracies,
            "seconds": self._seconds,
            "hidden": [list(pair) for pair in self._hidden],
            "network": self._network.state_dict(),
            "averaged": averaged,
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "rng": self._rng.bit_generator.state,
        }

    def _resume(self, kept: Path) -> None:
        state = checkpoint.load(kept, self._recipe)
        try:
            if state.get("hidden", []) != [list(pair) for pair in self._hidden]:
                raise ValueError("other hidden states")
            self._network.load_state_dict(state["network"])
            if self._averaged is not None:
                self._averaged.load_state_dict(state["averaged"])
            self._optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError):
            raise InputError(
                f"{kept}: expected a checkpoint of this network, got one of another. "
                "Delete it to train from the start."
            ) from None
        self._schedule.load_state_dict(state["schedule"])
        self._accuracies = state["accuracies"]
        self._seconds = state.get("seconds", [])
        self._rng.bit_generator.state = state["rng"]


def _check_teacher(
    recipe: Recipe, teacher: Tensor | nn.Module | None, hidden: Sequence[tuple[str, str]]
) -> None:
    if (teacher is not None) != recipe.needs_teacher:
        raise ValueError(
            "a teacher and recipe.teacher_weight > 0 or recipe.hidden_weight > 0 go together"
        )
    if bool(hidden) != (recipe.hidden_weight > 0):
        raise ValueError("hidden states and recipe.hidden_weight > 0 go together")
    if hidden and isinstance(teacher, Tensor):
        raise ValueError("hidden states need a network as teacher, got its logits")


def _laid_out(inputs: Tensor) -> Tensor:
    """Return images ``[n, c, h, w]`` with their channels last, and anything else as it is."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _follow(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move a running mean towards a network; counters are copied."""
    with torch.no_grad():
        pairs = zip(averaged.state_dict().values(), network.state_dict().values(), strict=True)
        for mean, value in pairs:
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(trained, rate, weight_decay=decay)
    return torch.optim.SGD(trained, rate, momentum=0.9, weight_decay=decay, nesterov=True)


def _schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, samples: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a learning rate that rises over a sixth of all steps, then falls to 0."""
    steps = recipe.epochs * (samples // recipe.batch)
    warm_up = max(1, steps // 6)
    falling = max(1, steps - warm_up)
    return torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm_up, max(0.0, (steps - step) / falling)),
    )
