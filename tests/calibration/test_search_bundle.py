"""Bundles that the search writes: the winner as it was found, certified if that was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from calibration.budget import Budget
from calibration.gears import Gears, gears
from calibration.pool import Card, load_pool
from calibration.provenance import load_provenance, sample_digests
from calibration.recorded import load_recorded
from calibration.records import load_record
from calibration.saving import bounded_saving
from runtime.bundle import load_bundle, save_spec
from runtime.cascade import Cascade
from runtime.schema import Certificate
from tests.calibration.search_world import Invoke, World, replace_card, search


def write(invoke: Invoke, world: World, folder: Path, *options: object) -> Result:
    world.record("selection")
    return search(
        invoke, world, "--write", folder, "--data", world.data("selection"), "--stages", "3",
        *options,
    )  # fmt: skip


def test_the_winner_becomes_a_bundle_that_runs(invoke: Invoke, world: World) -> None:
    shown = json.loads(write(invoke, world, world.bundle, "--json").stdout)["ranking"][0]
    shown |= shown["forecast"]
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
        assert sorted(cascade.stage_names) == ["large", "middle", "tiny"]


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


def test_a_card_of_provenance_that_is_not_training_is_refused(invoke: Invoke, world: World) -> None:
    write(invoke, world, world.bundle)
    cards: dict[str, Card] = load_pool(world.pool)
    for name in cards:
        replace_card(world, name, provenance="../provenance/selection.npz")
    options = ("--write", world.bundle, "--data", world.data("selection"))
    assert "expected provenance of training" in search(invoke, world, *options, code=1).stderr


def certify(invoke: Invoke, world: World, top: int, *options: object, code: int = 0) -> Result:
    world.record("selection")
    certifying = ("--certify-records", world.record("certificate"),
                  "--certify-data", world.data("certificate"))  # fmt: skip
    return search(
        invoke, world, "--write", world.bundle, "--data", world.data("selection"),
        "--delta", 0.04, "--certify-top", top, *certifying, *options, code=code,
    )  # fmt: skip


@pytest.mark.parametrize("top", [1, 3])
def test_the_best_are_certified_at_equal_shares_of_delta(
    invoke: Invoke, world: World, top: int
) -> None:
    budget = world.root / "budget.jsonl"
    result = certify(invoke, world, top, "--budget", budget)
    assert f"the cheapest of {top} tried" in result.stderr
    lines = [json.loads(line) for line in budget.read_text().splitlines()]
    assert [line["delta"] for line in lines] == [pytest.approx(0.04 / top)] * (2 * top)
    assert len({line["cascade"] for line in lines}) == top
    assert Budget(budget).spent() == pytest.approx(0.04)


def spaced_gears(world: World, certificate: Certificate) -> Gears:
    recorded = load_recorded(load_bundle(world.bundle), world.records / "selection")
    return gears(certificate, recorded.simulation())


def test_the_winner_of_several_promises_the_whole_delta_and_runs(
    invoke: Invoke, world: World
) -> None:
    budget = world.root / "budget.jsonl"
    certify(invoke, world, 3, "--budget", budget)
    results = [json.loads(line)["result"] for line in budget.read_text().splitlines()]
    certificates = [result["certificate"] for result in results if result]
    spec = load_bundle(world.bundle).spec
    (setting,) = spec.settings.values()
    assert setting.certificate is not None and setting.certificate.delta == 0.04
    macs = {"tiny": 10, "middle": 100, "large": 1000}

    def cost(certificate: Any) -> float:
        names = [stage["name"] for stage in certificate["covers"]["stages"]]
        rates = (1.0, *certificate["escalation_rates"])
        return sum(macs[name] * rate for name, rate in zip(names, rates, strict=True))

    best = min(certificates, key=cost)
    assert list(setting.thresholds) == best["thresholds"]
    shared = bounded_saving(setting.certificate, [stage.macs for stage in spec.stages], share=3)
    assert setting.certificate.saving == shared
    assert setting.gears == spaced_gears(world, setting.certificate)
    assert [stage.name for stage in spec.stages] == [s["name"] for s in best["covers"]["stages"]]
    with Cascade.load(world.bundle, threads=1, require_certificate=True) as cascade:
        assert cascade.certification.state == "certified"


def test_a_spent_budget_certifies_none(invoke: Invoke, world: World) -> None:
    budget = world.root / "budget.jsonl"
    certify(invoke, world, 1, "--budget", budget)
    before = (world.bundle / "cascade.json").read_bytes()
    result = certify(invoke, world, 2, "--budget", budget, code=1)
    assert "the budget of these data is spent" in result.stderr
    assert (world.bundle / "cascade.json").read_bytes() == before


def test_data_that_chose_something_certify_nothing(invoke: Invoke, world: World) -> None:
    folder = world.record("selection")
    options = ("--certify-records", folder, "--certify-data", world.data("selection"))
    result = search(
        invoke, world, "--write", world.bundle, "--data", world.data("selection"),
        "--certify-top", 1, *options, code=1,
    )  # fmt: skip
    assert "1500 of 1500 for selection" in result.stderr
    assert not (world.bundle / "cascade.json").exists()


def test_if_none_passes_nothing_is_written(invoke: Invoke, world: World) -> None:
    with np.load(world.data("certificate")) as stored:
        few = {name: stored[name][:50] for name in stored.files}
    np.savez(world.data("certificate"), **few)
    result = certify(invoke, world, 2, code=1)
    assert result.stderr.count("certification refused") == 2
    assert not (world.bundle / "cascade.json").exists()
