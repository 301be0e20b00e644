"""How long a drift guard takes: streams drawn from images whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.evidence import ODDS, bet, reserve

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Streams:
    """What is tried: many streams of drawn images, quiet at first.

    Attributes
    ----------
    quiet, samples
        Drawn images before the drift, and after it at most.
    count
        Of streams.
    """

    quiet: int
    samples: int
    count: int


def delays(
    hits: Hits, clean: Hits, reference: float, *, alpha: float, streams: Streams, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Return after how many drawn images of a drift each stream raises its alarm, f64 [count].

    Each stream draws with replacement, as a guard draws from a camera. It is inf where there is no
    alarm within ``samples``, and NaN where there was one before the drift.

    Parameters
    ----------
    hits, clean
        [n], which images an earlier stage answers, and otherwise than the last one would: under
        the drift, and before it.
    reference
        With the guard's tolerance.
    """
    rng = np.random.default_rng(seed)
    capital = np.zeros((streams.count, len(ODDS)))
    found = np.full(streams.count, np.inf)
    for number in range(streams.quiet + streams.samples):
        source = clean if number < streams.quiet else hits
        drawn = source[rng.integers(0, len(source), streams.count)] & np.isinf(found)
        stake = reserve(number) - reserve(number + 1)
        capital = bet(capital, drawn, reference, stake=stake)
        alarmed = capital.sum(-1) + reserve(number + 1) >= 1 / alpha
        after = number + 1 - streams.quiet
        found[alarmed & np.isinf(found)] = after if after > 0 else np.nan
        if not np.isinf(found).any():
            break
    return found


def images_seen(
    drawn: npt.NDArray[np.float64], share: float, *, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Return how many images of the camera go by until so many of them are drawn.

    Parameters
    ----------
    drawn
        f64 [count], from `delays`; what is not finite stays.
    share
        That the guard draws.
    """
    rng = np.random.default_rng(seed)
    seen: npt.NDArray[np.float64] = drawn.copy()
    finite = np.isfinite(drawn)
    seen[finite] += rng.negative_binomial(drawn[finite].astype(np.int64), share)
    return seen
