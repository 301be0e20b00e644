"""Labelled images from a folder: npz files, CIFAR's binary files, or a tree of pictures.

::

    train.npz, test.npz          images u8 [n, side, side, c], labels [n]: docs/formats.md
    train.bin, test.bin          CIFAR-100's binary version: per image a coarse label, a fine
                                 one, then 32x32 red, green and blue values
    train/<class>/*.jpg, ...     a folder of pictures for each class; the same below test or val

Nothing is unpickled: CIFAR's python version is not read. All images are held in memory, a byte per
value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.images import load_arrays, picture_files
from savers.dataset import Split
from savers.image_set import ImageSet, image_set

CIFAR_SIDE, CIFAR_CLASSES = 32, 100
_CIFAR_PIXELS = 3 * CIFAR_SIDE**2
_CIFAR_LABELS = 2

_FORMS = (
    "train.npz and test.npz, CIFAR-100's train.bin and test.bin, or folders of pictures "
    "train/<class> and test/<class> (or val/<class>)"
)


def read_image_set(folder: Path, *, side: int | None = None) -> ImageSet:
    """Read the training and the test images of a folder.

    Parameters
    ----------
    side
        To which pictures are scaled, their middle square; None where images are arrays, which are
        taken as they are.

    Raises
    ------
    InputError
        When the folder holds none of the forms above, a file is damaged, or the two splits do not
        fit together.
    ModuleNotFoundError
        When there are pictures and OpenCV is not installed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder. Give one with {_FORMS}.")
    read, train, test = _form(folder, side)
    return image_set(str(folder), read(train), read(test))


def _form(folder: Path, side: int | None) -> tuple[Callable[[Path], Split], Path, Path]:
    """Return what reads a split, and the places of the two."""
    readers: dict[str, Callable[[Path], Split]] = {".npz": _read_npz, ".bin": _read_cifar}
    for suffix, read in readers.items():
        train, test = folder / f"train{suffix}", folder / f"test{suffix}"
        if train.exists() or test.exists():
            _refuse_side(folder, side)
            return read, train, test
    train, test = folder / "train", _first_of(folder / "test", folder / "val")
    if not (train.is_dir() and test.is_dir()):
        raise InputError(f"{folder}: expected {_FORMS}; found {_content(folder)}.")
    return _tree_reader(train, _checked_side(folder, side)), train, test


def _read_npz(path: Path) -> Split:
    images, labels = load_arrays(path)
    if labels is None:
        raise InputError(f"{path}: expected an array 'labels' beside 'images', found none.")
    return Split(images, labels)


def _read_cifar(path: Path) -> Split:
    try:
        content = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise InputError(f"{path}: not found. Both splits of CIFAR-100 are needed.") from None
    size = _CIFAR_LABELS + _CIFAR_PIXELS
    if not content.size or content.size % size:
        raise InputError(
            f"{path}: expected CIFAR-100's binary version, {size:,} bytes an image, got "
            f"{content.size:,} bytes. CIFAR-10 has another layout; the python version is pickled "
            "and not read."
        )
    rows = content.reshape(-1, size)
    labels = rows[:, _CIFAR_LABELS - 1].astype(np.int32)
    if labels.max() >= CIFAR_CLASSES:
        raise InputError(
            f"{path}: expected fine labels from 0 to {CIFAR_CLASSES - 1}, got {labels.max()}: "
            "this is not CIFAR-100's binary version."
        )
    planes = rows[:, _CIFAR_LABELS:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return Split(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def _tree_reader(train: Path, side: int) -> Callable[[Path], Split]:
    """Return what reads a tree of pictures whose classes are those of the training images."""
    classes = _classes(train)

    def read(tree: Path) -> Split:
        found = _classes(tree)
        if found != classes:
            other = sorted(set(found) ^ set(classes))
            raise InputError(
                f"{tree}: expected the classes of {train}, a folder each; "
                f"only one of the two has {', '.join(other[:8])}."
            )
        files = [
            (file, place) for place, name in enumerate(classes) for file in _files(tree / name)
        ]
        images = np.empty((len(files), side, side, 3), np.uint8)
        for row, (file, _) in enumerate(files):
            images[row] = _picture(file, side)
        return Split(images, np.array([place for _, place in files], np.int32))

    return read


def _classes(tree: Path) -> list[str]:
    return sorted(place.name for place in tree.iterdir() if place.is_dir())


def _files(folder: Path) -> list[Path]:
    found = picture_files(folder)
    if not found:
        raise InputError(f"{folder}: expected pictures, found none.")
    return found


def _picture(file: Path, side: int) -> npt.NDArray[np.uint8]:
    """Return the middle square of a picture, red first, ``u8 [side, side, 3]``."""
    import cv2

    frame: Any = None
    encoded = np.frombuffer(file.read_bytes(), np.uint8)
    # OpenCV raises where a header promises more pixels than it allows.
    with contextlib.suppress(cv2.error):
        frame = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if frame is None:
        raise InputError(
            f"{file}: does not decode as a picture ({encoded.size} bytes). Copy it again or "
            "delete it."
        )
    extent = min(frame.shape[:2])
    top, left = ((length - extent) // 2 for length in frame.shape[:2])
    square = frame[top : top + extent, left : left + extent, ::-1]
    # Averages where it shrinks, and is bilinear where it does not.
    scaled: npt.NDArray[np.uint8] = cv2.resize(
        np.ascontiguousarray(square), (side, side), interpolation=cv2.INTER_AREA
    )
    return scaled


def _first_of(*places: Path) -> Path:
    return next((place for place in places if place.exists()), places[0])


def _checked_side(folder: Path, side: int | None) -> int:
    if side is None:
        raise InputError(f"{folder}: holds pictures. Say to which size they are scaled: --side 32.")
    return side


def _refuse_side(folder: Path, side: int | None) -> None:
    if side is not None:
        raise InputError(
            f"{folder}: --side scales pictures, and this folder holds arrays, which are taken as "
            "they are. Leave it out."
        )


def _content(folder: Path) -> str:
    names = sorted(place.name for place in folder.iterdir())
    return ", ".join(names[:8]) or "nothing"
