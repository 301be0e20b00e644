"""``python -m savers.train zoo``: the demo bundle's data slices and models, from Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from calibration.provenance import ProvenanceMeta, save_provenance
from kernels.files import replacing
from runtime.errors import InputError
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar
from savers.dataset import DEFAULT_FOLDER, Split, read_fashion_mnist, split_training_images


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
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=available_threads,
    help="Models trained at a time, one CPU thread each.  [default: all available]",
)
@click.option("--force", is_flag=True, help="Train again what is published already.")
def zoo(
    names: tuple[str, ...], data: Path, out: Path, work: Path, *, threads: int, force: bool
) -> None:
    """Train the models of zoo/fashion and write its data slices.

    Without NAMES: all that are not published yet by their present recipes. From nothing that is
    about two hours on two cores. Seeds are fixed; on another processor or PyTorch the last digits,
    and so the weights, may differ.

    \b
    Examples
      python -m savers.train zoo
      python -m savers.train zoo resnet-8 vit-64 --data ~/fashion-mnist
      nohup nice python -m savers.train zoo 2> training.log &     # a line an epoch
    """
    from savers.catalogue import ZOO
    from savers.workshop import Workshop

    published = [name for name, model in ZOO.items() if model.published]
    unknown = [name for name in names if name not in published]
    if unknown:
        raise InputError(f"{', '.join(unknown)}: unknown; expected some of {', '.join(published)}.")
    training = write_data(data, out)
    with progress_bar() as progress:
        made = Workshop(training, work, out, threads, progress).make(
            names or published, force=force
        )
    click.echo(f"Wrote {out}: trained {', '.join(made) or 'nothing, all are published'}.")


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


if __name__ == "__main__":
    main()
