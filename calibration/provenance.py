"""Which samples decided something, so that a certificate can be refused on data that did.

A provenance file keeps one u64 per sample: the first 8 bytes of the sha256 over shape and bytes.
Equal samples always collide, so an overlap is never missed. Unequal ones collide with probability
2^-64 per pair, about 2e-11 for 48,000 against 8,000 samples, and that would only refuse needlessly.
Only byte for byte equal samples count as equal: a copy that was resized or compressed is not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from calibration.npz import pack_meta, read_npz, unpack_meta, write_npz
from runtime.bundle import Bundle, file_sha256
from runtime.schema import Form, Provenance, Schema

Digests = npt.NDArray[np.uint64]
Purpose = Literal["training", "selection", "ranges"]


class ProvenanceMeta(Schema):
    """What the samples were used for, and which they are, in words."""

    format: Literal["tinysaver.provenance/1"] = "tinysaver.provenance/1"
    purpose: Purpose
    description: str = ""


class SampleSet(NamedTuple):
    """Digests ``u64 [m]``, ascending and unique, of the samples used for one purpose."""

    digests: Digests
    meta: ProvenanceMeta


class Overlap(NamedTuple):
    """How many of the samples in question a provenance file names."""

    file: Path
    purpose: Purpose
    samples: int


def sample_digests(images: npt.NDArray[np.uint8]) -> Digests:
    """Return one u64 per sample of ``images u8 [n, H, W, C]``."""
    shape = f"{list(images.shape[1:])}".encode()
    samples = np.ascontiguousarray(images)
    parts = b"".join(hashlib.sha256(shape + sample.tobytes()).digest()[:8] for sample in samples)
    return np.frombuffer(parts, "<u8").astype(np.uint64)


def save_provenance(path: Path, images: npt.NDArray[np.uint8], meta: ProvenanceMeta) -> Provenance:
    """Write the provenance file of ``images u8 [n, H, W, C]``; return a bundle's entry for it.

    The entry's ``file`` is the bare name: whoever puts it in a bundle makes it relative to that.

    Raises
    ------
    CalibrationError
        When the file cannot be written.
    """
    return save_digests(path, sample_digests(images), meta)


def save_digests(path: Path, digests: Digests, meta: ProvenanceMeta) -> Provenance:
    """Write the provenance file of samples by their digests, as `save_provenance` does."""
    write_npz(path, {"digests": np.unique(digests), "meta": pack_meta(meta)})
    return Provenance(purpose=meta.purpose, file=path.name, sha256=file_sha256(path))


def load_provenance(path: Path) -> SampleSet:
    """Read a provenance file.

    Raises
    ------
    CalibrationError
        When it is missing, damaged, of another format, or its digests do not ascend.
    """
    arrays = read_npz(path, ("digests", "meta"))
    digests = arrays["digests"]
    if digests.ndim != 1 or digests.dtype != np.uint64 or (digests[1:] <= digests[:-1]).any():
        raise CalibrationError(
            f"{path}: digests: expected ascending u64 [m], "
            f"got {digests.dtype} {list(digests.shape)}."
        )
    return SampleSet(digests, unpack_meta(path, arrays["meta"], ProvenanceMeta))


def overlaps(images: npt.NDArray[np.uint8], files: Iterable[Path]) -> list[Overlap]:
    """Return the provenance files that name samples of ``images``, with how many.

    Raises
    ------
    CalibrationError
        When a file cannot be read.
    """
    digests = sample_digests(images)
    found = []
    for file in files:
        used = load_provenance(file)
        samples = int(np.isin(digests, used.digests).sum())
        if samples:
            found.append(Overlap(file, used.meta.purpose, samples))
    return found


def check_unused(
    images: npt.NDArray[np.uint8], bundle: Bundle, forms: tuple[Form, ...], *, allow_unknown: bool
) -> Literal["checked", "unchecked"]:
    """Return whether the samples are known to have decided nothing in the bundle.

    Parameters
    ----------
    images
        u8 [n, H, W, C], the samples that are to certify.
    forms
        Of the stages. Integer forms also need provenance of the data that gave their ranges.
    allow_unknown
        Go on, ``unchecked``, where the bundle lacks provenance for a purpose.

    Raises
    ------
    CalibrationError
        For an overlap, always; for missing provenance, unless ``allow_unknown``; for a provenance
        file that is damaged or was exchanged.
    """
    entries = bundle.spec.provenance
    found = overlaps(images, [_verified(bundle, entry) for entry in entries])
    if found:
        listed = "; ".join(
            f"{item.samples} of {len(images)} for {item.purpose} ({item.file})" for item in found
        )
        raise CalibrationError(
            f"samples that are to certify were already used: {listed}. "
            "A certificate needs samples that decided nothing else: take others."
        )
    missing = _needed(forms) - {entry.purpose for entry in entries}
    if missing and not allow_unknown:
        raise CalibrationError(
            f"{bundle.folder / 'cascade.json'}: no provenance for {', '.join(sorted(missing))}, so "
            "nobody can tell whether the certifying samples are new. Add the files, or pass "
            "--allow-unknown-provenance, which the certificate will say."
        )
    return "unchecked" if missing else "checked"


def _needed(forms: tuple[Form, ...]) -> set[Purpose]:
    needed: set[Purpose] = {"training", "selection"}
    return needed | {"ranges"} if any(form.startswith("int8") for form in forms) else needed


def _verified(bundle: Bundle, entry: Provenance) -> Path:
    path = bundle.verified(entry.file, entry.sha256)
    if load_provenance(path).meta.purpose != entry.purpose:
        raise CalibrationError(f"{path}: cascade.json calls it {entry.purpose}, the file does not.")
    return path
