"""``python -m savers.train zoo``: the demo bundle's data slices and models, from Fashion-MNIST."""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from calibration.pool import Card, save_card
from calibration.provenance import ProvenanceMeta, save_provenance
from runtime.bundle import file_sha256, replacing
from runtime.errors import InputError
from runtime.schema import Preprocessing
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar
from savers.dataset import DEFAULT_FOLDER, Split, read_fashion_mnist, split_training_images
from savers.distil import MEAN, STD, Epoch, Recipe, Trainer, teacher_logits
from savers.networks import NETWORKS, count_macs

OPSET = 17
"""What TensorRT 8.6 reads."""

PREPROCESSING = Preprocessing(size=(28, 28), colour="grey", mean=(MEAN,), std=(STD,))


@dataclass(frozen=True)
class Model:
    """A model of the zoo: which network, how it is trained, whether it is published."""

    network: str
    recipe: Recipe
    published: bool = True


def _student(epochs: int, seed: int, *, weight_decay: float = 1e-4, cutout: int = 0) -> Recipe:
    return Recipe(
        epochs=epochs,
        seed=seed,
        weight_decay=weight_decay,
        cutout=cutout,
        teacher_weight=0.9,
        temperature=4.0,
    )


# The teacher is the first large model; the published one learned from it and shares no weight.
ZOO: dict[str, Model] = {
    "teacher": Model(
        "large",
        Recipe(epochs=18, seed=1, label_smoothing=0.05, shift=2, cutout=8),
        published=False,
    ),
    "tiny": Model("tiny", _student(40, seed=2)),
    "middle": Model("middle", _student(30, seed=3)),
    "large": Model("large", _student(24, seed=5, weight_decay=5e-4, cutout=8)),
}


@dataclass(frozen=True)
class Workshop:
    """Where training reads, keeps its checkpoints, and publishes."""

    training: Split
    work: Path
    out: Path
    progress: Progress

    def fit(self, name: str, teacher: Tensor | None) -> tuple[nn.Module, float]:
        """Train a model, or go on from its checkpoint; return it with its monitored accuracy."""
        model = ZOO[name]
        torch.manual_seed(model.recipe.seed)
        task = self.progress.add_task(name, total=model.recipe.epochs)

        def report(epoch: Epoch) -> None:
            text = f"{name} {100 * epoch.accuracy:.2f} %"
            self.progress.update(task, completed=epoch.number, description=text)

        network = NETWORKS[model.network]()
        trainer = Trainer(network, self.training, model.recipe, teacher=teacher)
        trained = trainer.run(self.work / f"{name}.ckpt", report)
        return trained, trainer.monitored_accuracy


@click.group()
def main() -> None:
    """Train models and write them as ONNX with a card each."""


@main.command(cls=Command)
@click.argument("names", nargs=-1)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Folder with the four idx .gz files of Fashion-MNIST.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("zoo/fashion"),
    show_default=True,
    help="Bundle folder: data/, models/ and provenance/ are written below it.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/train"),
    show_default=True,
    help="Checkpoints after each epoch. Training goes on from them.",
)
@click.option("--threads", type=int, help="CPU threads.  [default: all available]")
def zoo(names: tuple[str, ...], data: Path, out: Path, work: Path, threads: int | None) -> None:
    """Train the models of zoo/fashion and write its data slices.

    Without NAMES: all of them, about an hour on two cores. Seeds are fixed; on another
    processor or PyTorch the last digits, and so the weights, may differ.

    \b
    Examples
      python -m savers.train zoo
      python -m savers.train zoo tiny middle --data ~/fashion-mnist
    """
    unknown = [name for name in names if name not in ZOO]
    if unknown:
        raise InputError(f"{', '.join(unknown)}: unknown; expected some of {', '.join(ZOO)}.")
    torch.set_num_threads(threads or available_threads())
    training = write_data(data, out)
    with progress_bar() as progress:
        shop = Workshop(training, work, out, progress)
        teacher = _teacher(shop)
        for name in names or ZOO:
            if ZOO[name].published:
                network, accuracy = shop.fit(name, teacher)
                publish(name, network, accuracy, out)
    click.echo(f"Wrote {out}.")


def write_data(data: Path, out: Path) -> Split:
    """Write the held-out splits and the provenance of the training split; return the latter."""
    full, test = read_fashion_mnist(data)
    splits = {**split_training_images(full), "test": test}
    for folder in ("data", "models", "provenance"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name in ("selection", "certificate", "test"):
        with replacing(out / "data" / f"{name}.npz") as stream:
            np.savez_compressed(
                stream, images=splits[name].images, labels=splits[name].labels.astype(np.uint8)
            )
    meta = ProvenanceMeta(
        purpose="training", description="48,000 of the 60,000 Fashion-MNIST training images"
    )
    save_provenance(out / "provenance" / "training.npz", splits["train"].images, meta)
    return splits["train"]


def publish(name: str, network: nn.Module, accuracy: float, out: Path) -> None:
    """Write a trained network as ONNX with its card."""
    path = out / "models" / f"{name}.onnx"
    with replacing(path) as stream:
        stream.write(export_onnx(network))
    recipe = ZOO[name].recipe
    card = Card(
        name=name,
        file=path.name,
        sha256=file_sha256(path),
        macs=count_macs(network),
        parameters=sum(item.numel() for item in network.parameters()),
        preprocessing=PREPROCESSING,
        recipe={"network": ZOO[name].network, **asdict(recipe)},
        seed=recipe.seed,
        provenance="../provenance/training.npz",
        monitored_accuracy=accuracy,
    )
    save_card(path.parent, card)


def export_onnx(network: nn.Module) -> bytes:
    """Return a network as ONNX with a dynamic batch, batch norm folded into convolutions."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The TorchScript exporter writes opset 17, which the newer one cannot; it says it is old.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval().to(memory_format=torch.contiguous_format),
            (torch.zeros(1, 1, 28, 28),),
            content,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return content.getvalue()


def _teacher(shop: Workshop) -> Tensor:
    """Return the teacher's logits f32 [n, K], computed once and kept beside its checkpoint."""
    kept = shop.work / "teacher.npy"
    if not kept.exists():
        network, _ = shop.fit("teacher", None)
        logits = teacher_logits(network, shop.training.images)
        with replacing(kept) as stream:
            np.save(stream, logits.numpy())
    return torch.from_numpy(np.load(kept))


if __name__ == "__main__":
    main()
