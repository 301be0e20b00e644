"""Certification on hand-made logits: what is decided, kept, hashed, refused and forecast."""

import hashlib

import numpy as np
import pytest

from calibration.bounds import METHODS, p_value, passes, smallest_passing_n
from calibration.certificates import (
    FORECAST_LABEL,
    certify,
    certify_cascade,
    certify_path,
    forecast,
    order_seed,
)
from calibration.errors import CalibrationError, CertificationRefused
from runtime.schema import Certificate, Score, ThresholdPath
from runtime.simulation import Simulation, cascade_answers
from tests.calibration.stage_logits import logits_of, random_cascade

CLAIM = {"epsilon": 0.01, "delta": 0.1, "method": "wsr"}


def points(*harms, n=2000):
    """Return one drops array per point, with that many harmed samples spread over all."""
    rows = np.zeros((len(harms), n), np.int8)
    for row, harm in zip(rows, harms, strict=True):
        row[np.linspace(0, n - 1, harm, dtype=int)] = 1
    return list(rows)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("harms", "expected"),
    [((0, 2, 300, 300), 1), ((0, 300), 0), ((0, 0, 2), 2), ((0,), 0), ((0, 300, 0, 0), 0)],
)
def test_path_ends_at_the_last_point_passed_before_the_first_failure(method, harms, expected):
    assert certify_path(points(*harms), epsilon=0.01, delta=0.1, method=method) == expected


def test_path_is_not_read_past_the_first_failure():
    taken = []

    def path():
        for index, point in enumerate(points(0, 1, 400, 0, 0)):
            taken.append(index)
            yield point

    assert certify_path(path(), **CLAIM) == 1
    assert taken == [0, 1, 2]


def test_points_with_the_drops_of_the_one_before_are_not_tested_again(monkeypatch):
    tested = []

    def watched(drops, **claim):
        tested.append(int(drops.sum()))
        return passes(drops, **claim)

    monkeypatch.setattr("calibration.certificates.passes", watched)
    path = points(0, 0, 2, 2, 0, 300, 300)
    assert certify_path(path, **CLAIM) == 4
    assert tested == [0, 2, 0, 300]


def test_path_may_hold_wide_integers_and_negative_drops():
    helped = np.zeros(2000, np.int32)
    helped[::10] = -1
    assert certify_path([helped, helped.astype(np.int64)], **CLAIM) == 1


def test_path_that_starts_too_low_is_refused_and_not_skipped():
    with pytest.raises(CertificationRefused, match="first point of the path does not pass wsr"):
        certify_path(points(300, 0, 0), **CLAIM)


def test_path_without_points_or_with_uneven_points_is_an_error():
    with pytest.raises(ValueError, match="at least one point"):
        certify_path([], **CLAIM)
    with pytest.raises(ValueError, match="expected 2000 samples at each point, got 1999"):
        certify_path([np.zeros(2000, np.int8), np.zeros(1999, np.int8)], **CLAIM)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 1, 100])
def test_refusal_names_the_smallest_n(method, n):
    smallest = smallest_passing_n(epsilon=0.01, delta=0.1, method=method)
    with pytest.raises(CalibrationError, match=rf"with n = {n}\. .* n that passes is {smallest}\."):
        certify_path([np.zeros(n, np.int8)], epsilon=0.01, delta=0.1, method=method)


def test_refusal_at_no_loss_forecasts_the_smallest_n_and_that_n_passes():
    with pytest.raises(CertificationRefused, match=r"about n = 248 would pass\.$"):
        certify_path([np.zeros(100, np.int8)], **CLAIM)
    assert certify_path([np.zeros(248, np.int8)], **CLAIM) == 0


def test_refusal_gives_the_observed_rates_and_a_forecast_marked_as_one():
    drops = points(16)[0]
    drops[[1, 501, 1001, 1501]] = -1
    with pytest.raises(CertificationRefused) as refusal:
        certify_path([drops], epsilon=0.01, delta=0.1, method="clopper_pearson")
    text = str(refusal.value)
    assert "Forecast at the rates observed there (harm 0.80%, help 0.20%), no certificate" in text
    n = int(text.split("about n = ")[1].split()[0])
    claim = {"epsilon": 0.01, "delta": 0.1, "method": "clopper_pearson"}
    assert passes(np.resize(drops, n), **claim) and not passes(np.resize(drops, n - 1), **claim)


