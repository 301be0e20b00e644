"""What a cascade is worth: the verdict printed, and both sides run in turns on the same frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from calibration.pool import load_pool
from calibration.records import load_data
from calibration.report_material import Pool, gather
from calibration.stopwatch import LEAST_TURNS, TURN, batched, model_run, turns
from calibration.worth import main
from runtime.bundle import load_bundle
from tests.calibration.conftest import save_split

Invoke = Callable[..., Result]
World = Any


@pytest.fixture
def worth(invoke: Invoke, world: World) -> Callable[..., Result]:
    """Run the command on a bundle tiny -> large."""
    world.make_bundle("tiny", "large")
    save_split(world.data("test"), 700, seed=5)

    def run(*options: object, code: int = 0) -> Result:
        return invoke(main, world.bundle, "--threads", 1, *options, code=code)

    return run


def test_the_verdict_is_printed_by_every_kind_of_cost(worth: Callable[..., Result]) -> None:
    text = worth("--seconds", 0, "--batch", 4).stdout
    assert text.startswith("tiny -> large on 700 test images: ")
    for kind in ("By multiply-accumulates", "By measured time", "By the wall clock"):
        (line,) = [line for line in text.splitlines() if line.startswith(kind)]
        assert "95 % interval" in line
        assert "at most 50 %" in line


def test_json_holds_the_numbers(worth: Callable[..., Result]) -> None:
    found = json.loads(worth("--json", "--macs-only").stdout)
    (macs,) = found["standings"]
    assert macs["unit"] == "macs"
    assert macs["verdict"] in ("yes", "no", "not beyond chance")
    assert macs["interval"][0] <= macs["share"] <= macs["interval"][1]
    assert macs["cost"] / macs["single_cost"] == pytest.approx(macs["share"])
    assert found["n"] == 700


def test_the_certificate_split_and_absent_data_are_refused(
    worth: Callable[..., Result], world: World
) -> None:
    result = worth("--data", world.data("certificate"), code=1)
    assert "decides nothing but the certificate" in result.stderr
    world.data("test").unlink()
    assert "Pass the test split as --data NPZ" in worth(code=1).stderr


def test_turns_give_both_the_same_frames_in_their_batches() -> None:
    frames: Any = np.arange(600)
    seen: dict[str, list[np.ndarray]] = {"cascade": [], "alone": []}
    runs = {
        name: batched(lambda part, name=name: seen[name].append(part), size)
        for name, size in (("cascade", 100), ("alone", 256))
    }
    spent = list(turns(runs, frames, seconds=0))
    assert len(spent) == LEAST_TURNS
    assert all(len(turn) == 2 for turn in spent)
    whole = [np.concatenate(parts) for parts in seen.values()]
    assert (whole[0] == whole[1]).all()
    assert set(whole[0]) == set(range(2 * TURN))
    assert [len(part) for part in seen["cascade"][:3]] == [100, 100, 56]
    assert {len(part) for part in seen["alone"]} == {TURN}


def test_a_model_run_answers_like_its_records(world: World) -> None:
    bundle = load_bundle(world.make_bundle("tiny", "large"))
    data, folder = load_data(world.data("selection")), world.record("selection")
    material = gather(bundle, Pool(world.pool, load_pool(world.pool)), data, folder)
    (middle,) = material.others
    run = model_run(middle, bundle.spec.input, threads=1)
    assert (run(data.images[:37]) == middle.label[:37]).all()
