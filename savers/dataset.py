"""Fashion-MNIST as four disjoint splits, each with one purpose.

``train``        fits weights; early stopping uses a part of it
``selection``    chooses savers, scores and threshold paths
``certificate``  certifies the one cascade that selection chose, and decides nothing else
``test``         is reported

Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv 1708.07747, MIT licence.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt

from calibration.npz import write_npz
from runtime.errors import InputError
from runtime.terminal import Command

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SELECTION_SIZE = 4_000
CERTIFICATE_SIZE = 8_000
SPLIT_SEED = 20240326
PART_SEED = 2403


class Split(NamedTuple):
    """Images ``u8 [n, h, w, c]``, c 1 or 3, and their labels ``i32 [n]``."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]

    def rows(self, index: npt.NDArray[np.int64]) -> Split:
        """Return the given rows, in the given order."""
        return Split(self.images[index], self.labels[index])


def read_fashion_mnist(folder: Path = DEFAULT_FOLDER) -> tuple[Split, Split]:
    """Read the 60,000 training and 10,000 test images.

    Raises
    ------
    FileNotFoundError
        When one of the four ``.gz`` files is missing; the message says where to get them.
    InputError
        When one is damaged.
    """
    return _read_part(folder, "train"), _read_part(folder, "t10k")


def split_training_images(full: Split) -> dict[str, Split]:
    """Cut the training images into ``train``, ``selection`` and ``certificate``.

    The held-out splits are random and stratified (equal counts per class), with a fixed seed.
    An image that occurs more than once stays in ``train`` with all its copies, so that no sample
    of a held-out split was ever trained on.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    unique = _occurs_once(full.images)
    classes = len(LABELS)
    selection: list[npt.NDArray[np.int64]] = []
    certificate: list[npt.NDArray[np.int64]] = []
    for label in range(classes):
        rows = rng.permutation(np.flatnonzero(unique & (full.labels == label)))
        first, second = SELECTION_SIZE // classes, CERTIFICATE_SIZE // classes
        selection.append(rows[:first])
        certificate.append(rows[first : first + second])
    held_out = {
        "selection": rng.permutation(np.concatenate(selection)),
        "certificate": rng.permutation(np.concatenate(certificate)),
    }
    train = np.setdiff1d(np.arange(len(full.labels)), np.concatenate(list(held_out.values())))
    return {"train": full.rows(train)} | {name: full.rows(rows) for name, rows in held_out.items()}


def training_part(train: Split, size: int) -> Split:
    """Return a fixed random part of the training split, in the order of the split.

    Raises
    ------
    InputError
        When the split has fewer images.
    """
    if size > len(train.labels):
        raise InputError(f"--images: the training split has {len(train.labels):,}, got {size:,}.")
    rows = np.random.default_rng(PART_SEED).choice(len(train.labels), size, replace=False)
    return train.rows(np.sort(rows))


def _occurs_once(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    flat = np.ascontiguousarray(images.reshape(len(images), -1))
    as_bytes = flat.view(np.dtype((np.void, flat.shape[1]))).ravel()
    _, inverse, counts = np.unique(as_bytes, return_inverse=True, return_counts=True)
    once: npt.NDArray[np.bool_] = counts[inverse] == 1
    return once


def _read_part(folder: Path, name: str) -> Split:
    images = _read_idx(folder / f"{name}-images-idx3-ubyte.gz", header=16)
    labels = _read_idx(folder / f"{name}-labels-idx1-ubyte.gz", header=8)
    return Split(images.reshape(-1, 28, 28, 1), labels.astype(np.int32))


def _read_idx(path: Path, *, header: int) -> npt.NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: not found. Install the Debian package dataset-fashion-mnist, "
            "or pass --data FOLDER with the four idx .gz files of Fashion-MNIST."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}). Copy the file again.") from None
    if len(content) <= header:
        raise InputError(f"{path}: expected an idx file, got {len(content)} bytes. Copy it again.")
    return np.frombuffer(content, np.uint8, offset=header)


@click.command(cls=Command, epilog="Example: python -m savers.dataset --out records/data/train.npz")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Folder with the four idx .gz files of Fashion-MNIST.",
)
@click.option(
    "--images", type=click.IntRange(1), default=8_000, show_default=True, help="How many."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("records/data/train.npz"),
    show_default=True,
    help="Where they go; the name of the file is that of the split in records.",
)
def main(data: Path, images: int, out: Path) -> None:
    """Write a fixed random part of the training split, which the bundle does not ship.

    Models are too right and too sure on it, for they were trained on it: choose nothing there. It
    is for seeing how much that matters (python -m calibration.reproduce).
    """
    full, _ = read_fashion_mnist(data)
    part = training_part(split_training_images(full)["train"], images)
    write_npz(out, {"images": part.images, "labels": part.labels.astype(np.uint8)})
    click.echo(f"{out}: {len(part.labels):,} images of the training split")


if __name__ == "__main__":
    main(prog_name="python -m savers.dataset")
