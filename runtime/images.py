"""Images from files: single pictures, folders of them, and npz arrays."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.schema import FrameFormat

# Of these, an encrypted archive is a RuntimeError, a header with an absurd shape a MemoryError, one
# with open brackets a TokenError, and a bare array with an archive behind it an AttributeError.
UNREADABLE = (
    AttributeError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class Images(NamedTuple):
    """Frames u8 [n, H, W, C], labels i32 [n] if known, and where they are from."""

    frames: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32] | None
    source: str
    random: bool = False


class Picture(NamedTuple):
    """One image of a source: its frame u8 [H, W, C], or why there is none."""

    source: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    frame: npt.NDArray[np.uint8] | None
    error: str | None = None


def load_arrays(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32] | None]:
    """Read ``images u8 [n, H, W, C]`` and, where present, ``labels i32 [n]`` of an npz file.

    Raises
    ------
    InputError
        When the file is missing, is not npz, or its arrays do not fit.
    """
    content = read_npz(path, "images", "labels")
    return _checked_images(path, content), _checked_labels(path, content)


def read_npz(path: Path, *names: str) -> dict[str, npt.NDArray[Any]]:
    """Read those of the named arrays that an npz file holds, all without names.

    Raises
    ------
    InputError
        When the file is missing, or is not a whole npz of plain arrays.
    """
    try:
        # Given a path instead, np.load leaves the file open when it is damaged.
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("not a zip archive")
            stream.seek(0)
            stored = np.load(stream, allow_pickle=False)
            return {name: stored[name] for name in stored.files if name in (names or stored.files)}
    except FileNotFoundError:
        raise InputError(f"{path}: not found.") from None
    except UNREADABLE as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: not an npz file that can be read ({reason}).") from None


def read_sources(paths: list[Path], expected: FrameFormat) -> Iterator[Picture]:
    """Yield every picture of files, folders (recursively, in order of name) and npz files.

    A picture file of another size than ``expected`` is resized. One that does not decode, or a
    frame of npz that has the wrong size, is yielded with its error; the rest go on.

    Raises
    ------
    InputError
        When a path does not exist, npz is damaged, or pictures are given where frames are NV12.
    """
    for path in paths:
        if path.suffix == ".npz":
            frames, _ = load_arrays(path)
            error = _misfit(frames.shape[1:], expected)
            for index, frame in enumerate(frames):
                yield Picture(str(path), index, None if error else frame, error)
        else:
            _require_decodable(path, expected)
            for file in picture_files(path):
                yield _read_picture(file, expected)


def count_pictures(paths: list[Path]) -> int:
    """Return how many pictures `read_sources` will yield."""
    return sum(
        len(load_arrays(path)[0]) if path.suffix == ".npz" else len(picture_files(path))
        for path in paths
    )


def picture_files(path: Path) -> list[Path]:
    """Return the picture files below a folder, or the file itself."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not path.exists():
        raise InputError(f"{path}: not found. Give pictures, folders or npz files.")
    return [path]


def _require_decodable(path: Path, expected: FrameFormat) -> None:
    if expected.colour == "nv12":
        raise InputError(
            f"{path}: the cascade takes nv12 frames, which no picture file holds. "
            "Give npz with images u8 [n, H * 3/2, W, 1]."
        )


def _read_picture(path: Path, expected: FrameFormat) -> Picture:
    cv2 = _opencv()
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        return Picture(str(path), 0, None, f"cannot be read: {error.strerror}")
    flag = cv2.IMREAD_GRAYSCALE if expected.colour == "grey" else cv2.IMREAD_COLOR
    try:
        frame = cv2.imdecode(encoded, flag) if encoded.size else None
    except cv2.error:  # a header that promises more pixels than OpenCV allows
        frame = None
    if frame is None:
        return Picture(str(path), 0, None, f"does not decode as a picture ({encoded.size} bytes)")
    if expected.colour == "rgb":
        frame = frame[..., ::-1]
    frame = frame.reshape(*frame.shape[:2], expected.shape[2])
    height, width = expected.shape[:2]
    if height and frame.shape[:2] != (height, width):
        # The bundle wants frames of one size; the arithmetic is that of preprocessing.
        resized = cv2.resize(frame.astype(np.float32), (width, height))
        frame = np.clip(np.rint(resized), 0, 255).astype(np.uint8).reshape(expected.shape)
    return Picture(str(path), 0, np.ascontiguousarray(frame))


def _misfit(found: tuple[int, ...], expected: FrameFormat) -> str | None:
    height, width, channels = expected.shape
    if found[2] != channels or (height and found[:2] != (height, width)):
        size = f"{height or 'height'}, {width or 'width'}, {channels}"
        return f"has the wrong size: expected [{size}] ({expected.colour}), got {list(found)}"
    try:
        expected.pixels.picture_size(*found[:2])
    except ValueError as error:
        return f"has the wrong size: {error}"
    return None


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise InputError(
            "Reading pictures needs OpenCV (cv2). On JetPack use the system's; "
            "elsewhere: pip install 'tinysaver-runtime[opencv]'. npz files need no OpenCV."
        ) from None
    return cv2


def _checked_images(
    path: Path, content: dict[str, npt.NDArray[np.generic]]
) -> npt.NDArray[np.uint8]:
    images = content.get("images")
    if images is None:
        raise InputError(f"{path}: expected an array 'images' u8 [n, H, W, C], found none.")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(
            f"{path}: images: expected u8 [n, H, W, C], got {images.dtype} {list(images.shape)}."
        )
    return images.astype(np.uint8, copy=False)


def _checked_labels(
    path: Path, content: dict[str, npt.NDArray[np.generic]]
) -> npt.NDArray[np.int32] | None:
    labels = content.get("labels")
    if labels is None:
        return None
    if labels.shape != (len(content["images"]),) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: labels: expected integers [{len(content['images'])}], "
            f"got {labels.dtype} {list(labels.shape)}."
        )
    return labels.astype(np.int32)
