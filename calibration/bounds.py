"""Exact tests of "the mean drop is at most epsilon" on samples in {-1, 0, 1}.

A drop ``D_i`` is 1 where a cascade harms sample i (the large model alone is right, the cascade
wrong), -1 where it helps, else 0. The null hypothesis is ``E[D] > epsilon``; a rejection
("passes") is wrong with probability at most delta. One method is chosen before the data are seen:
the smallest p-value of several is not a p-value.

``harm_only``
    Binomial test of the harm rate; ignores help, so it is the safest and the most conservative.
``clopper_pearson``
    Exact upper bound of the harm rate minus exact lower bound of the help rate, at delta / 2 each.
``wsr``
    Betting on the mean in sample order (Waudby-Smith & Ramdas, arXiv 2010.09686), the tightest.
    The samples must stand in an order chosen without looking at them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Drops = npt.NDArray[np.integer[Any]]
Method = Literal["wsr", "clopper_pearson", "harm_only"]

METHODS: tuple[Method, ...] = ("wsr", "clopper_pearson", "harm_only")

# Halving [0, 1] this often leaves an interval below one float64 step of any number above 0.1.
_HALVINGS = 56
# Never stake more than this share of the capital on one sample, so that none can lose it all.
_LARGEST_STAKE = 0.999
# Of `nested_upper`, one for each size a rate may have: with n samples, rates that are small by
# chance are about 1 / sqrt(count) below the truth.
_STAKES = _LARGEST_STAKE / 2.0 ** np.arange(8)
LARGEST_FORECAST = 1_000_000
"""`n_at_rates` looks no further."""


class Counts(NamedTuple):
    """How many of ``n`` samples a cascade harms and helps."""

    harm: int
    help: int
    n: int


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return ``P(Bin(n, p) <= k)``, accurate to about 1e-13 relative to the smaller tail.

    Raises
    ------
    ValueError
        When ``n`` is negative or ``p`` is outside [0, 1].
    """
    if n < 0 or not 0 <= p <= 1:
        raise ValueError(f"binomial: expected n >= 0 and p in [0, 1], got n={n}, p={p}")
    if k < 0:
        return 0.0
    if k >= n or p == 0:
        return 1.0
    if p == 1:
        return 0.0
    if k <= n * p:
        return _lower_tail(k, n, p, 1 - p)
    return 1 - _lower_tail(n - k - 1, n, 1 - p, p)


@functools.lru_cache(maxsize=1 << 16)
def clopper_pearson_upper(k: int, n: int, alpha: float) -> float:
    """Return the exact upper bound of a rate, from ``k`` of ``n``, that fails with chance alpha.

    It is the p at which ``P(Bin(n, p) <= k) = alpha``; 1 when ``k = n``.
    """
    _check_counts(k, n)
    _check_level("alpha", alpha)
    if k == n:
        return 1.0
    return _bisect(lambda p: binomial_cdf(k, n, p) <= alpha)


def clopper_pearson_lower(k: int, n: int, alpha: float) -> float:
    """Return the exact lower bound of a rate, from ``k`` of ``n``, that fails with chance alpha.

    It is the p at which ``P(Bin(n, p) >= k) = alpha``; 0 when ``k = 0``.
    """
    _check_counts(k, n)
    return 1 - clopper_pearson_upper(n - k, n, alpha)


