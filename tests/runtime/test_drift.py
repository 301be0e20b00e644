"""The drift guard: what it draws, what it changes, and what an alarm does.

Most cascades here are scripted: pixel 0 of a frame is the answer of an early stage, pixel 1 that of
the last, pixel 2 the early stage's confidence times 255.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from runtime.drift import Account, DriftGuard, Watch, references_of, shadow_macs
from runtime.errors import InputError
from runtime.host import Finished
from tests.runtime.certified import KEY, certified

FORMS = ("fp32", "fp32")
GEARS = [[0.9], [0.7]]
ALL = Watch(share=1.0, tolerance=0.0, batch=8)


class Scripted:
    """An executor of two stages whose answers are written in the frames."""

    engine = "scripted"
    batch = 64

    def __init__(self):
        self.forced = []

    def borrow(self, frames):
        return np.asarray(frames)

    def copy_rows(self, frames, rows):
        return frames[rows]

    def submit(self, frames, thresholds, out, *, force=None):
        pixels = frames.reshape(len(frames), -1)
        confidence = np.float32(pixels[:, 2] / 255)
        on = confidence <= thresholds[0]
        if force is not None:
            on |= force[0] != 0
            self.forced.append(frames.copy())
        out[0][:] = np.where(on, pixels[:, 1], pixels[:, 0])
        out[1][:], out[2][:] = confidence, on
        return Finished()

    def stage_logits(self, frames):
        raise NotImplementedError

    def close(self):
        pass


def frames_of(early, last, confidence=204):
    """Return frames u8 [n, 2, 2, 1]; all arguments are numbers or [n]."""
    columns = np.broadcast_arrays(early, last, confidence, 0)
    return np.stack(columns, 1).astype(np.uint8).reshape(-1, 2, 2, 1)


def unlike(n, share, *, seed=0, confidence=204):
    """Return frames of which a share gets two different answers."""
    early = (np.random.default_rng(seed).random(n) < share).astype(int)
    return frames_of(early, 0, confidence)


@pytest.fixture
def scripted(make_bundle):
    """A scripted cascade with gears at 0.5, 0.7, 0.9 and 1."""
    settings = {KEY: {"thresholds": [0.5], "gears": GEARS}}
    bundle = load_bundle(make_bundle("echo", "negated", settings=settings))
    return Cascade(bundle, Scripted(), FORMS, batch=64)


def guard_of(cascade, watch=ALL, references=(0.05,) * 3):
    return DriftGuard(cascade, watch, references=references)


def test_the_answers_are_those_of_the_cascade_alone(scripted):
    frames = unlike(300, 0.2, confidence=np.random.default_rng(1).integers(0, 256, 300))
    expected = scripted.run(frames)
    guard = guard_of(scripted, references=[0.9] * 3)
    results = guard.run(frames)
    for name in ("label", "confidence", "stage"):
        assert getattr(results, name).tolist() == getattr(expected, name).tolist()
    assert guard.account.unlike > 0 and guard.alarms == []


def test_all_that_is_drawn_counts_and_only_the_accepted_reach_the_last_stage(scripted):
    rng = np.random.default_rng(2)
    (early, last), confidence = rng.integers(0, 2, (2, 500)), rng.integers(0, 256, 500)
    frames = frames_of(early, last, confidence)
    guard = guard_of(scripted, references=[0.99] * 3)
    for part in np.split(frames, 10):
        guard.run(part)
    guard.flush()
    accepted = np.float32(confidence / 255) > 0.5
    wrong = accepted & (early != last)
    assert guard.account == Account(500, 500, accepted.sum(), wrong.sum())
    put = np.concatenate(scripted.executor.forced)
    assert put.tolist() == frames[accepted].tolist()


def test_which_samples_are_drawn_depends_on_the_seed_and_not_on_what_they_show(scripted):
    def drawn(content, seed):
        """Return the places of those that reach the last stage; pixel 3 is a frame's place."""
        guard = guard_of(scripted, Watch(share=0.2, batch=1, seed=seed), [0.99] * 3)
        scripted.executor.forced.clear()
        for _ in range(3):
            frames = frames_of(content, content)
            frames[:, 1, 1, 0] = np.arange(200)
            guard.run(frames)
        return [frames[:, 1, 1, 0].tolist() for frames in scripted.executor.forced]

    first = drawn(np.zeros(200), seed=7)
    assert first == drawn(np.random.default_rng(0).integers(0, 256, 200), seed=7)
    assert first != drawn(np.zeros(200), seed=8)
    assert 80 <= sum(map(len, first)) <= 160


def test_without_drift_there_is_no_alarm(scripted):
    guard = guard_of(scripted)
    for seed in range(20):
        guard.run(unlike(100, 0.04, seed=seed))
    assert guard.alarms == [] and scripted.gear == 0
    assert 0.02 < guard.account.unlike / guard.account.drawn < 0.06


