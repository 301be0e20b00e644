"""Real images to calibrate with: an npz file, or a folder of pictures of one size or of many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from calibration.provenance import Digests, sample_digests
from calibration.records import HELD_OUT, Labels, load_data
from runtime.bundle import Bundle
from runtime.images import read_sources
from runtime.schema import FrameFormat

Frames = npt.NDArray[np.uint8]

FEWEST = 32
"""Ranges of fewer images say more of those images than of the network."""


@dataclass(frozen=True)
class Samples:
    """Images and, where known, their labels.

    Attributes
    ----------
    frames
        Each u8 [H, W, C].
    labels
        i32 [n], or None.
    skipped
        Files that did not decode, with the reason.
    """

    name: str
    frames: Sequence[Frames]
    labels: Labels | None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.frames)

    def batches(self, size: int) -> Iterator[Frames]:
        """Yield the images in their order, u8 [n, H, W, C], of one size each, ``size`` at most."""
        run: list[Frames] = []
        for frame in self.frames:
            if run and (len(run) == size or frame.shape != run[0].shape):
                yield np.stack(run)
                run = []
            run.append(frame)
        if run:
            yield np.stack(run)

    def some(self, most: int, *, seed: int) -> Samples:
        """Return at most that many, drawn at random, in their order."""
        if len(self) <= most:
            return self
        rows = np.sort(np.random.default_rng(seed).permutation(len(self))[:most])
        labels = None if self.labels is None else self.labels[rows]
        return Samples(self.name, [self.frames[row] for row in rows], labels, self.skipped)

    @property
    def digests(self) -> Digests:
        """One u64 per image, as provenance files keep them."""
        return np.concatenate([sample_digests(frame[None]) for frame in self.frames])

    @property
    def sha256(self) -> str:
        """Hash of the images, in their order."""
        whole = hashlib.sha256()
        for frame in self.frames:
            whole.update(f"{list(frame.shape)}\n".encode() + np.ascontiguousarray(frame).tobytes())
        return whole.hexdigest()


def load_samples(path: Path, bundle: Bundle) -> Samples:
    """Read calibration images of a bundle's frame format.

    Raises
    ------
    CalibrationError
        When the data are to certify or test, too few, of one class, or of another size.
    InputError
        When the path does not exist, or is damaged.
    """
    if path.stem in HELD_OUT:
        raise CalibrationError(
            f"{path}: the {path.stem} split must not choose anything, and ranges are a choice. "
            "Pass images of the selection or training split."
        )
    samples = _from_npz(path, bundle) if path.suffix == ".npz" else _from_folder(path, bundle)
    _check_enough(path, samples)
    return samples


def _from_npz(path: Path, bundle: Bundle) -> Samples:
    data = load_data(path)
    certified = {
        setting.certificate.covers.data_sha256
        for setting in bundle.spec.settings.values()
        if setting.certificate and setting.certificate.covers
    }
    if data.sha256 in certified:
        raise CalibrationError(
            f"{path}: these are the data that certified {bundle.folder}; they must not choose "
            "anything. Pass images of the selection or training split."
        )
    _check_shape(path, data.images.shape[1:], bundle.spec.input)
    classes = len(bundle.spec.labels)
    if data.labels is not None and data.labels.max() >= classes:
        raise CalibrationError(
            f"{path}: labels: expected 0 to {classes - 1}, got {data.labels.max()}."
        )
    return Samples(data.name, list(data.images), data.labels)


def _from_folder(path: Path, bundle: Bundle) -> Samples:
    pictures = list(read_sources([path], bundle.spec.input))
    if not pictures:
        raise CalibrationError(
            f"{path}: no pictures found. Give a folder with real images of the camera, or an npz "
            "file with images u8 [n, H, W, C]."
        )
    skipped = tuple(f"{item.source}: {item.error}" for item in pictures if item.frame is None)
    frames = [item.frame for item in pictures if item.frame is not None]
    if not frames:
        raise CalibrationError(f"{path}: none of {len(pictures)} pictures decodes: {skipped[0]}.")
    return Samples(path.name, frames, None, skipped)


def _check_shape(path: Path, found: tuple[int, ...], expected: FrameFormat) -> None:
    height, width, channels = expected.shape
    if found[2] != channels or (height and found[:2] != (height, width)):
        size = f"{height or 'height'}, {width or 'width'}, {channels}"
        raise CalibrationError(
            f"{path}: images: expected [n, {size}] ({expected.colour}) as the bundle says, "
            f"got [n, {', '.join(map(str, found))}]."
        )


def _check_enough(path: Path, samples: Samples) -> None:
    if len(samples) < FEWEST:
        problem = f", {len(samples.skipped)} more do not decode" if samples.skipped else ""
        raise CalibrationError(
            f"{path}: expected at least {FEWEST} images, got {len(samples)}{problem}. Ranges of so "
            "few would not fit what the camera sees: a few hundred to a thousand are usual."
        )
    if samples.labels is not None and len(np.unique(samples.labels)) == 1:
        raise one_class(path, bundle_label=str(samples.labels[0]))


def one_class(path: Path, *, bundle_label: str) -> CalibrationError:
    """Return the error for images of one class only."""
    return CalibrationError(
        f"{path}: all images are of one class ({bundle_label}); ranges would fit only that. "
        "Pass images of all classes."
    )
