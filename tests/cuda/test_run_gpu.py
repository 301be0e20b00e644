"""Classifying files on a GPU: the answers of the CPU, in order, with two batches under way."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from runtime import run
from tests.cuda import bundles
from tests.cuda_double.shim import shim

BATCH = 4
BUCKETS = (1, BATCH)
FRAMES = 11


@pytest.fixture
def folder(folder, tmp_path):
    np.savez(tmp_path / "some.npz", images=bundles.random_frames(FRAMES, (6, 6, 3)))
    return folder


def invoke(folder, *options):
    arguments = [folder.parent / "some.npz", "--bundle", folder, "--batch", BATCH, *options]
    return CliRunner().invoke(run.main, list(map(str, arguments)))


@pytest.mark.parametrize("mode", ["auto", "host", "padded", "graph"])
def test_answers_are_those_of_the_cpu_in_order(mode, folder):
    result = invoke(folder, "--device", "cuda", "--mode", mode, "--no-verify")
    assert result.exit_code == 0, result.output
    expected = invoke(folder, "--device", "cpu")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    wanted = [json.loads(line) for line in expected.stdout.splitlines()]
    assert [line["index"] for line in found] == list(range(FRAMES))
    for line, other in zip(found, wanted, strict=True):
        assert line.pop("confidence") == pytest.approx(other.pop("confidence"), abs=1e-5)
        assert line == other


def test_the_next_batch_is_enqueued_before_the_answers_of_the_last_are_awaited(folder):
    driver = shim().driver
    result = invoke(folder, "--device", "cuda", "--mode", "graph", "--no-verify")
    assert result.exit_code == 0, result.output
    calls = [name for name in driver.counts.calls if name in ("cuGraphLaunch", AWAIT)]
    launches = [place for place, name in enumerate(calls) if name == "cuGraphLaunch"]
    assert len(launches) == 3
    assert calls[launches[0] : launches[1]] == ["cuGraphLaunch"]
    assert calls[launches[1] : launches[2]].count(AWAIT) == 1


AWAIT = "cuEventSynchronize"


def test_a_gpu_that_cannot_run_the_bundle_is_one_warning_and_the_cpu(folder, caplog):
    for plan in (folder / "plans").iterdir():
        plan.unlink()
    result = invoke(folder, "--device", "auto")
    assert result.exit_code == 0, result.output
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert "The GPU is not used" in warning and "python -m engines.build" in warning
    refused = invoke(folder, "--device", "cuda")
    assert refused.exit_code == 1
    assert "python -m engines.build" in refused.output
