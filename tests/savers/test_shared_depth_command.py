"""``savers.shared_depth`` on images and text, and what it measures of memory."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from runtime.bundle import load_bundle
from runtime.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_a_text_is_cut_into_windows_and_the_bytes_after_them():
    from savers.text import sequences, split_text

    text = split_text(bytes(range(200)))
    assert (len(text.train), len(text.held_out)) == (180, 20)
    windows = sequences(text.held_out, 6)
    rows = np.arange(len(windows.labels))
    assert windows.plain(rows).tolist()[0] == [180, 181, 182, 183, 184, 185]
    assert windows.labels.tolist()[2] == [193, 194, 195, 196, 197, 198]
    with pytest.raises(InputError, match="text of 20 bytes: expected more than 20"):
        sequences(text.held_out, 20)


def test_perplexity_of_a_uniform_answer_is_the_number_of_bytes():
    import torch

    from savers.text import perplexity, sequences

    class Uniform(torch.nn.Module):
        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 256)

    examples = sequences(np.arange(130, dtype=np.uint8), 5)
    assert perplexity(Uniform(), examples, batch=7) == pytest.approx(256, rel=1e-5)


SMALL = ["--width", "12", "--heads", "3", "--hidden", "20", "--large-steps", "6", "--steps", "2"]


def run(*arguments):
    from savers.shared_depth import main

    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_one_command_trains_and_writes_a_cascade(tmp_path):
    out = tmp_path / "bundle"
    done = run("images", "--epochs", 1, *SMALL, "--work", tmp_path / "work", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["steps"] == [1, 2, 3, 4, 6]
    assert [(row["steps"], row["dedicated"]) for row in found["rows"]] == [
        (6, False),
        (4, False),
        (3, False),
        (2, False),
        (1, False),
        (2, True),
    ]
    assert [stage.name for stage in load_bundle(out).spec.stages] == ["steps-2", "steps-6"]
    assert load_bundle(out).spec.provenance[0].purpose == "training"
    again = run("images", "--epochs", 1, *SMALL, "--work", tmp_path / "work", "--out", out)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert "Traceback" not in again.output


def test_one_command_trains_a_language_model(tmp_path):
    (tmp_path / "text").write_bytes(b"to be or not to be, " * 200)
    given = ["--file", tmp_path / "text", "--tokens", 8, "--epochs", 1]
    done = run("text", *given, *SMALL, "--work", tmp_path / "work")
    assert done.exit_code == 0, done.output
    lines = done.stdout.rstrip().splitlines()
    assert lines[2].split() == ["steps", "perplexity", "per", "byte"]
    assert lines[-1].endswith("trained for these steps alone")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--steps", 0], 2, "0 is not in the range x>=1"),
        (["--steps", 12], 2, "--steps 12: expected fewer than --large-steps, 12"),
        (["--width", 13], 1, "width 13: expected a multiple of the number of heads, 4"),
    ],
)
def test_bad_options_are_explained(tmp_path, arguments, code, expected):
    done = run("images", *arguments, "--out", tmp_path / "bundle")
    assert done.exit_code == code
    assert expected in done.stderr
    assert "Traceback" not in done.output


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("images", "--out", tmp_path / "bundle")
    assert done.exit_code == 1
    assert "needs torch, which is not installed. Install it: pip install" in done.stderr
    assert "[train]" in done.stderr


def test_the_second_stage_adds_little_memory_to_a_block_of_28_megabytes(tmp_path):
    from savers.depth_memory import measure_sharing
    from savers.depth_tasks import random_cascade

    found = measure_sharing(random_cascade(768, tmp_path / "bundle", steps=(1, 2)))
    assert found.weights >= 20e6
    assert found.is_met, found


def test_memory_is_measured_of_stages_that_share_weights_and_of_no_others():
    from runtime.bundle import demo_folder

    done = run("memory", "--bundle", demo_folder())
    assert done.exit_code == 1
    assert "expected stages that share a file of weights, found none" in done.stderr
