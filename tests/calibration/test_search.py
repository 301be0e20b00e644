"""The search: exact bookkeeping along paths, honest costs, and bundles that run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from click.testing import Result

import calibration.search
from calibration.certificates import Forecast
from calibration.costs import MacCosts, TimeCosts, batch_sizes, binomial_mass, measure_seconds
from calibration.pool import Card, load_pool, save_card
from calibration.provenance import load_provenance, sample_digests
from calibration.ranking import (
    Candidate,
    Curve,
    Pool,
    Screen,
    chains,
    curve,
    first_kept_point,
    last_within,
    rank,
)
from calibration.recorded import Claim
from calibration.records import load_record
from calibration.search import main
from kernels import reference
from runtime.bundle import load_bundle, save_spec
from runtime.cascade import Cascade
from runtime.schema import ThresholdPath
from runtime.simulation import Simulation

Invoke = Callable[..., Result]
World = Any
CLAIM = Claim(0.02, 0.0125, "wsr")
MACS = {"a": 1, "b": 10, "c": 100}


def pool(n: int = 997) -> Pool:
    rng = np.random.default_rng(11)
    labels = rng.integers(0, 4, n).astype(np.int32)
    truth = np.eye(4)[labels]
    logits = {
        name: (truth * 4 + rng.normal(size=(n, 4)) * noise).astype(np.float32)
        for name, noise in {"a": 2.5, "b": 1.8, "c": 1.2}.items()
    }
    return Pool(logits, labels, "c")


def screen(**changes: Any) -> Screen:
    made = pool()
    return Screen(made, MacCosts(MACS), CLAIM, 4000, **changes)


def search(invoke: Invoke, world: World, *options: object, code: int = 0) -> Result:
    return invoke(
        main, "--pool", world.pool, "--large", "large", "--cost", "macs", "--draws", 4,
        "--epsilon", 0.02, "--certificate-size", 2500, "--records", world.records / "selection",
        *options, code=code,
    )  # fmt: skip


def replace_card(world: World, name: str, **changes: object) -> None:
    cards = load_pool(world.pool)
    save_card(world.pool, cards[name].model_copy(update=changes))


def test_first_kept_point_is_the_first_that_accepts() -> None:
    thresholds = ThresholdPath(points=37).vectors()[:, 0]
    logits = pool().logits["a"].copy()
    logits[0], logits[1, 2], logits[2] = 0.0, np.nan, [50, 0, 0, 0]
    total = reference.softmax(logits).total
    kept = reference.accept(total[:, None], thresholds.astype(np.float64))
    expected = np.where(kept.any(1), kept.argmax(1), len(thresholds))
    found = first_kept_point(total, thresholds)
    np.testing.assert_array_equal(found, expected)
    assert found[1] == len(thresholds) and found[2] == 1


@pytest.mark.parametrize("names", [("a", "c"), ("b", "c"), ("a", "b", "c"), ("b", "a", "c")])
def test_a_curve_is_what_the_simulation_says_at_each_point(names: tuple[str, ...]) -> None:
    offsets = (0.0, -1.5)[: len(names) - 1]
    made = screen()
    simulation = Simulation([made.pool.logits[name] for name in names], made.pool.labels)
    first = [made._first_kept(*gate) for gate in zip(names, offsets, strict=False)]
    walked = curve(first, [made._drop(name) for name in names[:-1]], 501)
    for point, thresholds in enumerate(ThresholdPath(offsets=offsets).vectors()):
        drops = simulation.drops(thresholds)
        assert walked.drop[point] == pytest.approx(drops.mean(), abs=1e-12)
        assert walked.changed[point] == pytest.approx(np.abs(drops).mean(), abs=1e-12)
        rates = simulation.escalation_rates(thresholds)
        np.testing.assert_allclose(walked.rates[point], rates, atol=1e-12)


def test_the_screen_stops_before_the_first_point_outside() -> None:
    drop = np.array([0.0, 0.001, 0.03, 0.0, 0.0])
    walked = Curve(drop, np.abs(drop), np.zeros((5, 1)))
    assert last_within(walked, CLAIM, 10_000) == 1
    assert last_within(Curve(drop[:2], drop[:2], np.zeros((2, 1))), CLAIM, 10_000) == 1


def test_the_screen_leaves_a_margin_for_chance() -> None:
    drop = np.array([0.0, 0.015])
    for changed, passed in ((0.015, 1), (0.2, 0)):
        walked = Curve(drop, np.array([0.0, changed]), np.zeros((2, 1)))
        assert last_within(walked, CLAIM, 4000) == passed


def test_the_best_offset_is_the_cheapest_of_all() -> None:
    made = screen()
    costs = {o: screen(offsets=(o,)).best(("a", "b", "c")).cost for o in made.offsets}
    best = made.best(("a", "b", "c"))
    assert best.cost == min(costs.values()) == costs[best.path.offsets[1]]
    assert best.path.offsets[0] == 0.0
    assert len(set(costs.values())) > 5


def test_of_equal_costs_the_smallest_offset_wins() -> None:
    made = Screen(pool(), MacCosts({"a": 0, "b": 0, "c": 0}), CLAIM, 4000)
    assert made.best(("a", "b", "c")).path.offsets == (0.0, 0.0)


def test_the_screen_predicts_the_forecast() -> None:
    made = screen()
    candidate = made.best(("a", "c"))
    (estimate,) = rank(made, [candidate], draws=20)
    # The screen's margin is that of a normal approximation: close, not equal.
    assert estimate.cost == pytest.approx(candidate.cost, rel=0.15)


def test_chains_rise_in_cost_and_end_in_the_large_model() -> None:
    found = set(chains(pool(), MacCosts(MACS), (2, 3)))
    assert found == {("a", "c"), ("b", "c"), ("a", "b", "c")}
    assert set(chains(pool(), MacCosts(MACS), (3,))) == {("a", "b", "c")}
    assert set(chains(pool(), MacCosts({"a": 100, "b": 101, "c": 100}), (2, 3))) == set()


def test_the_ranking_is_by_the_cost_of_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {-1.0: 0.9, 0.0: 0.1, 1.0: 0.5}

    def fake(_: Sequence[Any], __: Any, path: ThresholdPath, **___: Any) -> Forecast:
        rate = (rates[path.start],)
        return Forecast(1, 1, 0, (0.1, 0.5, 0.9), (0, 0, 0), ((0.5,),) * 3, (rate,) * 3)

    monkeypatch.setattr("calibration.ranking.forecast", fake)
    candidates = [Candidate(("a", "c"), ThresholdPath(start=start), 0.0) for start in rates]
    ranking = rank(screen(), candidates, draws=1)
    assert [item.cost for item in ranking] == [11.0, 51.0, 91.0]


def test_a_cascade_that_no_draw_certifies_is_left_out() -> None:
    made = Screen(pool(), MacCosts(MACS), Claim(0.001, 0.01, "harm_only"), 100)
    assert rank(made, [made.best(("a", "c"))], draws=2) == []


def test_macs_are_a_mean_over_samples() -> None:
    costs = MacCosts(MACS)
    assert costs.cascade(("a", "b", "c"), (0.5, 0.25)) == 1 + 0.5 * 10 + 0.25 * 100
    assert costs.alone("b") == 10


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.03, 0.5])
def test_binomial_mass_is_the_distribution(rate: float) -> None:
    expected = scipy.stats.binom.pmf(np.arange(33), 32, rate)
    np.testing.assert_allclose(binomial_mass(32, rate), expected, rtol=1e-11, atol=1e-300)


def test_time_is_expected_over_the_sizes_of_escalated_batches() -> None:
    seconds = {"a": {1: 1.0, 2: 1.0}, "c": {1: 6.0, 2: 10.0}}
    costs = TimeCosts(seconds, batch=2)
    # Of two samples none, one or both escalate with probability 9/16, 6/16, 1/16.
    assert costs.cascade(("a", "c"), (0.25,)) == pytest.approx((1 + 6 * 6 / 16 + 10 / 16) / 2)
    assert costs.cascade(("a", "c"), (0.0,)) == pytest.approx(0.5)
    assert costs.cascade(("a", "c"), (1.0,)) == pytest.approx(5.5)
    assert costs.alone("c") == 5.0


def test_sizes_between_the_measured_ones_lie_on_a_line() -> None:
    costs = TimeCosts({"a": {4: 0.0}, "c": {1: 3.0, 4: 9.0}}, batch=4)
    mass = binomial_mass(4, 0.5)
    assert costs.cascade(("a", "c"), (0.5,)) == pytest.approx(mass @ [0, 3, 5, 7, 9] / 4)


@pytest.mark.parametrize(
    ("batch", "sizes"), [(1, [1]), (2, [1, 2]), (32, [1, 2, 4, 8, 16, 32]), (5, [1, 2, 4, 5])]
)
def test_batch_sizes_end_in_the_batch(batch: int, sizes: list[int]) -> None:
    assert batch_sizes(batch) == sizes


def test_models_and_sizes_take_turns() -> None:
    calls: list[tuple[str, int]] = []
    runs = {name: (lambda size, name=name: calls.append((name, size))) for name in ("x", "y")}
    found = measure_seconds(runs, [1, 4], rounds=3)
    assert calls == [("x", 1), ("x", 4), ("y", 1), ("y", 4)] * 4
    assert {name: sorted(times) for name, times in found.items()} == {"x": [1, 4], "y": [1, 4]}


def test_the_ranking_is_labelled_as_an_estimate(invoke: Invoke, world: World) -> None:
    world.record("selection")
    assert "Selection estimates, not certified" in search(invoke, world).stdout
    shown = json.loads(search(invoke, world, "--json").stdout)
    assert shown["label"] == "selection estimates, not certified"
    assert (shown["unit"], shown["large"]) == ("macs", {"name": "large", "cost": 1000.0})
    assert shown["screened"] == 3
    assert {tuple(item["stages"]) for item in shown["ranking"]} == {
        ("tiny", "large"), ("middle", "large"), ("tiny", "middle", "large")
    }  # fmt: skip
    for item in shown["ranking"]:
        assert item["macs_saved"] == pytest.approx(1 - item["cost"] / 1000)


def test_numbers_shown_are_those_of_the_records(invoke: Invoke, world: World) -> None:
    folder = world.record("selection")
    (item,) = json.loads(search(invoke, world, "--json", "--stages", "3").stdout)["ranking"]
    records = [load_record(folder / f"{name}.npz") for name in item["stages"]]
    simulation = Simulation([record.logits for record in records], records[0].labels)
    assert item["escalation_rates"] == list(simulation.escalation_rates(item["thresholds"]))


def test_time_is_measured_on_the_models_of_the_pool(invoke: Invoke, world: World) -> None:
    world.record("selection")
    shown = json.loads(search(invoke, world, "--json", "--cost", "time", "--batch", 2).stdout)
    assert shown["unit"] == "seconds"
    assert shown["large"]["cost"] > 0


def test_no_saver_pays_is_an_answer(invoke: Invoke, world: World) -> None:
    world.record("selection")
    replace_card(world, "tiny", macs=990)
    replace_card(world, "middle", macs=995)
    target = world.root / "target"
    options = ("--write", target, "--data", world.data("selection"))
    assert "No saver pays here" in search(invoke, world, *options).stdout
    assert json.loads(search(invoke, world, "--json").stdout)["ranking"] == []
    assert not target.exists()


@pytest.mark.parametrize("split", ["certificate", "test"])
def test_held_out_records_choose_nothing(invoke: Invoke, world: World, split: str) -> None:
    world.data("certificate").rename(world.data(split))
    folder = world.record(split)
    result = search(invoke, world, "--records", folder, code=1)
    assert f"these are records of '{split}'" in result.stderr


def test_bad_requests_are_refused_before_the_search(invoke: Invoke, world: World) -> None:
    assert "Record it first" in search(invoke, world, code=1).stderr
    folder = world.record("selection")
    assert "no model 'huge'" in search(invoke, world, "--large", "huge", code=1).stderr
    assert "expected 2, 3 or 2,3" in search(invoke, world, "--stages", "4", code=1).stderr
    assert "needs --data" in search(invoke, world, "--write", "x", code=2).stderr
    options = ("--write", world.root / "x", "--data", world.data("certificate"))
    assert "expected the data of the records" in search(invoke, world, *options, code=1).stderr
    (folder / "tiny.npz").write_bytes(b"garbage")
    assert "tiny.npz: not an npz file" in search(invoke, world, code=1).stderr


def write(invoke: Invoke, world: World, folder: Path, *options: object) -> Result:
    world.record("selection")
    return search(
        invoke, world, "--write", folder, "--data", world.data("selection"), "--stages", "3",
        *options,
    )  # fmt: skip


def test_the_winner_becomes_a_bundle_that_runs(invoke: Invoke, world: World) -> None:
    shown = json.loads(write(invoke, world, world.bundle, "--json").stdout)["ranking"][0]
    spec = load_bundle(world.bundle).spec
    made = spec.settings["fp32/fp32/fp32"]
    assert [stage.name for stage in spec.stages] == shown["stages"]
    assert list(made.thresholds) == shown["thresholds"]
    assert made.path is not None and list(made.path.offsets) == shown["offsets"]
    assert made.certificate is None
    assert [stage.forms["fp32"].file for stage in spec.stages] == [
        f"models/{name}.onnx" for name in shown["stages"]
    ]
    with Cascade.load(world.bundle, threads=1) as cascade:
        results = cascade.run(world.images("selection"))
    shares = [(results.stage > gate).mean() for gate in range(2)]
    # Rows within rounding of a threshold may be decided otherwise in float32.
    np.testing.assert_allclose(shares, shown["escalation_rates"], atol=2e-3)


def test_golden_samples_are_of_the_selection_data(invoke: Invoke, world: World) -> None:
    write(invoke, world, world.bundle)
    spec = load_bundle(world.bundle).spec
    assert spec.golden is not None
    with np.load(world.bundle / spec.golden.file) as golden:
        np.testing.assert_array_equal(golden["frames"], world.images("selection")[:8])
        for name in ("tiny", "middle", "large"):
            stored = load_record(world.records / "selection" / f"{name}.npz")
            np.testing.assert_allclose(
                golden[f"logits/{name}/fp32"], stored.logits[:8], rtol=1e-5, atol=1e-5
            )


def test_provenance_names_training_and_selection(invoke: Invoke, world: World) -> None:
    write(invoke, world, world.bundle)
    bundle = load_bundle(world.bundle)
    entries = {entry.purpose: entry for entry in bundle.spec.provenance}
    assert len(bundle.spec.provenance) == 2
    assert entries["training"].file == "provenance/training.npz"
    path = bundle.verified(entries["selection"].file, entries["selection"].sha256)
    expected = np.unique(sample_digests(world.images("selection")))
    np.testing.assert_array_equal(load_provenance(path).digests, expected)


def test_files_outside_the_bundle_are_copied_into_it(invoke: Invoke, world: World) -> None:
    target = world.root / "elsewhere"
    write(invoke, world, target)
    world.bundle.rename(world.root / "gone")
    spec = load_bundle(target).spec
    assert all(entry.file.startswith("provenance/") for entry in spec.provenance)
    with Cascade.load(target, threads=1) as cascade:
        assert cascade.stage_names == ("tiny", "middle", "large")


def test_texts_are_kept_unless_given_anew(invoke: Invoke, world: World) -> None:
    write(invoke, world, world.bundle, "--labels", "x,y,z", "--name", "demo")
    spec = load_bundle(world.bundle).spec
    assert (spec.name, spec.labels, spec.description) == ("demo", ("x", "y", "z"), "")
    assert spec.input.colour == "grey"
    save_spec(world.bundle, spec.model_copy(update={"description": "by hand"}))
    write(invoke, world, world.bundle, "--name", "other")
    spec = load_bundle(world.bundle).spec
    assert (spec.name, spec.labels, spec.description) == ("other", ("x", "y", "z"), "by hand")


def test_labels_must_name_each_class(invoke: Invoke, world: World) -> None:
    world.record("selection")
    options = ("--write", world.bundle, "--data", world.data("selection"), "--labels", "x,y")
    assert "expected 3 names" in search(invoke, world, *options, code=1).stderr


def test_an_unwritable_bundle_folder_is_an_error(invoke: Invoke, world: World) -> None:
    world.record("selection")
    (world.root / "file").write_text("in the way")
    for folder in (world.root / "file", world.root / "file" / "below"):
        options = ("--write", folder, "--data", world.data("selection"))
        assert str(folder) in search(invoke, world, *options, code=1).stderr


def test_selection_made_into_provenance_cannot_certify(invoke: Invoke, world: World) -> None:
    from calibration.threshold import main as threshold

    write(invoke, world, world.bundle)
    result = invoke(
        threshold, world.bundle, "--records", world.records / "selection",
        "--data", world.data("selection"), code=1,
    )  # fmt: skip
    assert "1500 of 1500 for selection" in result.stderr


def test_the_winner_can_be_certified(invoke: Invoke, world: World) -> None:
    from calibration.threshold import main as threshold

    write(invoke, world, world.bundle)
    invoke(
        threshold, world.bundle, "--records", world.record("certificate"),
        "--data", world.data("certificate"), "--epsilon", 0.02,
    )  # fmt: skip
    with Cascade.load(world.bundle, threads=1, require_certificate=True) as cascade:
        assert cascade.certification.state == "certified"


def test_only_the_best_screened_are_forecast(
    invoke: Invoke, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.record("selection")
    forecast: list[tuple[str, ...]] = []

    def watched(made: Screen, candidates: Sequence[Candidate], **options: Any) -> Any:
        forecast.extend(candidate.names for candidate in candidates)
        return rank(made, candidates, **options)

    monkeypatch.setattr(calibration.search, "rank", watched)
    shown = json.loads(search(invoke, world, "--json", "--finalists", 1).stdout)
    assert len(forecast) == len(shown["ranking"]) == 1
    assert shown["screened"] == 3


def test_what_cannot_pay_is_not_forecast(
    invoke: Invoke, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.record("selection")
    replace_card(world, "tiny", macs=990)
    replace_card(world, "middle", macs=995)

    def watched(_: Screen, candidates: Sequence[Candidate], **__: Any) -> Any:
        assert candidates == []
        return []

    monkeypatch.setattr(calibration.search, "rank", watched)
    search(invoke, world)


def test_a_card_of_provenance_that_is_not_training_is_refused(invoke: Invoke, world: World) -> None:
    write(invoke, world, world.bundle)
    cards: dict[str, Card] = load_pool(world.pool)
    for name in cards:
        replace_card(world, name, provenance="../provenance/selection.npz")
    options = ("--write", world.bundle, "--data", world.data("selection"))
    assert "expected provenance of training" in search(invoke, world, *options, code=1).stderr