def test_refusal_says_when_no_n_would_help():
    with pytest.raises(CertificationRefused, match="no n up to 1000000 would pass"):
        certify_path(points(50), **CLAIM)


def test_rows_with_nan_logits_escalate_and_do_not_stop_certification():
    (saver, large), labels = random_cascade(1500, stages=2)
    saver[::7] = np.nan
    large[3] = np.nan
    found = certify(saver, large, labels, **CLAIM, grid=[1.0, 0.0])
    answered = cascade_answers([saver, large], [0.0])
    assert answered.stage[::7].tolist() == [1] * len(answered.stage[::7])
    assert found.n == 1500


def test_certified_thresholds_are_rounded_to_float32():
    """Between 0.7 and float32(0.7) a score in float64 would be decided otherwise."""
    value = (float(np.float32(0.7)) + 0.7) / 2
    saver = np.log([[value, 1 - value]])
    found = certify(*[np.repeat(saver, 500, 0)] * 2, np.zeros(500, int), **CLAIM, grid=[1, 0.7])
    assert found.thresholds == (float(np.float32(0.7)),)
    assert found.escalation_rates == (0.0,)


@pytest.mark.parametrize(
    "grid", [[0.9, 1.0], [1.0, 0.5, 0.6], [1.2, 0.5], [0.5, -0.1], [], [[1.0]]]
)
def test_grid_that_rises_or_leaves_the_unit_interval_is_refused(grid):
    (saver, large), labels = random_cascade(40, stages=2)
    with pytest.raises(ValueError, match=r"path|grid|less than|greater than"):
        certify(saver, large, labels, **CLAIM, grid=grid)


def harmful_half(n=1000):
    """Surest half right, the other half harmed; both at known confidences."""
    confidence = np.where(np.arange(n) % 2, 0.95, 0.75)
    labels = np.arange(n) % 2
    return logits_of(np.ones(n, int), confidence), logits_of(labels, np.full(n, 0.9)), labels


@pytest.mark.parametrize("method", METHODS)
def test_certificate_keeps_the_last_threshold_that_passed(method):
    saver, large, labels = harmful_half()
    claim = {"epsilon": 0.02, "delta": 0.05, "method": method}
    found = certify(saver, large, labels, **claim, grid=[1.0, 0.9, 0.8, 0.7, 0.6])
    assert found == Certificate(
        quantity="accuracy_drop",
        **claim,
        n=1000,
        harm=0,
        help=0,
        thresholds=(float(np.float32(0.8)),),
        scores=(Score(),),
        path=ThresholdPath(explicit=((1.0,), (0.9,), (0.8,), (0.7,), (0.6,))),
        passed=2,
        order_seed=order_seed([saver, large], labels),
        escalation_rates=(0.5,),
    )
    assert found.threshold == np.float32(0.8)


def test_default_grid_stops_just_above_the_harm():
    saver, large, labels = harmful_half()
    found = certify(saver, large, labels, **CLAIM)
    assert found.path == ThresholdPath()
    assert 0.75 < found.threshold < 0.76
    assert found.threshold == found.path.vectors()[found.passed, 0]


def test_grid_that_starts_at_a_failing_point_is_refused():
    saver, large, labels = harmful_half()
    with pytest.raises(CertificationRefused, match=r"harm 50\.00%, help 0\.00%"):
        certify(saver, large, labels, **CLAIM, grid=[0.7, 0.6])
    assert certify(saver, large, labels, **CLAIM, grid=[0.9, 0.7]).passed == 0


def test_harm_and_help_are_counted_at_the_kept_threshold():
    n = 3000
    answers, labels = np.zeros(n, int), np.zeros(n, int)
    large_answers = np.zeros(n, int)
    labels[:3] = large_answers[:3] = 1
    large_answers[3:8] = 1
    saver = logits_of(answers, np.full(n, 0.9))
    large = logits_of(large_answers, np.full(n, 0.9))
    found = certify(saver, large, labels, **CLAIM, grid=[1.0, 0.5])
    assert (found.harm, found.help, found.passed) == (3, 5, 1)
    free = certify(saver, large, None, **CLAIM, grid=[1.0, 0.5])
    assert (free.harm, free.help, free.quantity) == (8, 0, "disagreement")


def test_certify_is_the_two_stage_case_of_certify_cascade():
    (saver, large), labels = random_cascade(1201, stages=2)
    two = certify(saver, large, labels, **CLAIM, score="margin", temperature=1.3)
    scores = [Score(name="margin", temperature=1.3)]
    path = ThresholdPath()
    assert two == certify_cascade([saver, large], labels, path, **CLAIM, scores=scores)
    assert two.passed > 0


