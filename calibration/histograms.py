"""Histograms of a network's activations, over real images, in one pass.

A histogram's span doubles whenever a value falls outside it, and neighbouring bins are merged, so
that no first pass is needed to find the span. Exact zeros are counted apart: a ReLU makes so many
that they would hide the rest, and every quantiser represents them exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from calibration.errors import CalibrationError
from engines.half import SMALLEST, Extremes
from engines.onnx_file import node_title
from runtime.session import HostModel

Counts = npt.NDArray[np.int64]
Tensors = Mapping[str, npt.NDArray[Any]]

BINS = 16384
"""Over both signs. The span is at most twice the largest value, so one sign has 4,096 at least."""

SAMPLES_PER_RUN, RUN_BYTES = 50, 1 << 28
"""At most, of the activations of one run: a large network has many for each image."""


@dataclass
class Histogram:
    """Counts of nonzero finite values in equal bins over ``[-limit, limit)``.

    Attributes
    ----------
    low, high
        Least and greatest value seen; 0 where none was.
    total, zeros, small
        Values, those among them that are zero, and nonzero ones below FP16's normal numbers.
    """

    limit: float = 0.0
    counts: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))
    low: float = 0.0
    high: float = 0.0
    total: int = 0
    zeros: int = 0
    small: int = 0

    @property
    def largest(self) -> float:
        """Greatest absolute value seen."""
        return max(-self.low, self.high)

    @property
    def extremes(self) -> Extremes:
        """What FP16 would meet."""
        nonzero = self.total - self.zeros
        return Extremes(self.largest, self.small / nonzero if nonzero else 0.0)

    def folded(self) -> Counts:
        """Return counts of absolute values in ``BINS / 2`` equal bins over ``[0, limit)``."""
        half = BINS // 2
        return self.counts[half:] + self.counts[:half][::-1]

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count finite values."""
        flat = values.reshape(-1)
        nonzero = flat[flat != 0]
        self.total += len(flat)
        self.zeros += len(flat) - len(nonzero)
        if not len(nonzero):
            return
        self.low = min(self.low, float(nonzero.min()))
        self.high = max(self.high, float(nonzero.max()))
        self.small += int((np.abs(nonzero) < SMALLEST).sum())
        self._widen(self.largest)
        # The span is a power of two, so that the product is exact.
        places = np.floor(nonzero * np.float32(BINS // 2 / self.limit)).astype(np.int32)
        places += BINS // 2
        self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)

    def _widen(self, largest: float) -> None:
        """Double the span until it holds the largest value, so that bins merge two by two."""
        if self.limit == 0.0:
            self.limit = float(2.0 ** np.ceil(np.log2(largest)))
        while self.limit < largest:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : -BINS // 4] = merged
            self.limit *= 2


def observe(
    model: onnx.ModelProto,
    feeds: Callable[[int], Iterable[Tensors]],
    *,
    path: Path,
    threads: int,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Histogram]:
    """Run a network and return the histogram of each of its float activations, inputs included.

    Parameters
    ----------
    model
        From `engines.preparation.prepare`.
    feeds
        Yields the network's inputs by name, f32 [n, ...], for runs of at most that many samples.
    path
        Of the model's file, for messages.
    advance
        Told the samples of each run.

    Raises
    ------
    CalibrationError
        When an activation is NaN or infinite.
    """
    writers = _float_activations(model.graph)
    session = HostModel(path, threads=threads, content=_with_outputs(model, writers))
    found = {tensor: Histogram() for tensor in writers}
    done = 0
    for feed in feeds(_samples_per_run(session, next(iter(feeds(1))))):
        values = {**feed, **session.run(feed)}
        for tensor, histogram in found.items():
            _check_finite(path, tensor, writers[tensor], values[tensor], done)
            histogram.add(values[tensor])
        samples = len(next(iter(feed.values())))
        done += samples
        advance(samples)
    return found


def _samples_per_run(session: HostModel, one: Tensors) -> int:
    nbytes = sum(array.nbytes for array in session.run(one).values())
    return max(1, min(SAMPLES_PER_RUN, RUN_BYTES // max(1, nbytes)))


def _float_activations(graph: onnx.GraphProto) -> dict[str, str]:
    """Return what writes each float32 activation, the network's inputs first."""
    weights = {tensor.name for tensor in graph.initializer}
    infos = (*graph.input, *graph.value_info, *graph.output)
    floats = {i.name for i in infos if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    inputs = [info.name for info in graph.input if info.name not in weights]
    writers = {name: "the preprocessing" for name in inputs if name in floats}
    for node in graph.node:
        writers.update({name: node_title(node) for name in node.output if name in floats})
    return writers


def _with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> bytes:
    """Return the model with further outputs."""
    wider = copy.deepcopy(model)
    there = {info.name for info in (*wider.graph.input, *wider.graph.output)}
    for name in tensors:
        if name not in there:
            wider.graph.output.add(name=name)
    content: bytes = wider.SerializeToString()
    return content


def _check_finite(
    path: Path, tensor: str, writer: str, values: npt.NDArray[np.float32], done: int
) -> None:
    # A NaN is both least and largest, which is found sooner than by looking at every value.
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        wrong = ~np.isfinite(values)
        row = int(wrong.reshape(len(values), -1).any(1).argmax())
        raise CalibrationError(
            f"{path}: {writer} gives {values[wrong][0]} for calibration image {done + row} (tensor "
            f"{tensor}). INT8 has no such number: mend the model, or take that image out."
        )
