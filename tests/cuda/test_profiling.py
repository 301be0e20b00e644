"""What a profiler is told on request: the times of TensorRT's layers, and ranges of NVTX."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import types

import numpy as np
import pytest
from click.testing import CliRunner

from runtime import Cascade, bench, bench_gpu, selfcheck
from runtime.devices import GpuOptions
from runtime.errors import DeviceError, GraphError, TinysaverError
from tests.cuda import bundles
from tests.cuda_double.driver import Failure
from tests.cuda_double.plans import write_plans
from tests.cuda_double.shim import shim
from tests.cuda_double.structures import Status

ROWS = 8
BUCKETS = {"saver": (1, 8), "large": (1, 4)}  # the large stage runs a batch in two rounds
# Of the random models of tests/cuda/bundles.py, whose nodes have no names.
LAYERS = ["Flatten input_flat", "MatMul input_product", "Sum sum", "Tanh features", "MatMul logits"]
REASON = "TensorRT times layers by events, which no branch of a graph can hold"


def load(folder, mode=None, *, verify=False, **options):
    gpu = GpuOptions(mode=mode, verify=verify, **options)
    return Cascade.load(folder, "cuda", batch=ROWS, gpu=gpu)


def marked():
    """Return the runs that TensorRT has told NVTX of since the last time."""
    library = sys.modules["tensorrt"].library
    seen, library.marked[:] = list(library.marked), []
    return seen


@pytest.fixture
def ranges(monkeypatch):
    """Stand in for the package nvtx; return the names of ranges, as they are entered and left."""
    seen = []

    @contextlib.contextmanager
    def annotate(message, domain):
        assert domain == "tinysaver"
        seen.append(message)
        yield
        seen.append(f"end {message}")

    monkeypatch.setitem(sys.modules, "nvtx", types.SimpleNamespace(annotate=annotate))
    return seen


@pytest.mark.parametrize(("mode", "large_runs"), [("host", 1), ("padded", 2)])
def test_layers_are_summed_by_stage_and_name(mode, large_runs, folder, frames):
    with load(folder, mode, profile_layers=True) as cascade:
        cascade.executor.take_layer_times()  # of golden samples and the warm-up
        force = np.array([1, 0, 0, 1, 0, 0, 0, 0], np.uint8)
        cascade.thresholds = (0.0,)
        for _ in range(3):
            cascade.run(frames, force=force)
        saver, large = cascade.executor.take_layer_times()
        assert cascade.executor.take_layer_times() == [{}, {}]
    assert list(saver) == list(large) == LAYERS
    assert set(saver.values()) == {(3, 3.0)}  # the double says a millisecond for each
    assert set(large.values()) == {(3 * large_runs, 3.0 * large_runs)}


@pytest.mark.parametrize("mode", ["host", "padded"])
def test_answers_are_those_without_the_profiler(mode, folder, frames):
    found = []
    for profile in (False, True):
        with load(folder, mode, profile_layers=profile) as cascade:
            results = cascade.run(frames)
            found.append([results.label, results.stage, results.confidence])
    np.testing.assert_array_equal(*found)


def test_waits_of_the_profiler_are_counted(folder, frames):
    with load(folder, "host", profile_layers=True) as cascade:
        cascade.thresholds = (1.0,)
        activity, driver = cascade.executor.device.activity, shim().driver
        before = activity.waits
        driver.reset()
        cascade.run(frames)
        assert (
            activity.waits - before == driver.counts.waits == 1 + 3 + 1
        )  # count, engines, answers


def test_graphs_cannot_be_profiled_and_say_so(folder):
    with pytest.raises(GraphError, match="launch mode graph is not possible: TensorRT times"):
        load(folder, "graph", profile_layers=True)
    with load(folder, profile_layers=True) as cascade:
        assert cascade.executor.mode == "host"
        assert cascade.executor.mode_reason == f"no graph: {REASON}"


def test_a_graph_would_not_hold_a_run_that_is_profiled(folder, monkeypatch):
    monkeypatch.setattr("runtime.gpu_modes._check_branches", lambda work, graphs: None)
    with load(folder, profile_layers=True) as cascade:
        assert cascade.executor.mode == "host"
        assert "a run that reports to a profiler cannot be captured" in cascade.executor.mode_reason


def test_without_being_asked_nothing_is_profiled(folder, frames):
    marked()
    with load(folder) as cascade:
        cascade.run(frames)
        assert cascade.executor.mode == "graph"
        assert cascade.executor.take_layer_times() == [{}, {}]
    assert marked() == []


def test_the_self_check_is_made_without_the_profiler(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(selfcheck, "user_cache", lambda: tmp_path / "cache" / "cubins")
    monkeypatch.setattr(selfcheck, "check_kernels", lambda device: ())
    checks, run_checks = [], selfcheck.run_checks

    def spied(opened):
        for check in run_checks(opened):
            checks.append(check)
            yield check

    monkeypatch.setattr(selfcheck, "run_checks", spied)
    with load(folder, verify=True, profile_layers=True, nvtx=True) as cascade:
        assert cascade.executor.profiles_layers
    assert [check.name for check in checks] == ["host", "padded", "graph"]
    assert all(isinstance(check, selfcheck.Check) and check.passed for check in checks)


def test_a_profiled_run_that_fails_says_so_and_leaves_nothing(gpu, tmp_path, frames):
    folder = bundles.two_stages(tmp_path / "bundle")
    driver = gpu.ignoring()
    write_plans(folder, BUCKETS)
    cascade = load(folder, "host", profile_layers=True)
    driver.failure = Failure(Status.LAUNCH_FAILED, 0, "cuLaunchKernel", sticky=True)
    with pytest.raises(DeviceError, match="Work on the GPU has failed"):
        cascade.run(frames)
    with contextlib.suppress(TinysaverError):
        cascade.close()


@pytest.mark.parametrize("mode", ["host", "padded", "graph"])
def test_tensorrt_marks_its_layers_for_nvtx(mode, folder, frames):
    marked()
    with load(folder, mode, nvtx=True) as cascade:
        cascade.run(frames)
    assert set(marked()) == {("saver", "DETAILED"), ("large", "DETAILED")}


def test_nvtx_is_told_no_more_than_a_plan_was_built_with(folder, frames):
    write_plans(folder, BUCKETS, verbosity="LAYER_NAMES_ONLY")
    marked()
    with load(folder, "host", nvtx=True) as cascade:
        cascade.run(frames)
        assert cascade.executor.plans[0].engine.runtime.last_error == ""
    assert set(marked()) == {("saver", "LAYER_NAMES_ONLY"), ("large", "LAYER_NAMES_ONLY")}


def test_layers_of_a_plan_without_names_have_numbers(folder, frames):
    write_plans(folder, BUCKETS, verbosity="NONE")
    with load(folder, "host", profile_layers=True) as cascade:
        assert list(cascade.executor.take_layer_times()[0]) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("mode", "inner"),
    [
        ("host", ["saver", "end saver", "large", "end large"]),
        ("padded", ["saver", "end saver", "large", "end large"]),
        ("graph", ["graph", "end graph"]),
    ],
)
def test_batches_and_stages_are_ranges_of_nvtx(mode, inner, folder, frames, ranges):
    with load(folder, mode, nvtx=True) as cascade:
        cascade.thresholds = (1.0,)
        ranges.clear()
        cascade.run(frames)
    assert ranges == ["batch", *inner, "end batch"]


def test_nobody_needs_the_package_nvtx(folder, frames, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nvtx", None)  # an import fails
    with caplog.at_level(logging.WARNING), load(folder, "host") as cascade:
        cascade.run(frames)
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING), load(folder, "host", nvtx=True) as cascade:
        cascade.run(frames)
    (message,) = caplog.messages
    assert "No NVTX ranges of batches and stages" in message and "pip install nvtx" in message


def bench_of(folder, *options):
    """Run the bench with a profiler; return its report, if any, and what it shows."""
    data, out = folder / "data.npz", folder / "report.json"
    np.savez(data, images=bundles.random_frames(21, (6, 6, 3)))
    arguments = ["--bundle", folder, "--data", data, "--batch", ROWS, "--iterations", 3]
    arguments += ["--warmup", 0, "--json", out, "--no-verify", "--profile-layers", *options]
    result = CliRunner().invoke(bench.main, list(map(str, arguments)))
    return json.loads(out.read_text()) if out.exists() else None, result.output


@pytest.mark.parametrize("transfers", ["--transfers", "--no-transfers"])
@pytest.mark.parametrize("mode", ["host", "padded", "auto"])
def test_the_bench_shows_the_slowest_layers_of_the_cascade_alone(
    mode, transfers, folder, monkeypatch
):
    monkeypatch.setattr(bench_gpu, "is_emulated", lambda: False)
    options = ["--device", "cuda", "--mode", mode, transfers, "--escalation-rate", "1"]
    report, shown = bench_of(folder, *options)
    runs = {"saver": 1, "large": 2}  # of each batch; what runs alone is not among them
    found = [(used["stage"], used["layer"], used["runs"]) for used in report["layers"]]
    assert found == [(stage, layer, runs[stage]) for stage in runs for layer in LAYERS]
    assert [used["seconds"] for used in report["layers"]] == [0.001] * 5 + [0.002] * 5
    assert "the slowest layers, by TensorRT's profiler" in shown
    assert "waits for each engine" in shown
    assert report["device"]["profiles_layers"] is True


def test_an_emulation_names_layers_and_has_no_times(folder):
    report, shown = bench_of(folder, "--device", "cuda", "--mode", "host")
    assert {used["layer"] for used in report["layers"]} == set(LAYERS)
    assert {used["seconds"] for used in report["layers"]} == {None}
    assert "by TensorRT's profiler" not in shown and "EMULATION" in shown


def test_the_cpu_has_no_such_profiler(folder):
    report, shown = bench_of(folder, "--device", "cpu")
    assert report is None
    assert "--profile-layers: TensorRT has a profiler" in shown and "--device cuda" in shown
