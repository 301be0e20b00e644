"""What a drift guard compares with: counted from records, written with certificate and gears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from calibration.bounds import clopper_pearson_upper
from calibration.disagreement import disagreements, unlike
from calibration.recorded import Recorded, load_recorded
from calibration.threshold import main
from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from runtime.drift import DriftGuard, references_of
from runtime.errors import InputError
from runtime.schema import Setting
from runtime.simulation import Simulation

Invoke = Callable[..., Result]
World = Any


def setting(world: World) -> Setting:
    return load_bundle(world.bundle).spec.settings["fp32/fp32"]


def recorded(world: World, split: str) -> Recorded:
    return load_recorded(load_bundle(world.bundle), world.records / split)


@pytest.fixture
def certified(invoke: Invoke, world: World) -> World:
    """A bundle of two stages that was certified with gears."""
    world.make_bundle("tiny", "large")
    world.record("certificate")
    invoke(
        main, world.bundle, "--records", world.records / "certificate",
        "--data", world.data("certificate"), "--epsilon", 0.02,
    )  # fmt: skip
    return world


def test_it_is_counted_where_an_earlier_stage_answers_otherwise_than_the_last() -> None:
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(400, 3)) * 3 for _ in range(3)]
    found = unlike(Simulation(logits), (0.9, 0.6))
    softmax = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits]
    first, second = softmax[0].max(1) > 0.9, softmax[1].max(1) > 0.6
    label = np.where(first, logits[0].argmax(1), logits[1].argmax(1))
    expected = (first | second) & (label != logits[2].argmax(1))
    assert found.tolist() == expected.tolist()
    assert 50 < found.sum() < 350


def test_what_a_combination_changes_is_no_disagreement() -> None:
    """The last stage's answer is the combined one: where all escalates nothing is unlike it."""
    rng = np.random.default_rng(1)
    logits = [rng.normal(size=(400, 3)) for _ in range(2)]
    simulation = Simulation(logits, combination=(0, 2.0))
    assert not unlike(simulation, (1.0,)).any()
    combined = (logits[1] + 2 * logits[0]).argmax(1)
    assert (unlike(simulation, (0.0,)) == (logits[0].argmax(1) != combined)).all()


def test_certifying_writes_it_for_the_thresholds_and_every_gear(certified: World) -> None:
    written, records = setting(certified), recorded(certified, "certificate")
    assert len(written.gears) > 1
    found = written.disagreements
    assert [item.thresholds for item in found] == [written.thresholds, *written.gears[::-1]]
    assert written.path is not None
    points = len(written.path.vectors())
    assert points == 501
    for item in found:
        count = int(unlike(records.simulation(), item.thresholds).sum())
        assert (item.data, item.count, item.n) == ("certificate", count, 2500)
        assert item.upper_bound == clopper_pearson_upper(count, 2500, 0.05 / points)
    assert [item.count for item in found] == sorted((item.count for item in found), reverse=True)
    assert found[0].count > 0


def test_a_guard_finds_its_references_in_the_bundle(certified: World) -> None:
    with Cascade.load(certified.bundle, "cpu", threads=1) as cascade:
        expected = tuple(item.upper_bound for item in setting(certified).disagreements)
        assert references_of(cascade) == expected
        guard = DriftGuard(cascade)
        results = guard.run(certified.images("certificate"))
        guard.flush()
    assert guard.account.images == len(results) and guard.alarms == []


def test_gears_that_were_given_later_have_it_from_the_selection_split(
    invoke: Invoke, certified: World
) -> None:
    certified.record("selection")
    invoke(main, certified.bundle, "--gears", "--selection", certified.records / "selection")
    written = setting(certified)
    assert {item.data for item in written.disagreements} == {"selection"}
    expected = disagreements(recorded(certified, "selection"), written)
    assert written.disagreements == expected


def test_gears_without_records_of_any_split_leave_a_guard_without_references(
    invoke: Invoke, certified: World
) -> None:
    bundle = load_bundle(certified.bundle)
    bare = setting(certified).model_copy(update={"disagreements": (), "gears": ()})
    spec = bundle.spec.model_copy(update={"settings": {"fp32/fp32": bare}})
    (certified.bundle / "cascade.json").write_text(spec.model_dump_json())
    invoke(main, certified.bundle, "--gears")
    assert setting(certified).gears and not setting(certified).disagreements
    refused = pytest.raises(InputError, match="--gears --selection")
    with Cascade.load(certified.bundle, "cpu", threads=1) as cascade, refused:
        DriftGuard(cascade)
