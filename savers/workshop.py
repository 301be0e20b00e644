"""Training several models of the zoo at a time, each on one CPU thread, and publishing them.

One thread a model, because a network this small spends more time on handing work between threads
than it gains; and because its weights then do not depend on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue
from rich.progress import Progress
from torch import Tensor, nn

from calibration.errors import CalibrationError
from calibration.pool import Card, load_card, save_card
from kernels.files import replacing
from runtime.bundle import file_sha256
from runtime.errors import InputError
from runtime.schema import Preprocessing
from runtime.session import HostModel
from savers import checkpoint
from savers.catalogue import ZOO
from savers.dataset import Split
from savers.display import epochs_shown
from savers.distil import Trainer, is_finished, teacher_logits
from savers.networks import NETWORKS, count_macs
from savers.recipe import Recipe
from savers.torch_export import to_onnx
from savers.views import MEAN, STD, Images, normalise

PREPROCESSING = Preprocessing(size=(28, 28), colour="grey", mean=(MEAN,), std=(STD,))
PROVENANCE = "../provenance/training.npz"
BATCH = 500
HELD_BACK = 2_000
"""Training images by which cards tell the accuracy."""


class Trained(NamedTuple):
    """A trained network.

    Attributes
    ----------
    accuracy, before
        On the training images held back; ``before`` is that of a network made from a trained one.
    seconds
        Of one CPU thread.
    """

    name: str
    network: nn.Module
    accuracy: float | None
    before: float | None = None
    seconds: float | None = None


class Stopped(Exception):
    """The training of another model failed, or the user interrupted."""


@dataclass
class Workshop:
    """Where training reads, keeps its checkpoints, and publishes.

    Attributes
    ----------
    work
        Folder of checkpoints and of teachers' answers.
    out
        Bundle folder; models go to ``out/models``.
    threads
        Models trained at the same time.
    """

    training: Split
    work: Path
    out: Path
    threads: int
    progress: Progress
    _seeding: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def make(self, names: Sequence[str], *, force: bool = False) -> list[str]:
        """Train and publish the models that are not published yet, or with ``force`` all.

        Returns
        -------
        list of str
            Those that were trained.

        Raises
        ------
        InputError
            When a checkpoint is of another recipe, or a teacher was never published.
        """
        due = [name for name in names if force or not self.is_published(name)]
        # Teachers come before their pupils in ZOO; a published one is wanted before it is asked.
        for teacher in dict.fromkeys(ZOO[name].teacher for name in due):
            group = [name for name in due if ZOO[name].teacher == teacher]
            answers = self.answers(teacher) if teacher else None
            for trained in self._together(group, answers):
                publish(trained, self.out)
        return due

    def is_published(self, name: str) -> bool:
        """Tell whether the model, by the recipe it has now, lies in the bundle folder."""
        try:
            card = load_card(self.out / "models" / f"{name}.json")
        except CalibrationError:
            return False
        return ZOO[name].matches(card.recipe)

    def _together(self, names: Sequence[str], teacher: Tensor | None) -> Iterator[Trained]:
        """Yield each model when it is done."""
        with ThreadPoolExecutor(self.threads) as pool:
            futures = [pool.submit(self._fit, name, teacher) for name in names]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fit(self, name: str, teacher: Tensor | None) -> Trained:
        """Train a model, or go on from its checkpoint, on this thread alone."""
        torch.set_num_threads(1)
        recipe = ZOO[name].recipe
        with self._seeding:
            torch.manual_seed(recipe.seed)
            network = NETWORKS[ZOO[name].network]()
        report = epochs_shown(self.progress, name, recipe.epochs)
        trainer = Trainer(network, Images(self.training, recipe), recipe, teacher=teacher)
        trained = trainer.run(self.work / f"{name}.ckpt", report, proceed=self._proceed)
        return Trained(name, trained, trainer.monitored_accuracy, seconds=trainer.seconds)

    def _proceed(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def answers(self, teacher: str) -> Tensor:
        """Return a teacher's logits f32 [n, K] on the training images, kept beside checkpoints."""
        if ZOO[teacher].published:
            return self._published_answers(teacher)
        kept = self.work / f"{teacher}.npy"
        if not kept.exists():
            (trained,) = self._together([teacher], None)
            _keep(kept, teacher_logits(trained.network, self.training.images))
        return torch.from_numpy(np.load(kept))

    def _published_answers(self, teacher: str) -> Tensor:
        path = self.out / "models" / f"{teacher}.onnx"
        if not self.is_published(teacher):
            raise InputError(
                f"{path}: not there, or not by its present recipe, and other models learn from "
                f"it. Train it first: python -m savers.train zoo {teacher}"
            )
        kept = self.work / f"{teacher}-{file_sha256(path)[:12]}.npy"
        if not kept.exists():
            _keep(kept, self._run(path, teacher))
        return torch.from_numpy(np.load(kept))

    def _run(self, path: Path, name: str) -> Tensor:
        """Return logits f32 [n, K], the mean over each training image and its mirror image."""
        model, images = HostModel(path, threads=self.threads), self.training.images
        task = self.progress.add_task(f"{name} answers", total=len(images))
        parts = []
        for start in range(0, len(images), BATCH):
            rows = images[start : start + BATCH]
            views = (normalise(rows), normalise(rows[:, :, ::-1]))
            parts.append(sum(model.run({"input": view.numpy()})["logits"] for view in views) / 2)
            self.progress.advance(task, len(rows))
        return torch.from_numpy(np.concatenate(parts))


