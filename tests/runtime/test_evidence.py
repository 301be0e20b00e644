"""The drift guard's bets: fair at the reference, rarely an alarm there, soon one above it."""

import itertools

import numpy as np
import pytest

from calibration.bounds import binomial_cdf
from runtime.evidence import ODDS, Evidence, bet, reserve

STREAMS, SAMPLES, ALPHA = 1_000, 20_000, 0.05


def first_alarms(rate, reference, *, samples, streams, seed):
    """Return at which sample each stream raises its alarm, `samples` where none is; i64 [streams].

    ``rate`` is a function of the sample's number.
    """
    rng = np.random.default_rng(seed)
    capital, first = np.zeros((streams, len(ODDS))), np.full(streams, samples)
    for number in range(samples):
        hits = (rng.random(streams) < rate(number)) & (first == samples)
        capital = bet(capital, hits, reference, stake=reserve(number) - reserve(number + 1))
        alarmed = capital.sum(-1) + reserve(number + 1) >= 1 / ALPHA
        first[alarmed & (first == samples)] = number
    return first


def check_drift_free(rate):
    first = first_alarms(lambda _: rate, rate, samples=SAMPLES, streams=STREAMS, seed=0)
    alarms = int((first < SAMPLES).sum())
    most = next(k for k in range(STREAMS) if binomial_cdf(k, STREAMS, ALPHA) >= 0.99)
    assert most == 67
    assert 5 <= alarms <= most  # some: else the bound would not be put to the test


def test_a_thousand_streams_without_drift_raise_no_more_alarms_than_alpha_allows():
    check_drift_free(0.03)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.4])
def test_the_same_for_other_rates(rate):
    check_drift_free(rate)


@pytest.mark.parametrize("reference", [0.05, 0.5])
def test_at_the_reference_the_capital_stays_one_in_the_mean(reference):
    mean = 0.0
    for hits in itertools.product([False, True], repeat=8):
        evidence = Evidence(1e-300)
        evidence.observe(np.array(hits), np.full(8, reference))
        chance = reference ** sum(hits) * (1 - reference) ** (8 - sum(hits))
        mean += chance * evidence.capital
    assert mean == pytest.approx(1, rel=1e-12)


def test_the_capital_is_that_of_all_odds_from_all_starting_points():
    rng = np.random.default_rng(5)
    hits, references = rng.random(23) < 0.3, rng.uniform(0.1, 0.3, 23)
    evidence = Evidence(1e-300)
    assert evidence.observe(hits, references) is None
    capital = reserve(23)
    for start in range(23):
        stake = (reserve(start) - reserve(start + 1)) / len(ODDS)
        for odds in ODDS:
            gains = np.where(hits, odds, 1) / (1 + (odds - 1) * references)
            capital += stake * gains[start:].prod()
    assert evidence.capital == pytest.approx(capital, rel=1e-12)


def test_it_stops_at_the_sample_that_raises_the_alarm():
    hits = np.random.default_rng(1).random(500) < 0.2
    evidence = Evidence(ALPHA)
    place = evidence.observe(hits, np.full(500, 0.05))
    assert evidence.capital >= 1 / ALPHA
    assert (evidence.samples, evidence.hits) == (place + 1, hits[: place + 1].sum())
    before = Evidence(ALPHA)
    assert before.observe(hits[:place], np.full(place, 0.05)) is None


def test_samples_may_come_in_any_portions():
    hits = np.random.default_rng(2).random(400) < 0.06
    whole, parts = Evidence(ALPHA), Evidence(ALPHA)
    whole.observe(hits, np.full(400, 0.05))
    for part in np.split(hits, [0, 1, 130, 399]):
        parts.observe(part, np.full(len(part), 0.05))
    assert (parts.samples, parts.capital) == (400, whole.capital)


def test_what_refutes_a_reference_refutes_every_lower_one():
    """So the references that are left are those above a lower confidence bound."""
    hits = np.random.default_rng(3).random(300) < 0.15
    capitals = []
    for reference in np.linspace(0.001, 0.9, 40):
        evidence = Evidence(1e-300)
        evidence.observe(hits, np.full(300, reference))
        capitals.append(evidence.capital)
    assert (np.diff(capitals) < 0).all()
    assert capitals[0] > 1e6 and capitals[-1] < 1


@pytest.mark.parametrize("quiet", [0, 3_000])
def test_a_drift_is_seen_soon_even_after_a_long_time_without(quiet):
    def rate(number):
        return 0.03 if number < quiet else 0.3

    first = first_alarms(rate, 0.04, samples=quiet + 100, streams=100, seed=4)
    assert (first < quiet).sum() <= 1
    assert np.median(first) < quiet + 60


def test_a_reference_of_zero_is_refuted_by_hits_alone():
    evidence = Evidence(ALPHA)
    assert evidence.observe(np.zeros(1000, bool), np.zeros(1000)) is None
    assert evidence.capital == pytest.approx(1)
    assert evidence.observe(np.ones(9, bool), np.zeros(9)) is not None
