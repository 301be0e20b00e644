"""Evidence that a rate lies above its reference, at any time of an endless stream.

A player bets on each sample that the rate of hits is above the reference r. A bet with odds c > 1
multiplies the player's capital by c / (1 + (c - 1) r) on a hit and by 1 / (1 + (c - 1) r) on a
miss: its mean is at most 1 while the rate is at most r. The capital is spread over several odds and
over all samples as starting points, so that a drift that begins late is seen about as soon as one
at the start; what has not been staked yet counts as well. Such a capital is a supermartingale that
begins at 1, so that by Ville's inequality it ever reaches 1 / alpha with a probability of at most
alpha (the construction is that of Waudby-Smith & Ramdas, arXiv 2010.09686).

Equivalently: the references that no capital has yet refuted are those above a lower confidence
bound of the rate, which holds at all times at once, and the alarm comes when this bound exceeds r.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]

ODDS: Floats = 1 + np.exp2(np.arange(-3.0, 7.0))
"""From a rate 12 % above the reference to 65 times its odds."""


def reserve(samples: int) -> float:
    """Return the share of the capital that is not staked yet after so many samples.

    It falls so slowly that sample n still gets a stake of about 1 / (n ln(n)^2).
    """
    return 1 / (1 + math.log1p(samples))


def bet(capital: Floats, hits: Hits, reference: float | Floats, *, stake: float) -> Floats:
    """Return the capital after one more sample of each stream.

    Parameters
    ----------
    capital
        f64 [..., odds].
    hits, reference
        [...], the sample, and the rate that it is bet against.
    stake
        What is newly staked on this and all later samples, spread over the odds.
    """
    fair = 1 + (ODDS - 1) * np.asarray(reference)[..., None]
    gain: Floats = np.where(hits[..., None], ODDS, 1.0) / fair
    now: Floats = (capital + stake / len(ODDS)) * gain
    return now


class Evidence:
    """One player's capital; see the module.

    Attributes
    ----------
    samples, hits
        Seen so far.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.samples = 0
        self.hits = 0
        self._capital: Floats = np.zeros(len(ODDS))

    @property
    def capital(self) -> float:
        """What the player has; 1 at the start, 1 / alpha is the alarm."""
        return float(self._capital.sum()) + reserve(self.samples)

    def observe(self, hits: Hits, references: Floats) -> int | None:
        """Bet on samples in the order of the stream, up to the alarm.

        Parameters
        ----------
        hits, references
            [n], the samples and the rates in [0, 1) that they are bet against.

        Returns
        -------
        int or None
            Index of the sample at which the capital reached 1 / alpha; none after it is looked at.
        """
        for index, (hit, reference) in enumerate(zip(hits, references, strict=True)):
            stake = reserve(self.samples) - reserve(self.samples + 1)
            self._capital = bet(self._capital, hit, reference, stake=stake)
            self.samples += 1
            self.hits += int(hit)
            if self.capital >= 1 / self.alpha:
                return index
        return None
