"""The bench on a GPU: what it counts against the double, its stages alone, and no times there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from runtime import Cascade, bench, bench_gpu
from runtime.bench_stages import stages_of
from runtime.devices import GpuOptions
from tests.cuda import bundles
from tests.cuda_double.plans import write_plans
from tests.cuda_double.shim import shim

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
BATCH = 8
BUCKETS = {"saver": (1, 8, 16), "large": (1, 4)}  # the large stage runs a batch in two rounds
MODES = ("host", "padded", "graph")


@pytest.fixture
def folder(folder, tmp_path):
    frames = bundles.random_frames(37, (6, 6, 3))
    labels = np.random.default_rng(0).integers(0, bundles.CLASSES, 37)
    np.savez(tmp_path / "data.npz", images=frames, labels=labels)
    return folder


@pytest.fixture
def frames():
    return bundles.random_frames(BATCH, (6, 6, 3), seed=1)


def driver():
    return shim().driver


def report_of(folder, *options):
    """Run the bench; return its report, and what it shows."""
    out = folder / "report.json"
    data = folder.parent / "data.npz"
    arguments = ["--bundle", folder, "--data", data, "--batch", BATCH, "--iterations", 6]
    arguments += ["--warmup", 0, "--json", out, *options]
    result = CliRunner().invoke(bench.main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text()), result.output


def load(folder, mode):
    options = GpuOptions(mode=mode, verify=False)
    return Cascade.load(folder, "cuda", batch=BATCH, gpu=options)


@pytest.fixture
def opened(folder):
    """Open the bundle's stages in a mode, with or without transfers."""
    held = []

    def open_(mode, transfers=True):
        cascade = load(folder, mode)
        stages = stages_of(cascade, transfers=transfers)
        held.append((cascade, stages))
        return cascade, stages

    yield open_
    for cascade, stages in held:
        stages.close()
        cascade.close()


@pytest.mark.parametrize("transfers", ["--transfers", "--no-transfers"])
@pytest.mark.parametrize("mode", MODES)
def test_the_emulation_says_so_and_shows_no_times(mode, transfers, folder):
    report, shown = report_of(folder, "--device", "cuda", "--mode", mode, transfers, "--no-verify")
    assert shown.count("EMULATION: no GPU has run.") == 2
    device = report["device"]
    assert device["emulated"] is True
    assert (device["gpu"], device["mode"]) == ("Orin (double)", mode)
    assert device["transfers"] is (transfers == "--transfers")
    for subject in (report["cascade"], report["large_only"], *report["savers_only"]):
        assert subject["throughput"] is None
        assert subject["latency_ms"] == {"samples": 0}
    times = ["speedup", "overhead_ratio", "overhead_ratio_repeated", "fill_loss"]
    assert [report[key] for key in times] == [None] * 4
    assert {stage["engine_seconds"] for stage in report["stage_split"]} == {None}


def test_accuracy_and_escalation_are_those_of_the_cpu(folder):
    gpu, _ = report_of(folder, "--device", "cuda", "--no-verify")
    cpu, _ = report_of(folder, "--device", "cpu")
    assert (gpu["device"]["kind"], cpu["device"]["kind"]) == ("cuda", "cpu")
    for key in ("escalation_rate", "accuracy_drop", "agreement_with_large", "macs_per_image"):
        assert gpu[key] == cpu[key]
    for key in ("cascade", "large_only", "saver_only"):
        assert gpu[key]["accuracy"] == cpu[key]["accuracy"]


@pytest.mark.parametrize("mode", MODES)
def test_a_real_gpu_would_have_times_by_events(mode, folder, monkeypatch):
    monkeypatch.setattr(bench_gpu, "is_emulated", lambda: False)
    report, shown = report_of(folder, "--device", "cuda", "--mode", mode, "--no-verify")
    assert "EMULATION" not in shown
    assert "GPU time by events, ms per batch" in shown
    assert "up and down, GPU time per batch by events" in shown
    assert report["split_clock"] == "cuda_events"
    assert report["cascade"]["streamed_throughput"] > 0
    assert report["large_only"]["batch"] in BUCKETS["large"]
    for subject in (report["cascade"], report["large_only"], *report["savers_only"]):
        assert subject["throughput"] > 0
    assert report["speedup"] > 0 and report["overhead_ratio"] > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transfers", [True, False])
def test_what_is_counted_per_batch_is_what_the_double_counts(mode, transfers, opened, frames):
    _, stages = opened(mode, transfers)
    stages.reset()
    with stages.placed([frames]) as (placed,):
        driver().reset()
        stages.run(placed, None)
        counts = driver().counts
    found = stages.per_batch()
    assert found["waits"] == counts.waits - 1  # the last one is for the answers
    assert found["waits"] == (1 if mode == "host" else 0)
    assert found["copies"] == sum("Memcpy" in name for name in counts.calls)
    assert found["launches"] == counts.launches + counts.graph_launches