def nested_upper(k: int, n: int, alpha: float) -> float:
    """Return the upper bound of a rate that holds for all rates of a nested family at once.

    A family is nested when no sample that counts at one member does not count at the one before
    it, as samples that a gate sends on while its threshold falls. With probability at least
    ``1 - alpha``, no rate of the family exceeds the bound made of its own count ``k`` of ``n``; so
    one may be looked at that the same samples chose.

    From the smallest rate to the greatest, the likelihood ratio ``(1-c)^k ((1-(1-c)p) /
    (1-p))^(n-k)`` of "rates are 1-c times what is said" is a martingale that begins at 1: given
    ``k`` samples at rate p, each of the others joins until rate p' with chance ``(p'-p)/(1-p)``. So
    is a mixture over fixed c, and by Ville's inequality the chance that it ever reaches ``1/alpha``
    is at most alpha (the method of mixtures: Robbins 1970; Howard et al., arXiv 1810.08240). The
    bound is the p at which the mixture, which rises in p, does.
    """
    _check_counts(k, n)
    _check_level("alpha", alpha)
    if k == n:
        return 1.0
    needed = math.log(len(_STAKES) / alpha)

    def excluded(p: float) -> bool:
        if p == 1:
            return True
        odds = np.log1p(-(1 - _STAKES) * p) - math.log1p(-p)
        return float(np.logaddexp.reduce(k * np.log1p(-_STAKES) + (n - k) * odds)) >= needed

    return _bisect(excluded)


def counts(drops: Drops) -> Counts:
    """Return how many entries of ``drops`` i8 or i32 [n] are 1 and -1, and n.

    Raises
    ------
    ValueError
        When ``drops`` is not one row of integers in {-1, 0, 1}.
    """
    d = np.asarray(drops)
    if d.ndim != 1 or d.dtype.kind != "i":
        raise ValueError(f"drops: expected signed integers [n], got {d.dtype} {list(d.shape)}")
    if len(d) and (d.min() < -1 or d.max() > 1):
        raise ValueError(f"drops: expected -1, 0 or 1, got {d.min()} to {d.max()}")
    return Counts(int((d == 1).sum()), int((d == -1).sum()), len(d))


def passes(drops: Drops, *, epsilon: float, delta: float, method: Method) -> bool:
    """Return whether the test rejects "the mean drop exceeds epsilon" at level delta.

    Parameters
    ----------
    drops
        i8 or i32 [n] in {-1, 0, 1}, in an order chosen without looking at them.

    Raises
    ------
    ValueError
        For an epsilon or delta outside (0, 1), an unknown method, or other values in ``drops``.
    """
    if method == "clopper_pearson":
        _check_claim(epsilon, delta, method)
        return _gap_upper(counts(drops), delta) <= epsilon
    return p_value(drops, epsilon=epsilon, delta=delta, method=method) <= delta


def p_value(drops: Drops, *, epsilon: float, delta: float, method: Method) -> float:
    """Return a p-value of "the mean drop exceeds epsilon".

    For ``wsr`` it depends on ``delta``, which sets the stakes, and is meant to be compared with
    that delta alone. For ``clopper_pearson`` it is the smallest level at which the bound is at most
    epsilon. Parameters and errors are those of `passes`.
    """
    _check_claim(epsilon, delta, method)
    seen = counts(drops)
    if method == "harm_only":
        return binomial_cdf(seen.harm, seen.n, epsilon)
    if method == "clopper_pearson":
        return _bisect(lambda level: _gap_upper(seen, level) <= epsilon)
    return _wsr_p_value(drops, epsilon, delta)


