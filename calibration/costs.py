"""What a cascade costs per sample: multiply-accumulates, or time or energy on this device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Unit = Literal["time", "macs", "joules"]
BySize = Mapping[int, float]
"""Seconds or joules of one batch, by its size."""


class Costs(Protocol):
    """The cost of single models and of cascades, per sample."""

    @property
    def unit(self) -> Unit:
        """What is counted: seconds, multiply-accumulates, or joules."""

    def alone(self, name: str) -> float:
        """Return the cost of a model that sees every sample."""

    def cascade(self, names: Sequence[str], rates: Floats) -> Floats:
        """Return the expected cost of stages.

        Parameters
        ----------
        rates
            f64 [..., gates], the share of all samples that each gate sends on; the result is
            f64 [...].
        """


@dataclass(frozen=True)
class MacCosts:
    """Multiply-accumulates, by model."""

    macs: Mapping[str, int]
    unit: Unit = "macs"

    def alone(self, name: str) -> float:
        """Return the model's own count."""
        return float(self.macs[name])

    def cascade(self, names: Sequence[str], rates: Floats) -> Floats:
        """Return the mean over samples."""
        first, *later = (float(self.macs[name]) for name in names)
        total: Floats = first + np.asarray(rates) @ np.array(later)
        return total


@dataclass(frozen=True)
class BatchCosts:
    """Seconds or joules of inference sessions, measured; gates and copies are not included.

    Attributes
    ----------
    by_size
        Per model what one batch costs by its size, up to ``batch``.
    batch
        Samples that enter the cascade together.
    padded
        Whether an engine takes only the measured sizes, so that fewer samples cost as much as the
        next of them. If not, what was not measured lies on a line.
    """

    by_size: Mapping[str, BySize]
    batch: int
    unit: Unit = "time"
    padded: bool = False

    def alone(self, name: str) -> float:
        """Return the cost per sample at the model's best batch size."""
        return min(cost / size for size, cost in self.by_size[name].items())

    def cascade(self, names: Sequence[str], rates: Floats) -> Floats:
        """Return the mean over the batch sizes that escalation gives, for independent samples.

        The first stage runs at the full batch, each later one at as many samples as reach it.
        """
        first, *later = names
        total = np.full(np.shape(rates)[:-1], self.by_size[first][self.batch])
        for name, rate in zip(later, np.moveaxis(np.asarray(rates), -1, 0), strict=True):
            total += binomial_mass(self.batch, rate) @ self._by_count(name)
        return total / self.batch

    def _by_count(self, name: str) -> Floats:
        """Return what 0 to ``batch`` samples cost."""
        sizes = sorted(self.by_size[name])
        costs = np.array([self.by_size[name][size] for size in sizes])
        counts = np.arange(self.batch + 1)
        if self.padded:
            return np.where(counts == 0, 0.0, costs[np.searchsorted(sizes, counts)])
        line: Floats = np.interp(counts, [0, *sizes], [0.0, *costs])
        return line


def binomial_mass(n: int, rate: npt.ArrayLike) -> Floats:
    """Return the probability of 0 to n escalated samples among n, f64 [..., n + 1]."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    share = np.asarray(rate, np.float64)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mass = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
        log_mass = log_mass + np.where(k > 0, k * np.log(share), 0.0)
        log_mass = log_mass + np.where(k < n, (n - k) * np.log1p(-share), 0.0)
    mass: Floats = np.exp(log_mass)
    return mass


def batch_sizes(batch: int) -> list[int]:
    """Return the sizes to measure: powers of two below ``batch``, and ``batch``."""
    return [*(1 << power for power in range(batch.bit_length()) if 1 << power < batch), batch]
