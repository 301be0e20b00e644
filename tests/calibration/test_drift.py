"""How soon a drift guard sees corrupted images: the corruptions, the streams, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from calibration import drift
from calibration.corruption import CORRUPTIONS, Corruption, blurred, brighter, noisy
from calibration.delay import Streams, delays, images_seen
from calibration.disagreement import disagreements
from calibration.recorded import load_recorded
from calibration.threshold import main as threshold
from runtime.bundle import load_bundle
from runtime.evidence import Evidence

Invoke = Callable[..., Result]
World = Any


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_a_blur_keeps_what_is_even_and_spreads_a_point_as_a_gaussian_does() -> None:
    even = np.full((2, 9, 7, 3), 130, np.uint8)
    assert (blurred(even, 1.0) == even).all()
    point = np.zeros((1, 15, 15, 1), np.uint8)
    point[0, 7, 7] = 255
    weights = np.exp(-0.5 * (np.arange(-3, 4) / 0.8) ** 2)
    weights /= weights.sum()
    expected = np.rint(255 * np.outer(weights, weights))
    assert np.abs(blurred(point, 0.8)[0, 4:11, 4:11, 0] - expected).max() <= 1
    assert blurred(point, 0.8).sum() == pytest.approx(255, abs=13)


def test_noise_has_its_deviation_and_is_the_same_each_time() -> None:
    grey = np.full((50, 20, 20, 1), 128, np.uint8)
    noise = noisy(grey, 10.0).astype(float) - 128
    assert noise.std() == pytest.approx(10, rel=0.03)
    assert abs(noise.mean()) < 0.3
    assert (noisy(grey, 10.0) == noisy(grey, 10.0)).all()
    assert (noise[0] != noise[1]).any()


def test_brightness_ends_at_white() -> None:
    assert brighter(np.array([[[[0], [200], [255]]]], np.uint8), 60.0).ravel().tolist() == [
        60,
        255,
        255,
    ]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupted_images_are_still_images_and_the_given_ones_stay(corruption: Corruption) -> None:
    images = pictures(3, 8, 5, 3)
    before = images.copy()
    changed = corruption(images)
    assert (changed.dtype, changed.shape) == (np.uint8, images.shape)
    assert (images == before).all() and (changed != images).any()


def test_there_are_three_strengths_of_each_which_rise() -> None:
    for name in ("blur", "noise", "brightness"):
        strengths = [item.strength for item in CORRUPTIONS if item.name == name]
        assert len(strengths) == 3 and strengths == sorted(strengths)
        images = pictures(4, 12, 12, 1)
        far = [
            np.abs(item(images).astype(int) - images).mean()
            for item in CORRUPTIONS
            if item.name == name
        ]
        assert far == sorted(far)


def test_a_delay_is_that_of_the_guards_evidence() -> None:
    """With all hits alike, every stream is the same one."""
    streams = Streams(quiet=40, samples=500, count=3)
    found = delays(np.ones(5, bool), np.zeros(5, bool), 0.2, alpha=0.05, streams=streams)
    evidence = Evidence(0.05)
    evidence.observe(np.zeros(40, bool), np.full(40, 0.2))
    place = evidence.observe(np.ones(500, bool), np.full(500, 0.2))
    assert place is not None and place > 1
    assert found.tolist() == [place + 1.0] * 3


def test_streams_without_an_alarm_wait_for_ever_and_early_ones_do_not_count() -> None:
    streams = Streams(quiet=30, samples=50, count=4)
    none, all_ = np.zeros(3, bool), np.ones(3, bool)
    assert np.isinf(delays(none, none, 0.2, alpha=0.05, streams=streams)).all()
    assert np.isnan(delays(none, all_, 0.2, alpha=0.05, streams=streams)).all()


def test_the_camera_gives_more_images_than_are_drawn() -> None:
    drawn = np.array([200.0] * 500 + [np.inf, np.nan])
    seen = images_seen(drawn, 0.05)
    assert np.mean(seen[:500]) == pytest.approx(200 / 0.05, rel=0.02)
    assert np.std(seen[:500]) == pytest.approx(np.sqrt(200 * 0.95) / 0.05, rel=0.15)
    assert np.isinf(seen[500]) and np.isnan(seen[501])
    assert images_seen(drawn[:3], 1.0).tolist() == [200.0] * 3


@pytest.fixture
def certified(invoke: Invoke, world: World) -> World:
    world.make_bundle("tiny", "large")
    world.record("certificate")
    world.record("selection")
    invoke(
        threshold, world.bundle, "--records", world.records / "certificate",
        "--data", world.data("certificate"), "--epsilon", 0.02,
    )  # fmt: skip
    return world


def report(invoke: Invoke, world: World, *options: object) -> dict[str, Any]:
    result = invoke(
        drift.main, world.bundle, "--data", world.data("selection"), "--json",
        "--streams", 20, "--quiet", 100, "--limit", 300, *options,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_there_is_a_row_for_each_corruption_and_one_for_none(
    invoke: Invoke, certified: World
) -> None:
    found = report(invoke, certified, "--share", 0.1)
    setting = load_bundle(certified.bundle).spec.settings["fp32/fp32"]
    assert found["reference"] == pytest.approx(setting.disagreements[0].upper_bound + 0.002)
    names = [(row["corruption"], row["strength"]) for row in found["rows"]]
    assert names == [("none", 0.0), *((item.name, item.strength) for item in CORRUPTIONS)]
    clean = found["rows"][0]
    assert clean["unlike"] < found["reference"] and clean["drawn"] is clean["images"] is None
    for row in found["rows"]:
        if row["drawn"] is not None:
            assert row["alarmed"] >= 0.5 and row["images"] > row["drawn"]


def test_the_reference_may_come_from_selection_records(invoke: Invoke, certified: World) -> None:
    folder = certified.records / "selection"
    found = report(invoke, certified, "--selection", folder, "--tolerance", 0.0)
    recorded = load_recorded(load_bundle(certified.bundle), folder)
    assert found["reference"] == disagreements(recorded, recorded.setting)[0].upper_bound


def test_the_table_says_the_same(invoke: Invoke, certified: World) -> None:
    result = invoke(
        drift.main, certified.bundle, "--data", certified.data("selection"),
        "--streams", 5, "--quiet", 10, "--limit", 20,
    )  # fmt: skip
    assert "alarm where more than" in result.stdout
    assert result.stdout.count("brightness") == result.stdout.count("noise") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--share", 0), "share: expected above 0, at most 1, got 0"),
        (("--alpha", 1), "alpha: expected between 0 and 1"),
        (("--selection", "records/certificate"), "must not choose anything"),
        (("--selection", "nowhere"), "not found"),
    ],
)
def test_what_makes_no_sense_is_refused(
    invoke: Invoke, world: World, options: tuple[str, object], message: str
) -> None:
    world.make_bundle("tiny", "large")
    world.record("certificate")
    name, value = options
    value = world.root / str(value) if name == "--selection" else value
    data = world.data("selection")
    result = invoke(drift.main, world.bundle, "--data", data, name, value, code=1)
    assert message in result.stderr


def test_a_bundle_without_references_is_told_how_to_get_them(invoke: Invoke, world: World) -> None:
    world.make_bundle("tiny", "large")
    result = invoke(drift.main, world.bundle, "--data", world.data("selection"), code=1)
    assert "no reference" in result.stderr and "--selection" in result.stderr
