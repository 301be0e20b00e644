"""The verb build: what it asks of the machine, what it refuses, and that it needs little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines import build
from engines.build_messages import Built
from engines.errors import EngineError
from runtime.driver import DriverError
from runtime.plans import load_sidecar
from tests.engines.plan_cases import ORIN
from tests.engines.test_tensorrt_versions import rtx, tensorrt
from tests.tensorrt_double.libraries import ROOT


@pytest.fixture
def bundle(make_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_bundle("echo", "negated")


@pytest.fixture
def requests(monkeypatch):
    """A machine with TensorRT 10.3.0 whose builds write their request's name; the requests."""
    seen = []

    def run(request, watch):
        seen.append(request)
        with open(request.output, "w", encoding="utf-8") as file:
            file.write(request.name)
        return Built(inputs=(), outputs=(), seconds=2.5, warnings=("careful",))

    monkeypatch.setattr(build, "load_tensorrt", lambda library: tensorrt("10.3.0"))
    monkeypatch.setattr(build, "this_machine", lambda library, version: ORIN)
    monkeypatch.setattr(build, "board", lambda: None)
    monkeypatch.setattr(build, "run_build", run)
    return seen


def invoke(*arguments):
    return CliRunner().invoke(build.main, list(map(str, arguments)))


def test_plans_are_built_and_then_up_to_date(bundle, requests):
    first = invoke(bundle, "--form", "fp32", "--max-batch", 4, "--json")
    assert first.exit_code == 0, first.output
    assert [item["status"] for item in json.loads(first.stdout)] == ["built", "built"]
    assert "plan echo.fp32: building for batches 1, 2, 4\n" in first.stderr
    assert "plan echo.fp32: TensorRT warns: careful\n" in first.stderr
    again = invoke(bundle, "--form", "fp32", "--max-batch", 4)
    assert again.exit_code == 0 and again.stdout.count("up to date") == 2
    assert len(requests) == 2


def test_without_options_buckets_double_up_to_32(bundle, requests):
    invoke(bundle, "--form", "fp32", "--stage", "echo")
    (request,) = requests
    assert [profile.opt for profile in request.profiles] == [1, 2, 4, 8, 16, 32]
    assert Path(request.timing_cache).parent == bundle / "plans"


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["--max-batch", 24], [1, 2, 4, 8, 16, 24]),
        (["--max-batch", 1], [1]),
        (["--buckets", "3,7"], [3, 7]),
    ],
)
def test_buckets_are_as_asked(bundle, requests, options, sizes):
    invoke(bundle, "--form", "fp32", "--stage", "echo", *options)
    assert [profile.opt for profile in requests[0].profiles] == sizes


def test_every_option_is_in_the_key(bundle, requests, tmp_path):
    options = ["--tf32", "--workspace", 64, "--optimisation-level", 5, "--aux-streams", 0]
    compatible = ["--version-compatible", "--hardware-compatible", "ampere_plus"]
    timings = ["--timing-cache", tmp_path / "timings"]
    result = invoke(bundle, "--form", "fp32", "--json", *options, *compatible, *timings)
    path = json.loads(result.stdout)[0]["path"]
    flags = load_sidecar(Path(path).with_suffix(".json")).key.flags
    assert flags.model_dump() == {
        "tf32": True,
        "workspace_mib": 64,
        "optimisation_level": 5,
        "aux_streams": 0,
        "version_compatible": True,
        "hardware_compatible": "ampere_plus",
        "dla_core": None,
    }
    assert requests[0].flags == flags
    assert requests[0].timing_cache == str(tmp_path / "timings")


def test_timings_are_not_kept_where_that_was_said(bundle, requests):
    invoke(bundle, "--form", "fp32", "--no-timing-cache")
    assert requests[0].timing_cache is None