@pytest.mark.parametrize("method", METHODS)
def test_three_stages_are_one_hypothesis_per_threshold_vector(method):
    """The walk, redone with a plain loop over the samples' own drops in the published order."""
    stages, labels = random_cascade(2003)
    path = ThresholdPath(offsets=(0.0, -0.7), start=5.0, stop=-1.0, points=25)
    claim = {"epsilon": 0.02, "delta": 0.1, "method": method}
    found = certify_cascade(stages, labels, path, **claim)
    order = np.random.default_rng(found.order_seed).permutation(2003)
    large_right = stages[-1].argmax(1) == labels
    outcome = []
    for thresholds in path.vectors():
        right = cascade_answers(stages, thresholds).label == labels
        drops = (large_right.astype(int) - right)[order]
        outcome.append(passes(drops, **claim))
    assert found.passed == outcome.index(False) - 1 > 0
    assert found.thresholds == tuple(path.vectors()[found.passed].tolist())
    _, stage = cascade_answers(stages, found.thresholds)
    assert found.escalation_rates == ((stage > 0).mean(), (stage > 1).mean())


def test_certificate_survives_json():
    stages, labels = random_cascade(1203)
    path = ThresholdPath(offsets=(0.0, 0.5), points=40)
    found = certify_cascade(stages, labels, path, **CLAIM)
    assert Certificate.model_validate_json(found.model_dump_json()) == found


def test_seed_is_the_first_8_bytes_of_the_hash_of_logits_and_labels():
    saver, large = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[0, 1], [1, 0], [2, 2]])
    labels = np.array([0, 1, 1])
    text = b"(3, 2)" + saver.tobytes() + b"(3, 2)" + large.tobytes()
    labelled = hashlib.sha256(text + b"(3,)" + labels.astype("<i4").tobytes()).digest()
    assert order_seed([saver, large], labels) == int.from_bytes(labelled[:8], "big")
    free = hashlib.sha256(text + b"unlabelled").digest()
    assert order_seed([saver, large], None) == int.from_bytes(free[:8], "big")


def test_seed_knows_values_and_order_but_not_memory_layout_or_width():
    stages, labels = random_cascade(101)
    seed = order_seed(stages, labels)
    wide = [np.asfortranarray(z.astype(np.float64)) for z in stages]
    assert order_seed(wide, labels.astype(np.uint8)) == seed
    changed = [z.copy() for z in stages]
    changed[1][50, 2] += 1e-3
    others = [
        order_seed(changed, labels),
        order_seed(stages[::-1], labels),
        order_seed(stages, labels[::-1]),
        order_seed([z[:100] for z in stages], labels[:100]),
        order_seed(stages, None),
    ]
    assert len({seed, *others}) == 6


