"""The calibration cache: histograms on disk, so that another method or form needs no second pass.

One JSON file per network and data set, see docs/formats.md. What they are of is in the file and in
its name; a file that does not fit, or is damaged, counts as absent and is written anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from pydantic import Field, model_validator

from calibration.errors import CalibrationError
from calibration.histograms import BINS, Histogram
from calibration.npz import parse_json, unwritable
from kernels.files import replacing
from runtime.schema import Schema, Sha256, digest


class Key(Schema):
    """What histograms depend on.

    Attributes
    ----------
    model_sha256
        Of the FP32 model, and of all models whose outputs it reads.
    data_sha256
        Of the calibration images, in their order.
    tools
        Versions of what simplified the network: its tensors are named by them.
    """

    model_sha256: tuple[Sha256, ...]
    data_sha256: Sha256
    preprocessing_sha256: Sha256
    tools: str = f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"

    @property
    def file_name(self) -> str:
        """Name of the file in the cache's folder."""
        return f"{digest(self)[:24]}.json"


class Bins(Schema):
    """A `Histogram` without the empty bins at its ends; ``first`` is the first of ``counts``."""

    limit: float = Field(ge=0)
    first: int = Field(ge=0)
    counts: tuple[int, ...]
    low: float = Field(le=0)
    high: float = Field(ge=0)
    total: int = Field(ge=1)
    zeros: int = Field(ge=0)
    small: int = Field(ge=0)

    @model_validator(mode="after")
    def _check(self) -> Bins:
        if self.first + len(self.counts) > BINS or sum(self.counts) != self.total - self.zeros:
            raise ValueError(f"counts do not add up, or are not within {BINS} bins")
        return self

    @classmethod
    def of(cls, histogram: Histogram) -> Bins:
        """Return what is stored of a histogram."""
        filled = np.flatnonzero(histogram.counts)
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, -1)
        facts = {name: getattr(histogram, name) for name in cls.model_fields if name in _PLAIN}
        counts = tuple(histogram.counts[first : last + 1].tolist())
        return cls(first=first, counts=counts, **facts)

    def histogram(self) -> Histogram:
        """Return the histogram."""
        counts = np.zeros(BINS, np.int64)
        counts[self.first : self.first + len(self.counts)] = self.counts
        return Histogram(counts=counts, **{name: getattr(self, name) for name in _PLAIN})


_PLAIN = ("limit", "low", "high", "total", "zeros", "small")


class CacheFile(Schema):
    """The whole of a cache file."""

    format: Literal["tinysaver.histograms/1"] = "tinysaver.histograms/1"
    key: Key
    bins: int = Field(default=BINS, ge=BINS, le=BINS)
    samples: int = Field(ge=1)
    tensors: dict[str, Bins]


def load_histograms(folder: Path, key: Key) -> dict[str, Histogram] | None:
    """Return stored histograms by tensor, or None where there are none that fit and can be read."""
    path = folder / key.file_name
    try:
        stored = parse_json(path, path.read_text("utf-8"), CacheFile)
    except (OSError, UnicodeDecodeError, CalibrationError):
        return None
    if stored.key != key:
        return None
    return {name: bins.histogram() for name, bins in stored.tensors.items()}


def save_histograms(
    folder: Path, key: Key, histograms: Mapping[str, Histogram], *, samples: int
) -> Path:
    """Write histograms, whole or not at all, and return the file's path.

    Raises
    ------
    CalibrationError
        When the folder or file cannot be written.
    """
    path = folder / key.file_name
    tensors = {name: Bins.of(histogram) for name, histogram in histograms.items()}
    stored = CacheFile(key=key, samples=samples, tensors=tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(json.dumps(stored.model_dump(mode="json")).encode() + b"\n")
    except OSError as error:
        raise unwritable(path, error) from None
    return path
