"""The bench: its numbers against independent sums, its outputs, its refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from runtime import bench, bench_timing, devices
from runtime.bench_memory import measure_memory
from runtime.bundle import demo_folder
from runtime.cascade import Cascade
from runtime.errors import PlanError
from runtime.images import load_arrays
from tests.runtime.certified import certified

QUICK = ["--device", "cpu", "--quick", "--iterations", "8", "--warmup", "0"]
IMAGES = 300
TEST_DATA = demo_folder() / "data" / "test.npz"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few labelled images."""
    frames, labels = load_arrays(TEST_DATA)
    path = tmp_path_factory.mktemp("data") / "some.npz"
    np.savez(path, images=frames[:IMAGES], labels=labels[:IMAGES])
    return path


@pytest.fixture(scope="module")
def invoke(data: Path) -> Callable[..., Result]:
    """Run the bench, on these images if no others are named."""

    def run(*arguments: str | Path) -> Result:
        texts = [str(item) for item in arguments]
        if "--data" not in texts:
            texts += ["--data", str(data)]
        return CliRunner().invoke(bench.main, texts)

    return run


@pytest.fixture(scope="module")
def report(invoke, tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "report.json"
    result = invoke(*QUICK, "--json", path)
    assert result.exit_code == 0, result.output
    return json.loads(path.read_text())


def test_every_subject_has_throughput_latency_and_accuracy(report):
    for key in ("cascade", "large_only", "saver_only"):
        subject = report[key]
        assert subject["throughput"] > 0
        assert 0 < subject["accuracy"] < 1
        times = subject["latency_ms"]
        assert times["min"] <= times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
        assert times["p99_reliable"] is False


def test_the_counted_batches_are_the_ones_asked_for(report):
    assert report["cascade"]["latency_ms"]["samples"] == 8
    assert report["cascade"]["batch"] == 32
    assert report["stage_split"][0]["rows"] == 8 * 32


def test_accuracy_and_rates_agree_with_a_plain_run(data, report):
    frames, labels = load_arrays(data)
    rows = np.random.default_rng(0).permutation(len(frames))
    with Cascade.load(demo_folder()) as cascade:
        results = cascade.run(frames[rows])
        macs = [stage.macs for stage in cascade.bundle.spec.stages]
    assert report["cascade"]["accuracy"] == pytest.approx((results.label == labels[rows]).mean())
    shares = [1.0]
    for gate, rate in enumerate(report["escalation_rate"]):
        shares.append((results.stage > gate).mean())
        assert rate["rate"] == pytest.approx(shares[-1])
        assert rate["interval"][0] < rate["rate"] < rate["interval"][1]
    assert report["macs_saved"] == pytest.approx(1 - np.dot(shares, macs) / macs[-1])


def test_accuracy_drop_is_the_difference_of_the_accuracies(report):
    drop = report["accuracy_drop"]
    difference = report["large_only"]["accuracy"] - report["cascade"]["accuracy"]
    assert drop["value"] == pytest.approx(difference)
    assert drop["value"] == pytest.approx((drop["harm"] - drop["help"]) / IMAGES)


def test_ratios_are_positive_and_the_environment_is_named(report):
    assert report["speedup"] > 0
    assert report["overhead_ratio"] > 0
    assert report["fill_loss"] > 0
    assert {"cpu", "onnxruntime", "python"} <= set(report["environment"])
    assert (report["device"]["kind"], report["device"]["emulated"]) == ("cpu", False)
    assert report["device"]["threads"] >= 1
    assert report["interrupted"] is False


def test_csv_has_a_line_for_the_cascade_and_each_model(invoke, tmp_path, report):
    result = invoke(*QUICK, "--csv", tmp_path / "table.csv")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(rows) == 1 + len(report["stages"])
    assert rows[0]["subject"] == "cascade"
    assert float(rows[0]["p50_ms"]) > 0


def test_json_to_standard_output_is_nothing_but_json(invoke):
    result = invoke(*QUICK, "--json", "-")
    assert json.loads(result.stdout)["cascade"]["throughput"] > 0


def test_plot_writes_a_picture(invoke, tmp_path):
    result = invoke(*QUICK, "--plot", tmp_path / "curve.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_forced_rate_is_met_exactly_and_is_not_certified(invoke, tmp_path):
    gates = len(Cascade.load(demo_folder()).bundle.spec.gates)
    rates = [0.5, 0.25][:gates]
    text = ",".join(map(str, rates))
    result = invoke(*QUICK, "--escalation-rate", text, "--json", tmp_path / "o.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "o.json").read_text())
    assert [rate["rate"] for rate in report["escalation_rate"]] == pytest.approx(rates)
    assert report["certificate"]["status"] != "certified"


def test_threshold_one_sends_everything_to_the_large_model(invoke, tmp_path):
    result = invoke(*QUICK, "--threshold", "1", "--json", tmp_path / "o.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["cascade"]["accuracy"] == report["large_only"]["accuracy"]
    assert report["macs_saved"] < 0
    assert report["certificate"]["status"] == "certified"  # the first point that passed


@pytest.fixture
def small_report(cascade_json, write_bundle, tmp_path):
    """Return the report of a certified cascade of two tiny stages, with a gear at 0.875."""
    content = cascade_json("echo", "negated", thresholds=[0.3])
    folder = write_bundle(certified(content, gears=[[0.875]]))
    images = np.random.default_rng(0).integers(0, 9, (300, 2, 2, 1)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images)

    def run(*options):
        path = tmp_path / "report.json"
        common = ["--bundle", folder, "--data", tmp_path / "images.npz", "--json", path]
        arguments = [str(item) for item in (*QUICK, *common, *options)]
        result = CliRunner().invoke(bench.main, arguments)
        assert result.exit_code == 0, result.output
        return json.loads(path.read_text()), result.output

    return run


def test_a_gear_is_certified_and_sends_more_on(small_report):
    plain, _ = small_report()
    found, output = small_report("--gear", 1)
    assert (plain["gear"], found["gear"], found["thresholds"]) == (0, 1, [0.875])
    assert "thresholds 0.875 (gear 1)" in output
    assert found["certificate"]["status"] == plain["certificate"]["status"] == "certified"
    assert found["macs_per_image"] > plain["macs_per_image"]
    assert small_report("--threshold", 0.5)[0]["gear"] is None


def test_the_macs_of_a_drift_guard_are_part_of_those_of_an_image(small_report):
    plain, _ = small_report()
    found, output = small_report("--drift-guard", 0.25)
    accepted = 1 - plain["escalation_rate"][-1]["rate"]
    assert 0 < accepted < 1
    more = 0.25 * accepted * (16 + 16)
    assert found["drift_guard"] == pytest.approx(
        {"share": 0.25, "shadowed": 0.25 * accepted, "macs_per_image": more}
    )
    assert found["macs_per_image"] == pytest.approx(plain["macs_per_image"] + more)
    assert found["macs_saved"] == pytest.approx(plain["macs_saved"] - more / 16)
    assert plain["drift_guard"] is None and "drift guard" in output


def test_memory_of_both_processes_is_measured(invoke, tmp_path):
    result = invoke(*QUICK, "--memory", "--json", tmp_path / "o.json")
    assert result.exit_code == 0, result.output
    peak = json.loads((tmp_path / "o.json").read_text())["peak_memory"]
    assert peak["ratio"] == pytest.approx(peak["cascade"] / peak["sessions"])
    assert min(peak["cascade"], peak["sessions"]) > 10e6


def test_peak_memory_is_of_the_measured_process_and_not_of_the_one_that_started_it():
    ballast = np.ones(100_000_000)
    forms = ("fp32",) * 3
    peak = measure_memory(demo_folder(), TEST_DATA, forms, batch=32, threads=1)
    assert max(peak) < ballast.nbytes


def test_ctrl_c_prints_what_there_is_and_exits_with_130(invoke, tmp_path, monkeypatch):
    takes = []

    def interrupt_the_second(self, batches, original=bench_timing._Turn.take):
        if takes:
            raise KeyboardInterrupt
        takes.append(batches)
        return original(self, 2)

    monkeypatch.setattr(bench_timing._Turn, "take", interrupt_the_second)
    result = invoke(*QUICK, "--json", tmp_path / "o.json")
    assert result.exit_code == 130
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["interrupted"] is True
    assert report["cascade"]["latency_ms"]["samples"] == 2
    assert "Interrupted" in result.output


def test_ctrl_c_before_anything_was_measured_still_reports(invoke, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure_accuracy", interrupt)
    result = invoke(*QUICK, "--json", tmp_path / "o.json")
    assert result.exit_code == 130, result.output
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["cascade"]["accuracy"] is None
    assert report["speedup"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--threshold", "1.5"], "expected numbers from 0 to 1"),
        (["--threshold", "a"], "got 'a'"),
        (["--threshold", ".1,.2,.3,.4"], "thresholds: expected"),
        (["--percentiles", "50,101"], "expected numbers from 0 to 100"),
        (["--escalation-rate", "0.1,0.2,0.3,0.4"], "do not rise"),
        (["--threshold", "0.5", "--escalation-rate", "0.5"], "give one of them"),
        (["--gear", "1", "--threshold", "0.5"], "give one of them"),
        (["--gear", "99"], "gear: expected 0 to"),
        (["--drift-guard", "0"], "share: expected above 0, at most 1, got 0"),
        (["--drift-guard", "1.5"], "share: expected above 0, at most 1, got 1.5"),
        (["--threads", "0"], "expected at least 1"),
        (["--data", "missing.npz"], "missing.npz: not found"),
        (["--bundle", "missing"], "cascade.json: not found"),
        (["--no-transfers"], "--no-transfers: there are none on the CPU"),
        (["--device", "tpu"], "device: expected auto, cpu, cuda or cuda:1, got 'tpu'"),
        (["--device", "cuda:x"], "got 'cuda:x'"),
        (["--json", "missing/out.json"], "expected a file in an existing folder"),
    ],
)
def test_bad_arguments_are_refused_in_one_message(invoke, arguments, expected):
    result = invoke(*QUICK, *arguments)
    assert result.exit_code == 1
    assert expected in result.output
    assert "Traceback" not in result.output


def test_labels_outside_the_classes_are_refused(invoke, tmp_path):
    frames = np.zeros((3, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "bad.npz", images=frames, labels=np.array([0, 1, 10]))
    result = invoke(*QUICK, "--data", tmp_path / "bad.npz")
    assert result.exit_code == 1
    assert "expected 0 to 9, got up to 10" in result.output


def test_a_gpu_that_cannot_be_used_leaves_the_cpu_all_its_batch_sizes(invoke, monkeypatch, caplog):
    monkeypatch.setattr(devices, "_has_gpu", lambda: True)
    monkeypatch.setattr(devices, "_open_gpu", unusable)
    sizes = []

    def take_the_first(self, number, wanted):
        sizes.append(self._stages.batch_sizes(number, wanted))
        self._stages.classify(number, self._frames[np.arange(256) % IMAGES])
        return sizes[-1][0]

    monkeypatch.setattr(bench_timing._Turn, "best_batch", take_the_first)
    result = invoke("--device", "auto", *QUICK[2:], "--json", "-")
    report = json.loads(result.stdout)
    assert report["device"]["kind"] == "cpu"
    assert "The GPU is not used: no plan." in caplog.text
    assert sizes == [bench.LARGE_BATCHES]


def unusable(*_, **__):
    raise PlanError("no plan.")


def test_images_without_labels_give_times_and_no_accuracy(invoke, tmp_path):
    frames = load_arrays(TEST_DATA)[0][:50]
    np.savez(tmp_path / "plain.npz", images=frames)
    result = invoke(*QUICK, "--data", tmp_path / "plain.npz", "--json", tmp_path / "o.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["cascade"]["accuracy"] is None
    assert report["accuracy_drop"] is None
    assert 0 <= report["agreement_with_large"] <= 1
