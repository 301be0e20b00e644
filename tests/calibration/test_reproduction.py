"""The paper's protocol on records: equal to a transcription by masks; judged on the test split."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from calibration.costs import MacCosts
from calibration.records import load_record, save_record
from calibration.reproduce import BEGIN, END, main
from calibration.reproduction import QUOTED_DROPS, Protocol, Split
from calibration.threshold import main as threshold
from tests.calibration.conftest import save_split

Invoke = Callable[..., Result]
World = Any
MACS = {"a": 3, "b": 20, "c": 100}


def split(name: str, seed: int, n: int = 700) -> Split:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n).astype(np.int32)
    truth = np.eye(4)[labels]
    noise = {"a": 2.4, "b": 1.8, "c": 1.5}
    logits = {
        model: (truth * 4 + rng.normal(size=(n, 4)) * scale).astype(np.float32)
        for model, scale in noise.items()
    }
    return Split(name, logits, labels)


@pytest.fixture
def protocol() -> Protocol:
    splits = {name: split(name, seed) for seed, name in enumerate(("train", "selection", "test"))}
    return Protocol("c", MACS, splits)


def confidence(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return (weight.max(1) / weight.sum(1)).astype(np.float32).astype(np.float64)


def judged(test: Split, saver: str, t: float) -> tuple[float, float]:
    """Return MACs saved and drop of a threshold, by mask."""
    out = confidence(test.logits[saver]) > t
    large = test.logits["c"].argmax(1) == test.labels
    answer = np.where(out, test.logits[saver].argmax(1), test.logits["c"].argmax(1))
    macs = np.where(out, MACS[saver], MACS[saver] + MACS["c"]).mean()
    return 1 - macs / MACS["c"], float(large.mean() - (answer == test.labels).mean())


def swept(records: Split, saver: str, drop: float) -> float:
    """Return the MACs that the best of 1001 thresholds saves on the records themselves."""
    found = [judged(records, saver, step / 1000) for step in range(1001)]
    return max(saved for saved, lost in found if lost <= drop + 1e-9)


def test_lines_equal_an_independent_transcription(protocol: Protocol) -> None:
    costs, test = MacCosts(MACS), protocol.splits["test"]
    lines = list(protocol.lines())
    for line in [*lines, protocol.best_oracle(0.005)]:
        (saver, _), (t,) = line.names, line.thresholds
        saved, drop = judged(test, saver, t)
        assert line.saved(costs) == pytest.approx(saved)
        assert (line.harm - line.help) / len(test.labels) == pytest.approx(drop)
    ways = [(line.way, line.chosen_on, line.drop) for line in lines]
    assert ways == [
        *(("oracle", "test", drop) for drop in QUOTED_DROPS),
        *(("first violation", name, None) for name in ("train", "selection", "test")),
        ("sweep", "train", 0.005),
        ("sweep", "selection", 0.005),
    ]


def test_the_sweep_saves_most_where_it_was_chosen(protocol: Protocol) -> None:
    costs = MacCosts(MACS)
    for line in protocol.lines():
        if line.way == "first violation":
            continue
        records = protocol.splits[line.chosen_on]
        saved, lost = judged(records, line.names[0], line.thresholds[0])
        assert line.drop is not None
        assert lost <= line.drop + 1e-9
        assert saved == pytest.approx(swept(records, line.names[0], line.drop))
        if line.way == "oracle":
            assert line.saved(costs) == pytest.approx(saved)


def test_the_first_violation_is_where_accuracies_of_what_is_kept_cross(protocol: Protocol) -> None:
    for line in (line for line in protocol.lines() if line.way == "first violation"):
        records = protocol.splits[line.chosen_on]
        scores = {}
        for saver in ("a", "b"):
            for t in np.arange(1, 0, -0.001):
                out = confidence(records.logits[saver]) > t
                hits = records.logits[saver].argmax(1)[out] == records.labels[out]
                large = records.logits["c"].argmax(1)[out] == records.labels[out]
                if out.any() and hits.mean() < large.mean():
                    break
            scores[saver] = (MACS[saver] / MACS["c"] - out.mean(), t)
        best = min(scores, key=lambda saver: scores[saver][0])
        assert line.names[0] == best
        assert line.thresholds[0] == pytest.approx(scores[best][1], abs=1e-9)


def test_an_oracle_takes_the_saver_that_saves_most(protocol: Protocol) -> None:
    saved = {saver: swept(protocol.splits["test"], saver, 0.005) for saver in ("a", "b")}
    best = protocol.best_oracle(0.005)
    assert best.names[0] == max(saved, key=lambda saver: saved[saver])
    assert best.saved(MacCosts(MACS)) == pytest.approx(max(saved.values()))


@pytest.fixture
def reproduce(invoke: Invoke, world: World) -> Callable[..., Result]:
    """Run the command on a bundle tiny -> large with records of all splits but train."""
    world.make_bundle("tiny", "large")
    save_split(world.data("test"), 1200, seed=5)
    for name in ("selection", "test"):
        world.record(name)

    def run(*options: object, code: int = 0) -> Result:
        given = ("--records", world.records, "--epsilon", 0.03, "--certificate-size", 2500)
        return invoke(main, world.bundle, *given, *options, code=code)

    return run


def test_tables_go_between_the_marks_of_a_page(
    reproduce: Callable[..., Result], world: World, invoke: Invoke, tmp_path: Path
) -> None:
    invoke(
        threshold, world.bundle, "--records", world.record("certificate"), "--data",
        world.data("certificate"), "--epsilon", 0.03, "--delta", 0.05,
        "--allow-unknown-provenance",
    )  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    reproduce("--write", page)
    text = page.read_text()
    assert text.startswith(f"# Page\n\n{BEGIN}\n\n### `large`")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "\nold\n" not in text
    assert "**ours, certified**: at most 3 points with 95.00 % confidence" in text
    assert "selection, then 2,500 others" in text
    assert text.count("**test itself**") == 4
    assert "By multiply-accumulates the cascade costs" in text
    once = page.read_bytes()
    reproduce("--write", page)
    assert page.read_bytes() == once


def test_another_large_model_gets_a_forecast(
    reproduce: Callable[..., Result], world: World
) -> None:
    text = reproduce("--large", "middle", "--large", "large").stdout
    middle, large = text.index("### `middle`"), text.index("### `large`")
    assert middle < text.index("ours, forecast, not certified") < large


def test_json_holds_the_numbers(reproduce: Callable[..., Result], world: World) -> None:
    save_split(world.data("train"), 900, seed=6)
    world.record("train")
    (study,) = json.loads(reproduce("--json").stdout)
    assert study["large"] == "large"
    assert set(study["scores"]) == {"train", "selection", "test"}
    assert len(study["lines"]) == 9
    assert study["unit"] == "macs"
    assert {model["name"] for model in study["front"]} <= {"tiny", "middle", "large"}


def test_records_of_another_split_are_refused(
    reproduce: Callable[..., Result], world: World
) -> None:
    shutil.rmtree(world.records / "test")
    world.record("certificate").rename(world.records / "test")
    assert "expected records of test, got of certificate" in reproduce(code=1).stderr


def test_what_does_not_fit_is_refused(
    reproduce: Callable[..., Result], world: World, tmp_path: Path
) -> None:
    assert "no model huge; it has large" in reproduce("--large", "huge", code=1).stderr
    assert "none can be its saver" in reproduce("--large", "tiny", code=1).stderr
    page = tmp_path / "page.md"
    page.write_text("no marks")
    assert f"expected a line {BEGIN}" in reproduce("--write", page, code=1).stderr
    assert "cannot be read" in reproduce("--write", tmp_path / "none.md", code=1).stderr
    record = load_record(world.records / "test" / "tiny.npz")
    other = record.meta.model_copy(update={"model_sha256": "0" * 64})
    save_record(
        world.records / "test" / "tiny.npz", type(record)(record.logits, record.labels, other)
    )
    assert "of another model" in reproduce(code=1).stderr
    (world.records / "test" / "tiny.npz").unlink()
    assert "Record it first" in reproduce(code=1).stderr