@pytest.mark.parametrize(
    ("mode", "launches", "waits"), [("host", 9, 2), ("padded", 9, 0), ("graph", 1, 0)]
)
def test_launches_and_waits_of_the_demo_are_those_of_the_documents(mode, launches, waits, gpu, zoo):
    gpu()
    frames = np.load(zoo / "data" / "test.npz")["images"][:BATCH]
    forms = ("fp32",) * 3
    options = GpuOptions(mode=mode, verify=False)
    with Cascade.load(zoo, "cuda", batch=BATCH, forms=forms, gpu=options) as cascade:
        stages = stages_of(cascade, transfers=True)
        stages.run(frames, np.ones((2, BATCH), np.uint8))
        found = stages.per_batch()
    assert (found["launches"], found["waits"]) == (launches, waits)
    row = next(line for line in DESIGN.read_text().splitlines() if line.startswith(f"| `{mode}` |"))
    assert f"| {launches} / {waits}" in row


@pytest.mark.parametrize("mode", MODES)
def test_without_transfers_neither_frames_nor_answers_are_copied(mode, opened, frames):
    _, stages = opened(mode, transfers=False)
    with stages.placed([frames]) as (placed,):
        driver().reset()
        stages.run(placed, None)
        history = list(driver().history)
        assert stages.deepest().shape == (BATCH,)
    assert history.count("ran copy in") == 2  # settings, and the table of frames
    assert history.count("ran copy out") == (1 if mode == "host" else 0)  # a count


@pytest.mark.parametrize("transfers", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_which_stage_answered_is_what_the_cascade_says(mode, transfers, opened, frames):
    cascade, stages = opened(mode, transfers)
    cascade.thresholds = (float(np.median(cascade.run(frames).confidence)),)
    expected = cascade.run(frames).stage
    assert len(set(expected)) == 2
    with stages.placed([frames, frames[::-1]]) as placed:
        for batch, order in zip(placed, (1, -1), strict=True):
            stages.run(batch, None)
            np.testing.assert_array_equal(stages.deepest(), expected[::order])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [0, 1])
def test_a_stage_alone_answers_what_its_logits_say(mode, number, opened, frames):
    cascade, stages = opened(mode)
    expected = cascade.executor.stage_logits(frames)[number].argmax(1)
    for rows in (BATCH, 3, BATCH):
        stages.classify(number, frames[:rows])
        label, confidence, stage = stages._alone[number]._slot.answers()
        np.testing.assert_array_equal(label, expected[:rows])
        assert (confidence > 0).all() and (stage == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_split_has_the_rows_of_each_stage(mode, opened, frames):
    _, stages = opened(mode)
    stages.reset()
    stages.trace(frames, None, [BATCH, 5])
    stages.trace(frames[:6], None, [6, 0])
    saver, large = stages.split()
    assert (saver.stage, saver.rows) == ("saver", BATCH + 6)
    assert (large.stage, large.rows) == ("large", 5)
    assert min(saver.feed, saver.engine, saver.gate, large.feed, large.engine, large.gate) >= 0
    stages.reset()
    assert [split.rows for split in stages.split()] == [0, 0]


def test_tracing_waits_only_at_its_end(opened, frames):
    _, stages = opened("host")
    driver().reset()
    stages.trace(frames, None, [BATCH, 5])
    assert driver().counts.waits == 1


def test_batch_sizes_are_those_of_the_engine(opened, monkeypatch):
    monkeypatch.setattr(bench_gpu, "is_emulated", lambda: False)
    _, stages = opened("host")
    assert stages.batch_sizes(0, (1, 32)) == BUCKETS["saver"]
    assert stages.batch_sizes(1, (1, 32)) == BUCKETS["large"]


def test_memory_of_processes_is_only_for_the_cpu(folder):
    arguments = ["--bundle", str(folder), "--device", "cuda", "--no-verify", "--memory"]
    arguments += ["--batch", str(BATCH)]
    result = CliRunner().invoke(bench.main, arguments)
    assert result.exit_code == 1
    assert "--memory: only for the CPU" in result.output


def test_a_mode_that_the_driver_cannot_do_is_refused_with_the_way_out(gpu, folder):
    gpu(driver=(12, 2))
    write_plans(folder, BUCKETS)
    arguments = ["--bundle", folder, "--device", "cuda", "--mode", "graph", "--batch", BATCH]
    result = CliRunner().invoke(bench.main, [*map(str, arguments), "--no-verify"])
    assert result.exit_code == 1
    assert "launch mode graph is not possible: conditional nodes need" in result.output
    assert "Use mode host" in result.output


def test_a_jetson_tells_board_power_mode_and_clocks(folder, monkeypatch):
    monkeypatch.setattr(bench_gpu, "board", lambda: "NVIDIA Jetson Orin Nano Developer Kit")
    monkeypatch.setattr(bench_gpu, "power_mode", lambda examination: "25W")
    monkeypatch.setattr(bench_gpu, "clocks_held", lambda examination: False)
    report, shown = report_of(folder, "--device", "cuda", "--no-verify")
    device = report["device"]
    assert (device["power_mode"], device["clocks_held"]) == ("25W", False)
    assert "Orin (double) on NVIDIA Jetson Orin Nano" in shown
    assert "mode 25W, clocks not held" in shown


def test_the_heading_names_gpu_driver_library_mode_and_memory(folder):
    _, shown = report_of(folder, "--device", "cuda", "--mode", "padded", "--no-verify")
    for text in ("Orin (double), sm_87", "driver of CUDA 13.0", "TensorRT 10.13", "padded: asked"):
        assert text in shown
    assert "MiB per batch under way, 2 of them" in shown