def test_another_version_rebuilds_and_no_build_refuses(bundle, requests, monkeypatch):
    invoke(bundle, "--form", "fp32")
    newer = ORIN.model_copy(update={"version": "10.16.2"})
    monkeypatch.setattr(build, "this_machine", lambda library, version: newer)
    refused = invoke(bundle, "--form", "fp32", "--no-build")
    line = "plan echo.fp32: built by TensorRT 10.3.0 for sm_87, this is 10.16.2"
    assert refused.exit_code == 1 and refused.stderr.startswith(f"Error: {line}. Build it: ")
    rebuilt = invoke(bundle, "--form", "fp32")
    assert f"{line}: rebuilding\n" in rebuilt.stderr
    assert len(requests) == 4
    assert invoke(bundle, "--form", "fp32", "--no-build").exit_code == 0
    assert invoke(bundle, "--form", "fp32", "--force").stdout.count("built") == 2


def test_an_interrupt_is_one_line_and_status_130(bundle, requests, monkeypatch):
    def interrupted(request, watch):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "run_build", interrupted)
    result = invoke(bundle, "--form", "fp32")
    assert result.exit_code == 130
    assert result.stderr.endswith("plan echo.fp32: interrupted, not built; nothing was changed\n")
    assert [path.suffix for path in (bundle / "plans").iterdir()] == [".lock"]


def test_a_failing_build_is_an_error_without_a_traceback(bundle, requests, monkeypatch):
    def fail(request, watch):
        raise EngineError("echo.fp32: TensorRT crashed (SIGSEGV).")

    monkeypatch.setattr(build, "run_build", fail)
    result = invoke(bundle, "--form", "fp32")
    assert result.exit_code == 1
    assert result.stderr.endswith("Error: echo.fp32: TensorRT crashed (SIGSEGV).\n")


def test_without_a_gpu_the_targets_are_pointed_at(bundle, requests, monkeypatch):
    def no_driver(library, version):
        raise DriverError("libcuda.so.1: not found, so this machine has no NVIDIA driver.")

    monkeypatch.setattr(build, "this_machine", no_driver)
    result = invoke(bundle, "--form", "fp32")
    assert result.exit_code == 1
    assert "no NVIDIA driver. Plans are built on the device that runs them" in result.stderr
    assert "--target rtx" in result.stderr


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ([], 2, "Missing option '--form'"),
        (["--form", "int8_host"], 2, "'int8_host' is not one of"),
        (["--form", "fp16"], 1, "stage echo has no form fp16; it has fp32"),
        (["--form", "fp32", "--stage", "middle"], 1, "no stage middle"),
        (["--form", "fp32", "--buckets", "4,2"], 2, "ascending batch sizes"),
        (["--form", "fp32", "--buckets", "a"], 2, "ascending batch sizes"),
        (["--form", "fp32", "--max-batch", "0"], 2, "not in the range"),
        (["--form", "fp32", "--optimisation-level", "6"], 2, "not in the range"),
        (["--form", "fp32", "--dla", "0"], 1, "the DLA takes the form fp16"),
    ],
)
def test_what_does_not_fit_is_refused(bundle, requests, options, status, words):
    result = invoke(bundle, *options)
    assert (result.exit_code, requests) == (status, [])
    assert words in result.stderr


def test_a_missing_bundle_is_named_before_tensorrt_is_looked_for(tmp_path):
    result = invoke(tmp_path, "--form", "fp32")
    assert result.exit_code == 1
    assert f"{tmp_path / 'cascade.json'}: not found" in result.stderr


def test_a_timing_cache_is_not_used_by_tensorrt_rtx(bundle, requests, monkeypatch):
    monkeypatch.setattr(build, "load_tensorrt", lambda library: rtx())
    assert invoke(bundle, "--form", "fp32", "--target", "sm_89").exit_code == 0
    assert {request.timing_cache for request in requests} == {None}
    assert {request.targets for request in requests} == {("sm_89",)}


def test_building_needs_nothing_but_tensorrt_and_what_every_device_has():
    program = """
import sys
import engines.build, engines.builder, engines.cache
heavy = {"onnx", "onnxruntime", "torch", "cv2", "scipy", "matplotlib", "pycuda", "tensorrt"}
print(sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
