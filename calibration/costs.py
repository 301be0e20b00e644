"""What a cascade costs per sample: in multiply-accumulates, or in time on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from calibration.pool import Card
from runtime.measurement import Subject
from runtime.session import HostModel

Seconds = Mapping[int, float]
"""Time of one batch, by its size."""


class Costs(Protocol):
    """The cost of single models and of cascades, per sample."""

    @property
    def unit(self) -> Literal["time", "macs"]:
        """What is counted: seconds, or multiply-accumulates."""

    def alone(self, name: str) -> float:
        """Return the cost of a model that sees every sample."""

    def cascade(self, names: Sequence[str], rates: Sequence[float]) -> float:
        """Return the expected cost of stages, given the share of samples each gate sends on."""


@dataclass(frozen=True)
class MacCosts:
    """Multiply-accumulates, by model."""

    macs: Mapping[str, int]
    unit: Literal["time", "macs"] = "macs"

    def alone(self, name: str) -> float:
        """Return the model's own count."""
        return float(self.macs[name])

    def cascade(self, names: Sequence[str], rates: Sequence[float]) -> float:
        """Return the mean over samples."""
        return sum(self.macs[name] * rate for name, rate in zip(names, (1.0, *rates), strict=True))


@dataclass(frozen=True)
class TimeCosts:
    """Seconds of inference sessions, measured; gates and copies between them are not included.

    Attributes
    ----------
    seconds
        Per model the time of one batch by its size, up to ``batch``.
    batch
        Samples that enter the cascade together.
    """

    seconds: Mapping[str, Seconds]
    batch: int
    unit: Literal["time", "macs"] = "time"

    def alone(self, name: str) -> float:
        """Return the time per sample at the model's best batch size."""
        return min(seconds / size for size, seconds in self.seconds[name].items())

    def cascade(self, names: Sequence[str], rates: Sequence[float]) -> float:
        """Return the mean over the batch sizes that escalation gives, for independent samples."""
        first, *later = names
        total = self.seconds[first][self.batch]
        for name, rate in zip(later, rates, strict=True):
            total += float(binomial_mass(self.batch, rate) @ self._by_count(name))
        return total / self.batch

    def _by_count(self, name: str) -> npt.NDArray[np.float64]:
        """Seconds for 0 to ``batch`` samples; sizes that were not measured lie on a line."""
        sizes = sorted(self.seconds[name])
        measured = [self.seconds[name][size] for size in sizes]
        return np.interp(np.arange(self.batch + 1), [0, *sizes], [0.0, *measured])


def binomial_mass(n: int, rate: float) -> npt.NDArray[np.float64]:
    """Return the probability of 0 to n escalated samples among n, f64 [n + 1]."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mass = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
        log_mass += np.where(k > 0, k * np.log(rate), 0.0)
        log_mass += np.where(k < n, (n - k) * np.log1p(-rate), 0.0)
    mass: npt.NDArray[np.float64] = np.exp(log_mass)
    return mass


def batch_sizes(batch: int) -> list[int]:
    """Return the sizes to measure: powers of two below ``batch``, and ``batch``."""
    return [*(1 << power for power in range(batch.bit_length()) if 1 << power < batch), batch]


def measure_seconds(
    runs: Mapping[str, Callable[[int], object]],
    sizes: Sequence[int],
    *,
    rounds: int = 30,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, dict[int, float]]:
    """Return the median time of each model at each batch size.

    Models and sizes take turns, so that a change in the machine's speed meets all of them.

    Parameters
    ----------
    runs
        Per model a function that runs one batch of the given size.
    advance
        Told the end of each round.
    """
    subjects = {(name, size): Subject(name) for name in runs for size in sizes}
    for name, size in subjects:
        runs[name](size)
    for _ in range(rounds):
        for (name, size), subject in subjects.items():
            subject.measure(partial(runs[name], size), size)
        advance()
    return {
        name: {size: float(np.median(subjects[name, size].seconds)) for size in sizes}
        for name in runs
    }


def host_runs(
    folder: Path, cards: Mapping[str, Card], *, threads: int
) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Yield per model a function that runs a batch of noise of the given size on the CPU."""
    for name, card in cards.items():
        yield (
            name,
            _host_run(HostModel(folder / card.file, threads=threads), card),
        )


def _host_run(model: HostModel, card: Card) -> Callable[[int], object]:
    shape = (len(card.preprocessing.mean), *card.preprocessing.size)
    rng = np.random.default_rng(0)
    frames: dict[int, npt.NDArray[np.float32]] = {}

    def run(size: int) -> object:
        if size not in frames:
            frames[size] = rng.standard_normal((size, *shape), np.float32)
        return model.run({card.input: frames[size]})

    return run