def test_an_alarm_raises_the_gear_and_begins_anew_at_half_alpha(scripted, caplog):
    guard = guard_of(scripted, references=(0.05, 0.1, 0.9))
    results = guard.run(unlike(200, 0.5, confidence=243))
    assert (results.gear, len(guard.alarms)) == (0, 1)
    alarm = guard.alarms[0]
    assert (alarm.number, alarm.gear, alarm.lowest, alarm.alpha) == (1, 0, 1, 0.05)
    assert alarm.reference == 0.05 and 0 < alarm.unlike <= alarm.samples < 40
    assert scripted.gear == 1 and scripted.shift(0) == 1
    assert str(alarm) in caplog.text and "may not hold for these images" in str(alarm)
    assert "Gear 1 is the lowest from now on" in str(alarm)
    results = guard.run(unlike(200, 0.5, seed=1, confidence=243))
    assert results.gear == 1
    assert [(a.gear, a.lowest, a.alpha) for a in guard.alarms] == [(0, 1, 0.05), (1, 2, 0.025)]
    assert guard.alarms[1].reference == 0.1 and guard.alarms[1].samples < 200
    for seed in range(5):
        assert guard.run(unlike(200, 0.5, seed=seed)).gear == 2
    assert len(guard.alarms) == 2  # the reference of gear 2 is 0.9


def test_each_alarm_halves_alpha_and_at_the_highest_gear_it_only_reports(scripted):
    guard = guard_of(scripted)
    scripted.shift(2)
    for seed in range(30):
        guard.run(unlike(64, 0.9, seed=seed, confidence=255))
    assert [alarm.alpha for alarm in guard.alarms] == [
        0.05 / 2**j for j in range(len(guard.alarms))
    ]
    assert [alarm.gear for alarm in guard.alarms[:1]] == [2]
    assert guard.alarms[0].lowest == scripted.gear == 3
    assert len(guard.alarms) == 1  # everything escalates there, so nothing can be unlike


def test_without_gears_an_alarm_leaves_the_answers_to_the_last_stage(make_bundle):
    bundle = load_bundle(make_bundle("echo", "negated", thresholds=[0.5]))
    cascade = Cascade(bundle, Scripted(), FORMS, batch=64)
    guard = guard_of(cascade, references=[0.05])
    for seed in range(20):
        results = guard.run(unlike(64, 0.9, seed=seed))
    assert [(alarm.gear, alarm.lowest) for alarm in guard.alarms] == [(0, 1)]
    assert cascade.gears[cascade.gear] == (1.0,) and (results.stage == 1).all()


def test_a_batch_that_was_under_way_at_an_alarm_does_not_count_for_the_next_gear(scripted):
    guard = guard_of(scripted, references=(0.05, 0.05, 0.05))
    pending = [guard.submit(unlike(64, 1.0, seed=seed, confidence=250)) for seed in range(3)]
    for item in pending:
        assert item.done() and item.result().gear == 0
    assert len(guard.alarms) == 1
    assert guard.account.drawn == 64
    guard.flush()
    assert guard._evidence.samples == 0


def test_results_are_seen_once_however_often_they_are_asked_for(scripted):
    guard = guard_of(scripted)
    pending = guard.submit(unlike(40, 0.0))
    assert pending.result() is pending.result()
    assert guard.account.images == 40


def test_frames_may_be_changed_once_they_are_submitted(scripted):
    guard = guard_of(scripted)
    frames = unlike(40, 0.0)
    pending = guard.submit(frames)
    frames[:] = 77
    pending.result()
    assert guard.account == Account(40, 40, 40, 0)


def test_shadows_wait_until_a_batch_of_them_has_come_together(scripted):
    guard = guard_of(scripted, Watch(share=1.0, batch=30))
    calls = []
    for _ in range(4):
        guard.run(unlike(20, 0.0))
        calls.append(len(scripted.executor.forced))
    assert calls == [0, 1, 1, 2]
    guard.run(unlike(3, 0.0))
    guard.flush()
    guard.flush()
    assert [len(frames) for frames in scripted.executor.forced] == [40, 40, 3]


def test_what_is_not_accepted_is_bet_on_without_the_last_stage(scripted):
    guard = guard_of(scripted)
    guard.run(unlike(50, 1.0, confidence=10))
    assert guard.account == Account(50, 50, 0, 0)
    assert scripted.executor.forced == []
    assert guard._evidence.samples == 50


def test_thresholds_of_the_caller_are_not_watched(scripted):
    guard = guard_of(scripted)
    scripted.thresholds = [0.3]
    for seed in range(5):
        guard.run(unlike(64, 1.0, seed=seed))
    assert guard.alarms == [] and guard.account == Account(images=320)


def test_a_gear_by_load_is_compared_with_its_own_reference(scripted):
    guard = guard_of(scripted, references=(0.99, 0.99, 0.05))
    for gear in (0, 1):
        scripted.shift(gear)
        guard.run(unlike(64, 1.0, confidence=250))
    assert guard.alarms == []
    scripted.shift(2)
    guard.run(unlike(64, 1.0, confidence=250))
    assert [(alarm.gear, alarm.lowest) for alarm in guard.alarms] == [(2, 3)]