def test_wsr_sees_the_samples_in_the_order_of_the_seed():
    """All harm stands at the end, where sorted data would let the capital grow first."""
    n = 3000
    labels = (np.arange(n) >= n - 60).astype(int)
    saver = logits_of(np.zeros(n, int), np.full(n, 0.9))
    large = logits_of(labels, np.full(n, 0.9))
    found = certify(saver, large, labels, **CLAIM, grid=[1.0, 0.5])
    as_stored = labels.astype(np.int8)
    assert p_value(as_stored, **CLAIM) <= 0.1
    assert found.passed == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"large_logits": np.zeros((39, 5))}, r"got \[40, 5\], \[39, 5\]"),
        ({"large_logits": np.zeros((40, 4))}, r"got \[40, 5\], \[40, 4\]"),
        ({"saver_logits": np.zeros(40), "large_logits": np.zeros(40)}, r"got \[40\], \[40\]"),
        ({"labels": np.zeros(39, int)}, r"labels: expected integers \[40\], got int64 \[39\]"),
        ({"labels": np.zeros(40)}, r"labels: expected integers \[40\], got float64"),
        ({"labels": np.full(40, 5)}, "labels: expected 0 to 4, got 5 to 5"),
        ({"labels": np.full(40, -1)}, "labels: expected 0 to 4, got -1 to -1"),
        ({"epsilon": 0.0}, "epsilon: expected a number in"),
        ({"delta": 1.0}, "delta: expected a number in"),
        ({"temperature": 0.0}, "temperature"),
        ({"score": "learned"}, "learned gate"),
        ({"method": "clt"}, "method: expected one of"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    (saver, large), labels = random_cascade(40, stages=2)
    arguments = {"saver_logits": saver, "large_logits": large, "labels": labels, **CLAIM, **change}
    with pytest.raises(ValueError, match=message):
        certify(**arguments)


def test_scores_and_thresholds_must_be_one_per_gate():
    stages, labels = random_cascade(40)
    with pytest.raises(ValueError, match="scores: expected 2, one per gate, got 1"):
        certify_cascade(stages, labels, ThresholdPath(), **CLAIM, scores=[Score()])
    with pytest.raises(ValueError, match="thresholds: expected 2 in"):
        certify_cascade(stages, labels, ThresholdPath(), **CLAIM)
    with pytest.raises(ValueError, match="thresholds: expected 2 in"):
        cascade_answers(stages, (0.5, np.nan))
    with pytest.raises(ValueError, match=r"for two stages or more, got \[40, 5\]"):
        cascade_answers(stages[:1], ())
    learned = [Score(name="learned", output="score"), Score()]
    with pytest.raises(ValueError, match="gate 0 has the score learned, got none"):
        cascade_answers(stages, (0.5, 0.5), learned)


def test_no_samples_are_refused_with_the_smallest_n():
    empty = np.zeros((0, 5), np.float32)
    with pytest.raises(CertificationRefused, match=r"n = 0\. .* smallest n that passes is 248"):
        certify(empty, empty, np.zeros(0, int), **CLAIM)


def test_forecast_gives_quantiles_of_walks_on_resampled_columns():
    stages, labels = random_cascade(901)
    path = ThresholdPath(offsets=(0.0, -0.5), start=5.0, stop=-2.0, points=300)
    claim = {"epsilon": 0.02, "delta": 0.1, "method": "wsr"}
    found = forecast(stages, labels, path, n=1999, draws=15, seed=4, **claim)
    rng = np.random.default_rng(4)
    simulation = Simulation(stages, labels)
    vectors = path.vectors()
    passed = []
    for _ in range(15):
        columns = rng.integers(0, 901, 1999)
        walk = (simulation.drops(vector)[columns] for vector in vectors)
        passed.append(certify_path(walk, **claim))
    passed.sort()
    assert found.passed == (passed[1], passed[7], passed[13])
    assert passed[1] < passed[13]
    assert found.thresholds == tuple(tuple(vectors[k].tolist()) for k in found.passed)
    assert found.escalation_rates[1] == simulation.escalation_rates(vectors[passed[7]])
    assert (found.n, found.draws, found.refused, found.levels) == (1999, 15, 0, (0.1, 0.5, 0.9))


def test_forecast_is_labelled_as_an_estimate_and_is_no_certificate():
    stages, labels = random_cascade(300, stages=2)
    path = ThresholdPath(points=5)
    found = forecast(stages, labels, path, n=400, draws=2, seed=1, **CLAIM)
    assert found.label == FORECAST_LABEL == "selection estimate, not certified"
    assert not isinstance(found, Certificate)


def test_forecast_depends_on_the_seed_alone():
    stages, labels = random_cascade(700, stages=2)
    arguments = {"n": 1000, "draws": 9, "epsilon": 0.02, "delta": 0.1, "method": "clopper_pearson"}
    runs = [forecast(stages, labels, ThresholdPath(), seed=s, **arguments) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_forecast_counts_refused_draws_and_is_refused_when_all_are():
    n = 1000
    labels = (np.arange(n) % 100 == 0).astype(int)
    saver = logits_of(np.zeros(n, int), np.full(n, 0.9))
    large = logits_of(labels, np.full(n, 0.9))
    low = ThresholdPath(explicit=((0.5,),))
    claim = {"epsilon": 0.015, "delta": 0.1, "method": "harm_only"}
    some = forecast([saver, large], labels, low, n=1500, draws=40, **claim)
    assert 0 < some.refused < 40
    with pytest.raises(CertificationRefused, match="with n = 50"):
        forecast([saver, large], labels, low, n=50, draws=3, **claim)


def test_forecast_without_samples_or_draws_is_an_error():
    stages, labels = random_cascade(9, stages=2)
    with pytest.raises(ValueError, match="all need >= 1"):
        forecast([z[:0] for z in stages], labels[:0], ThresholdPath(), n=9, **CLAIM)
    with pytest.raises(ValueError, match="all need >= 1"):
        forecast(stages, labels, ThresholdPath(), n=9, draws=0, **CLAIM)
