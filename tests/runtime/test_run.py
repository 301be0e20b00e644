"""Classifying files from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from runtime import run
from runtime.bundle import demo_folder
from runtime.cascade import Cascade
from runtime.images import load_arrays

FRAMES = load_arrays(demo_folder() / "data" / "selection.npz")[0][:7]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(run.main, [str(item) for item in arguments])


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, frame in enumerate(FRAMES):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame)
    return tmp_path


def test_a_folder_gives_the_answers_of_the_cascade_in_order_of_name(folder):
    result = invoke(folder, "--batch", "3")
    assert result.exit_code == 0, result.output
    with Cascade.load(demo_folder()) as cascade:
        expected = cascade.run(FRAMES)
        stages, names = cascade.stage_names, cascade.bundle.spec.labels
    for index, line in enumerate(lines(result.stdout)):
        assert line["source"] == str(folder / f"{index}.png")
        assert line["label"] == expected.label[index]
        assert line["name"] == names[expected.label[index]]
        assert line["confidence"] == pytest.approx(expected.confidence[index], abs=1e-5)
        assert line["stage"] == stages[expected.stage[index]]
    assert len(lines(result.stdout)) == len(FRAMES)


def test_a_picture_that_does_not_decode_is_reported_and_the_rest_goes_on(folder):
    (folder / "3.png").write_bytes(b"not a picture")
    result = invoke(folder)
    assert result.exit_code == 2
    answers = lines(result.stdout)
    assert [("error" in line) for line in answers] == [index == 3 for index in range(7)]
    assert "does not decode" in answers[3]["error"]
    assert "1 not decoded" in result.stderr


def test_nothing_that_decodes_is_all_errors(tmp_path):
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"not a picture")
    result = invoke(tmp_path, "--batch", "2")
    assert result.exit_code == 2
    assert [("error" in line) for line in lines(result.stdout)] == [True] * 5


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_runs_of_pictures_have_one_shape_and_keep_their_order(size):
    rng = np.random.default_rng(size)
    shapes = [None, (2, 2, 1), (3, 2, 1)]
    kinds = np.repeat(rng.integers(0, 3, 30), rng.integers(1, 4, 30))
    pictures = [
        run.Picture("x", k, None if kind == 0 else np.zeros(shapes[kind], np.uint8))
        for k, kind in enumerate(kinds)
    ]
    groups = list(run._groups(pictures, size))
    assert [picture.index for group in groups for picture in group] == list(range(len(pictures)))
    for group in groups:
        frames = [picture.frame for picture in group if picture.frame is not None]
        assert 1 <= len(frames) <= size
        assert len({frame.shape for frame in frames}) == 1


def test_npz_rows_are_numbered(tmp_path):
    np.savez(tmp_path / "some.npz", images=FRAMES)
    answers = lines(invoke(tmp_path / "some.npz").stdout)
    assert [line["index"] for line in answers] == list(range(7))


def test_a_drift_guard_leaves_the_answers_and_says_what_it_saw(folder):
    plain = invoke(folder)
    gears = len(Cascade.load(demo_folder()).gears)
    references = ",".join(["0.9"] * (gears - 1))
    result = invoke(folder, "--drift-guard", "1", "--drift-reference", references)
    assert result.exit_code == 0, result.output
    assert result.stdout == plain.stdout
    assert "drift guard: 7 of 7 images drawn" in result.stderr
    assert "alarms: 0" in result.stderr


def test_an_alarm_is_a_warning_and_the_cascade_is_no_longer_called_certified(
    tmp_path, make_bundle, random_frames, caplog
):
    """The last stage answers with the darkest pixel, the first with the brightest."""
    folder = make_bundle("echo", "negated", thresholds=[0.3])
    np.savez(tmp_path / "some.npz", images=random_frames(200))
    options = ["--bundle", folder, "--drift-guard", "1", "--drift-reference", "0.05"]
    result = invoke(tmp_path / "some.npz", *options)
    assert result.exit_code == 0, result.output
    assert len(lines(result.stdout)) == 200
    assert "Drift alarm 1 at gear 0" in caplog.text
    assert "alarms: 1" in result.stderr
    assert {line["stage"] for line in lines(result.stdout)[-32:]} == {"negated"}


def test_a_gear_sends_more_images_on(folder):
    highest = len(Cascade.load(demo_folder()).gears) - 1
    result = invoke(folder, "--gear", str(highest))
    assert {line["stage"] for line in lines(result.stdout)} == {"large"}
    assert "certified: accuracy drop" in result.stderr


def test_out_writes_the_whole_file_or_nothing(folder):
    out = folder / "answers.jsonl"
    assert invoke(folder, "--out", out).exit_code == 0
    assert len(lines(out.read_text())) == 7
    out.unlink()
    assert invoke(folder / "missing.png", "--out", out).exit_code == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.png"], "missing.png: not found"),
        (["."], "no pictures found"),
        (["--bundle", "missing", "."], "cascade.json: not found"),
        (["x.npz", "--gear", "99"], "gear: expected 0 to"),
        (["x.npz", "--drift-guard", "2"], "share: expected above 0, at most 1, got 2"),
        (["x.npz", "--drift-guard", "0.1", "--drift-reference", "1.5"], "from 0 to 1"),
        (["x.npz", "--drift-guard", "0.1", "--drift-reference", "x"], "got 'x'"),
        (["x.npz", "--drift-reference", "0.1"], "goes with --drift-guard"),
    ],
)
def test_bad_arguments_are_refused_in_one_message(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", images=FRAMES)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert expected in result.output
    assert "Traceback" not in result.output


def test_an_unwritable_output_is_an_error_without_a_traceback(folder):
    result = invoke(folder, "--out", folder / "missing" / "answers.jsonl")
    assert result.exit_code == 1
    assert "missing" in result.output
    assert "Traceback" not in result.output