def trained_network(model: str, path: Path | None = None) -> nn.Module:
    """Read a trained model of the zoo from its checkpoint.

    Parameters
    ----------
    path
        None is where ``savers.train`` leaves it by default.

    Raises
    ------
    InputError
        When the zoo has no such model, or there is no checkpoint, or a damaged one, or one of
        another recipe, or of a training that is not finished.
    """
    if model not in ZOO:
        raise InputError(f"{model}: unknown; expected one of {', '.join(ZOO)}.")
    path = path or Path(f"build/train/{model}.ckpt")
    if not path.exists():
        raise InputError(
            f"{path}: not found. Train the model first, python -m savers.train zoo {model}, or "
            "name its checkpoint with --checkpoint."
        )
    recipe = ZOO[model].recipe
    state = checkpoint.load(path, recipe)
    if not is_finished(recipe, state["accuracies"]):
        raise InputError(
            f"{path}: expected a finished training, got one of {len(state['accuracies'])} of "
            f"{recipe.epochs} epochs. Go on with it: python -m savers.train zoo {model}"
        )
    network = NETWORKS[ZOO[model].network]()
    network.load_state_dict(state.get("averaged") or state["network"])
    return network.eval()


def held_back(training: Split, recipe: Recipe) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the rows that are held back from what continues a model, and the others.

    They are those that the model itself was monitored on, so that no phase trains on them.
    """
    order = np.random.default_rng(recipe.seed).permutation(len(training.labels))
    return order[:HELD_BACK], order[HELD_BACK:]


def publish(trained: Trained, out: Path) -> None:
    """Write a trained network of the catalogue as ONNX with its card."""
    model = ZOO[trained.name]
    write_model(trained, out, recipe=model.described(), seed=model.recipe.seed)


def write_model(trained: Trained, out: Path, *, recipe: dict[str, JsonValue], seed: int) -> None:
    """Write a network as ONNX with its card.

    Parameters
    ----------
    out
        Bundle folder; the model goes to ``out/models``.
    recipe, seed
        What the card says of its training.
    """
    path = out / "models" / f"{trained.name}.onnx"
    with replacing(path) as stream:
        stream.write(export_onnx(trained.network))
    card = Card(
        name=trained.name,
        file=path.name,
        sha256=file_sha256(path),
        macs=count_macs(trained.network),
        parameters=sum(item.numel() for item in trained.network.parameters()),
        preprocessing=PREPROCESSING,
        recipe=recipe,
        seed=seed,
        provenance=PROVENANCE,
        monitored_accuracy=trained.accuracy,
        accuracy_before=trained.before,
        training_seconds=trained.seconds,
    )
    save_card(path.parent, card)


def export_onnx(network: nn.Module) -> bytes:
    """Return a network for images of 28x28 as ONNX."""
    network = network.to(memory_format=torch.contiguous_format)
    return to_onnx(network, {"input": torch.zeros(1, 1, 28, 28)})


def _keep(path: Path, logits: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        np.save(stream, logits.numpy())
