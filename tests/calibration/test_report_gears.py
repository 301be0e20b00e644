"""What a report says of gears, drift, thresholds by class, combined answers and scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from calibration import report_plots
from calibration.report import main
from calibration.threshold import main as threshold
from runtime.bundle import load_bundle, save_spec
from runtime.schema import Combination, Gate, Score, Setting
from runtime.simulation import Simulation

Invoke = Callable[..., Result]
World = Any


@pytest.fixture
def report(invoke: Invoke, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return page and numbers of the bundle tiny -> middle -> large, its plots left out."""
    monkeypatch.setattr(report_plots, "as_svg", lambda figure, name, description: "<svg></svg>")
    world.make_bundle("tiny", "middle", "large")
    out = tmp_path / "report.html"

    def run() -> tuple[str, Any]:
        result = invoke(main, world.bundle, "--macs-only", "--out", out, "--threads", 1, "--json")
        text = out.read_text("utf-8").replace("&nbsp;", " ")
        return text, json.loads(result.stdout)

    return run


def change_spec(world: World, **changes: object) -> None:
    save_spec(world.bundle, load_bundle(world.bundle).spec.model_copy(update=changes))


def test_gears_stand_beside_the_certified_thresholds(
    report: Any, invoke: Invoke, world: World
) -> None:
    invoke(
        threshold, world.bundle, "--records", world.record("certificate"), "--data",
        world.data("certificate"), "--epsilon", 0.05, "--delta", 0.05,
        "--allow-unknown-provenance",
    )  # fmt: skip
    text, found = report()
    setting = load_bundle(world.bundle).spec.settings["fp32/fp32/fp32"]
    assert setting.gears
    assert setting.certificate and setting.certificate.saving
    rows = found["gears"]
    assert [row["name"] for row in rows[:2]] == ["certified", "gear 1"]
    assert [row["thresholds"] for row in rows] == [
        list(vector) for vector in (setting.thresholds, *reversed(setting.gears))
    ]
    costs = [row["costs"][0] for row in rows]
    assert costs == sorted(costs)
    assert rows[0]["accuracy"] == found["costs"][0]["in_force"]["accuracy"]
    first = setting.disagreements[0]
    assert rows[0]["disagreement"]["upper_bound"] == first.upper_bound
    assert f"of {first.n:,} {first.data} images" in text
    assert "promises the same" in text
    bound = f"{100 * setting.certificate.saving.lower_bound:.1f} %"
    assert f"At least {bound} of the multiply-accumulates of large are saved" in text
    assert f"<b>≥ {bound}</b>" in text


def test_without_gears_there_is_no_table_of_them(report: Any) -> None:
    text, found = report()
    assert "<h3>Gears</h3>" not in text
    assert [row["name"] for row in found["gears"]] == ["in force"]
    assert "promises the same" not in text


def test_the_rule_is_told_with_scores_classes_and_what_is_combined(
    report: Any, world: World
) -> None:
    thresholds = ([0.5, 0.6, 0.7], 0.25)
    change_spec(
        world,
        gates=(Gate(), Gate(score=Score(name="margin", temperature=0.5))),
        combination=Combination(stage="middle", weight=0.5),
        settings={"fp32/fp32/fp32": Setting(thresholds=thresholds)},
    )
    text, found = report()
    rule = " ".join(found["rule"])
    assert "after tiny keeps what is above 0.5000 to 0.7000, by predicted class, by max-s" in rule
    assert "after middle keeps what is above 0.2500 by margin T 0.5." in rule
    assert "answered by its logits and 0.5 times those of middle" in rule
    assert rule.split(" keeps ")[0] in text
    assert "margin T 0.5" in found["scores"][1]["aurc"]
    assert found["scores"][1]["used"] == "margin T 0.5"
    assert found["confidence"][0]["threshold"] is None


def test_numbers_are_those_of_the_whole_rule(report: Any, world: World) -> None:
    thresholds = ([0.5, 0.6, 0.7], 0.25)
    scores = [Score(), Score(name="margin")]
    change_spec(
        world,
        gates=tuple(Gate(score=score) for score in scores),
        combination=Combination(stage="tiny", weight=2.0),
        settings={"fp32/fp32/fp32": Setting(thresholds=thresholds)},
    )
    _, found = report()
    records = {name: np.load(world.record("selection") / f"{name}.npz") for name in ("tiny",
               "middle", "large")}  # fmt: skip
    logits = [record["logits"] for record in records.values()]
    labels = records["tiny"]["labels"]
    simulation = Simulation(logits, labels, scores=scores, combination=(0, 2.0))
    answers = simulation.answers(thresholds)
    (costs,) = found["costs"]
    assert costs["in_force"]["accuracy"] == pytest.approx((answers.label == labels).mean())
    assert [gate["reached"] for gate in found["gates"]] == [
        int((answers.stage >= stage).sum()) for stage in range(3)
    ]
    # What a gate risks is harm, on the samples that reach it.
    reach = answers.stage >= 1
    harm = (logits[1].argmax(1) != labels) & (logits[2].argmax(1) == labels)
    probability = np.exp(logits[1] - logits[1].max(1, keepdims=True))
    top = np.sort(probability / probability.sum(1, keepdims=True), axis=1)
    order = np.argsort(-(top[:, -1] - top[:, -2])[reach], kind="stable")
    risk = np.cumsum(harm[reach][order]) / np.arange(1, reach.sum() + 1)
    assert found["scores"][1]["aurc"]["margin"] == pytest.approx(risk.mean(), rel=1e-3)
