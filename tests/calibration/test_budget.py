"""The budget: a look at the data is paid for once, before it happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.budget import Attempt, Budget, Entry, Outcome, Question
from calibration.errors import CalibrationError
from runtime.bundle import demo_folder
from runtime.schema import Combination, CoveredStage, Score, ThresholdPath

DATA = "d" * 64
REFUSED = Outcome(refused="too few samples")


def attempt(number: int, *, delta: float = 0.0125, data: str = DATA) -> Attempt:
    return Attempt(data, f"{number:064x}", delta)


def run(budget: Budget, asked: Attempt) -> Outcome | None:
    stored = budget.open(asked)
    if stored is None:
        budget.settle(asked, REFUSED)
    return stored


def question(**changes: object) -> Question:
    stage = CoveredStage(
        name="s", model_sha256="a" * 64, engine="e", form="fp32", preprocessing_sha256="b" * 64
    )
    plain = Question(
        quantity="accuracy_drop",
        stages=(stage, stage),
        scores=(Score(),),
        path=ThresholdPath(),
        epsilon=0.005,
        method="wsr",
    )
    return plain.model_copy(update=changes)


def test_the_intent_is_on_disk_before_anything_is_computed(tmp_path: Path) -> None:
    path = tmp_path / "budget.jsonl"
    assert Budget(path).open(attempt(1)) is None
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "format": "tinysaver.certifications/1",
        "data_sha256": DATA,
        "cascade": f"{1:064x}",
        "delta": 0.0125,
        "result": None,
    }
    assert Budget(path).spent() == 0.0125


def test_the_result_is_appended_and_costs_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "budget.jsonl"
    run(Budget(path), attempt(1))
    entries = [Entry.model_validate_json(line) for line in path.read_text().splitlines()]
    assert [entry.result for entry in entries] == [None, REFUSED]
    assert Budget(path).spent() == 0.0125


def test_an_identical_run_is_free_and_gives_the_stored_outcome(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "budget.jsonl")
    assert run(budget, attempt(1)) is None
    before = (tmp_path / "budget.jsonl").read_bytes()
    assert run(budget, attempt(1)) == REFUSED
    assert (tmp_path / "budget.jsonl").read_bytes() == before


def test_a_run_that_crashed_may_be_run_again_but_was_paid_for(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "budget.jsonl")
    assert budget.open(attempt(1)) is None
    assert budget.open(attempt(1)) is None
    assert budget.spent() == 0.0125


def test_four_looks_fit_and_a_fifth_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "budget.jsonl"
    budget = Budget(path)
    for number in range(4):
        run(budget, attempt(number))
    before = path.read_bytes()
    with pytest.raises(CalibrationError, match=r"spent: 0\.05 of 0\.05 used.*delta 0\.0125"):
        budget.open(attempt(4))
    assert path.read_bytes() == before
    assert run(budget, attempt(2)) == REFUSED


def test_another_delta_is_another_look(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "budget.jsonl")
    run(budget, attempt(1))
    run(budget, attempt(1, delta=0.025))
    assert budget.spent() == pytest.approx(0.0375)
    with pytest.raises(CalibrationError, match="spent"):
        budget.open(attempt(1, delta=0.02))


def test_a_delta_above_the_whole_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"0 of 0\.05 used"):
        Budget(tmp_path / "budget.jsonl").open(attempt(1, delta=0.051))


def test_other_data_needs_a_budget_of_its_own(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "budget.jsonl")
    run(budget, attempt(1))
    with pytest.raises(CalibrationError, match="belongs to other data"):
        budget.open(attempt(1, data="e" * 64))


@pytest.mark.parametrize("damage", [b"not json\n", b'{"delta": 0.01}\n', b"\xff\xfe\n", b"{}"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "budget.jsonl"
    run(Budget(path), attempt(1))
    damaged = path.read_bytes() + damage
    path.write_bytes(damaged)
    with pytest.raises(CalibrationError, match=r"(line 3|not text).*version control"):
        Budget(path).open(attempt(2))
    assert path.read_bytes() == damaged


def test_a_cut_off_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "budget.jsonl"
    run(Budget(path), attempt(1))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CalibrationError, match="line 2 is cut off"):
        Budget(path).open(attempt(1))


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be written"):
        Budget(tmp_path / "missing" / "budget.jsonl").open(attempt(1))


def test_an_empty_file_is_an_unspent_budget(tmp_path: Path) -> None:
    path = tmp_path / "budget.jsonl"
    path.touch()
    assert Budget(path).open(attempt(1)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"quantity": "disagreement"},
        {"epsilon": 0.006},
        {"method": "harm_only"},
        {"path": ThresholdPath(points=499)},
        {"scores": (Score(temperature=2.0),)},
        {"stages": question().stages[:1]},
        {"combination": Combination(stage="s", weight=0.5)},
        {"path": ThresholdPath(class_offsets=((0.0, 0.0),))},
    ],
)
def test_every_part_of_a_question_is_in_its_hash(changes: dict[str, object]) -> None:
    assert question(**changes).sha256 != question().sha256
    assert question().sha256 == question().sha256


def test_questions_of_before_keep_their_hash_so_that_the_zoos_are_free_again() -> None:
    lines = (demo_folder() / "certifications.jsonl").read_text().splitlines()
    entries = [Entry.model_validate_json(line) for line in lines]
    results = [(e.cascade, e.result.certificate) for e in entries if e.result]
    certificates = [(asked, found) for asked, found in results if found and found.covers]
    assert len(certificates) >= 2
    for asked, found in certificates:
        assert found.covers is not None
        again = Question(
            quantity=found.quantity,
            stages=found.covers.stages,
            scores=found.scores,
            combination=found.combination,
            path=found.path,
            epsilon=found.epsilon,
            method=found.method,
        )
        assert again.sha256 == asked