def smallest_passing_n(*, epsilon: float, delta: float, method: Method) -> int:
    """Return the smallest n that passes with no loss at all; every larger n then passes too.

    No loss means all drops are 0. That larger n pass is plain for the two binomial methods. For
    ``wsr`` the log capital is ``S(n) = sum_i h(i/n)`` with h concave, rising and ``h(0) = 0``, so
    ``S(n+1) >= n/(n+1) S(n) + h(1) >= S(n)``.
    """
    _check_claim(epsilon, delta, method)

    def enough(n: int) -> bool:
        return passes(np.zeros(n, np.int8), epsilon=epsilon, delta=delta, method=method)

    high = 1
    while not enough(high):
        high *= 2
    return _first(enough, high // 2, high)


def n_at_rates(drops: Drops, *, epsilon: float, delta: float, method: Method) -> int | None:
    """Return about which n would pass at the rates of ``drops`` [n >= 1]: a forecast, no bound.

    The samples are repeated in their order. None when the observed loss is not below epsilon, or
    when n would be beyond `LARGEST_FORECAST`.
    """
    seen = counts(drops)
    loss = seen.harm if method == "harm_only" else seen.harm - seen.help
    if loss >= epsilon * seen.n:
        return None

    def enough(n: int) -> bool:
        return passes(np.resize(drops, n), epsilon=epsilon, delta=delta, method=method)

    low, high = 0, seen.n
    while not enough(high):
        if 2 * high > LARGEST_FORECAST:
            return None
        low, high = high, 2 * high
    return _first(enough, low, high)


def _first(enough: Callable[[int], bool], low: int, high: int) -> int:
    """Return an n in (low, high] that is enough while n - 1 is not; low is not, high is."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _gap_upper(seen: Counts, delta: float) -> float:
    """Upper bound of the harm rate minus the help rate, each at delta / 2."""
    upper = clopper_pearson_upper(seen.harm, seen.n, delta / 2)
    return upper - clopper_pearson_lower(seen.help, seen.n, delta / 2)


def _wsr_p_value(drops: Drops, epsilon: float, delta: float) -> float:
    n = len(drops)
    if n == 0:
        return 1.0
    x = (np.asarray(drops, np.float64) + 1) / 2
    m = (epsilon + 1) / 2
    seen = np.arange(2.0, n + 2)
    mean = (0.5 + np.cumsum(x)) / seen
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / seen
    # A stake may use only the samples before its own: Ville's inequality rests on that.
    before = np.concatenate(([0.25], variance[:-1]))
    stake = np.minimum(np.sqrt(2 * math.log(1 / delta) / (n * before)), _LARGEST_STAKE / (1 - m))
    log_capital = np.cumsum(np.log1p(-stake * (x - m)))
    return math.exp(-max(0.0, float(log_capital.max())))


def _bisect(holds: Callable[[float], bool]) -> float:
    """Return the smallest number in [0, 1] from which on ``holds`` is true, rounded up."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _lower_tail(k: int, n: int, p: float, q: float) -> float:
    """``P(Bin(n, p) <= k)`` for ``0 <= k <= n p``: pmf(k) times a sum of falling ratios.

    Both p and ``q = 1 - p`` are arguments, because the smaller of them must be exact.
    """
    # Ratios fall at least as a normal tail does: past 12 deviations nothing is left in float64.
    terms = min(k, 50 + int(12 * math.sqrt(n * p * q)))
    j = np.arange(k, k - terms, -1.0)
    ratios = j * q / ((n - j + 1) * p)
    return _pmf(k, n, p, q) * (1 + float(np.cumprod(ratios).sum()))


def _pmf(k: int, n: int, p: float, q: float) -> float:
    """Binomial mass for ``0 <= k < n`` by Loader's saddle-point form; lgamma loses digits in n."""
    if k == 0:
        return math.exp(n * (math.log1p(-p) if p < q else math.log(q)))
    correction = _stirling_error(n) - _stirling_error(k) - _stirling_error(n - k)
    exponent = correction - _deviance(k, n * p) - _deviance(n - k, n * q)
    return math.exp(exponent) * math.sqrt(n / (2 * math.pi * k * (n - k)))


def _stirling_error(n: int) -> float:
    """``ln n!`` minus Stirling's formula."""
    if n <= 15:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2 * math.pi)
    square = n * n
    return (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 / square) / square) / square) / n


def _deviance(x: float, mean: float) -> float:
    """``x ln(x / mean) + mean - x``, without cancellation where x is near the mean."""
    relative = (x - mean) / mean
    if abs(relative) > 0.1:
        return x * math.log(x / mean) + mean - x
    return mean * ((1 + relative) * math.log1p(relative) - relative)


def _check_counts(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"counts: expected 0 <= k <= n, got k={k}, n={n}")


def _check_level(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a number in (0, 1), got {value}")


def _check_claim(epsilon: float, delta: float, method: Method) -> None:
    _check_level("epsilon", epsilon)
    _check_level("delta", delta)
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