def test_the_tolerance_is_added_to_every_reference(scripted):
    frames = [unlike(100, 0.3, seed=seed) for seed in range(5)]
    tolerant = guard_of(scripted, Watch(share=1.0, tolerance=0.3, batch=8))
    for part in frames:
        tolerant.run(part)
    assert tolerant.alarms == []
    strict = guard_of(scripted)
    strict.run(frames[0])
    assert len(strict.alarms) == 1


def test_a_stream_is_watched_in_its_order(scripted):
    batches = [unlike(n, 0.1, seed=n) for n in (5, 0, 1, 60, 7)]
    expected = [scripted.run(frames).label.tolist() for frames in batches]
    guard = guard_of(scripted, references=[0.9] * 3)
    assert [results.label.tolist() for results in guard.stream(batches)] == expected
    guard.flush()
    assert (guard.account.images, guard.account.drawn) == (73, 73)


def test_frames_of_several_sizes_are_watched(make_bundle):
    folder = make_bundle(
        "echo", "negated", input={"shape": [0, 0, 1], "colour": "grey"}, thresholds=[0.3]
    )
    rng = np.random.default_rng(0)
    with Cascade.load(folder, threads=1) as cascade:
        guard = guard_of(cascade, Watch(share=1.0, batch=50), [0.99])
        shapes = [(2, 2), (2, 2), (4, 3), (2, 2), (5, 2), (4, 3)]
        batches = [rng.integers(0, 9, (11, *shape, 1)).astype(np.uint8) for shape in shapes]
        answers = [guard.run(frames) for frames in batches]
        guard.flush()
        expected = sum(
            int((a.label != cascade.run(f, force=np.ones(11, np.uint8)).label).sum())
            for a, f in zip(answers, batches, strict=True)
        )
    assert guard.account.unlike == expected > 0


def test_the_middle_of_three_stages_is_watched_as_well(make_bundle, random_frames):
    frames = random_frames(300, seed=3)
    folder = make_bundle("echo", "negated", "echo", thresholds=[0.9, 0.5])
    content = json.loads((folder / "cascade.json").read_text())
    content["stages"][2]["name"] = "last"
    (folder / "cascade.json").write_text(json.dumps(content))
    with Cascade.load(folder, threads=1) as cascade:
        alone = cascade.run(frames, force=np.ones(300, np.uint8)).label
        guard = guard_of(cascade, Watch(share=1.0), [0.99])
        results = guard.run(frames)
        guard.flush()
    assert {0, 1, 2} == set(results.stage)
    assert guard.account.shadowed == (results.stage < 2).sum()
    wrong = results.label != alone
    assert guard.account.unlike == wrong.sum() > 0
    assert (results.stage[wrong] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share: expected above 0, at most 1, got 0.0"),
        ({"share": 1.1}, "share: expected above 0, at most 1, got 1.1"),
        ({"share": float("nan")}, "share: expected"),
        ({"alpha": 0.0}, "alpha: expected between 0 and 1, got 0.0"),
        ({"alpha": 1.0}, "alpha: expected between 0 and 1, got 1.0"),
        ({"tolerance": -0.1}, "tolerance: expected from 0"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
    ],
)
def test_a_watch_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(InputError, match=f"drift guard: {message}"):
        Watch(**options)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([], "3, one per gear but the highest, got 0"),
        ([0.1] * 4, "3, one per gear but the highest, got 4"),
        ([0.1, 0.1, 1.0], "shares that stay below 1"),
        ([0.1, -0.1, 0.1], "shares that stay below 1"),
        ([0.1, float("nan"), 0.1], "shares that stay below 1"),
    ],
)
def test_references_that_do_not_fit_are_refused(scripted, references, message):
    with pytest.raises(InputError, match=f"drift guard: references: expected {message}"):
        guard_of(scripted, references=references)


@pytest.fixture
def content(cascade_json):
    """A certified cascade."""
    described = cascade_json("echo", "negated", thresholds=[0.75])
    return certified(described, gears=[[0.96875], [0.875]])


def test_a_guard_without_any_reference_is_refused_with_what_to_do(scripted, content, write_bundle):
    with Cascade.load(write_bundle(content), threads=1) as cascade:
        for missing in (scripted, cascade):
            with pytest.raises(InputError, match=r"no reference for each of 3 gear.*--selection"):
                DriftGuard(missing)


def test_references_come_from_the_bundle(content, write_bundle):
    content["settings"][KEY]["disagreements"] = [
        {
            "thresholds": [threshold],
            "data": "certificate",
            "count": 9 - k,
            "n": 800,
            "upper_bound": 0.1 - k / 50,
            "delta": 0.05,
        }
        for k, threshold in enumerate([0.75, 0.875, 0.96875])
    ][::-1]
    with Cascade.load(write_bundle(content), threads=1) as cascade:
        assert references_of(cascade) == pytest.approx((0.1, 0.08, 0.06))
        assert DriftGuard(cascade)._references == pytest.approx([0.102, 0.082, 0.062, 0.002])


def test_the_macs_of_a_guard_are_those_of_all_stages_for_each_shadow(make_spec, stage):
    spec = make_spec(stage("echo", macs=10), stage("negated", macs=990))
    assert shadow_macs(0.01, 0.8, spec.stages) == pytest.approx(0.01 * 0.8 * 1000)
