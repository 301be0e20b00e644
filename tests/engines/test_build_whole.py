"""The whole of build and cache as programs: the double of TensorRT, and a libcuda of our own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from runtime.bundle import load_bundle
from runtime.plan_fit import find_plans
from runtime.plans import Machine
from tests.engines.test_build_versions import request
from tests.tensorrt_double.building import PLAN
from tests.tensorrt_double.libraries import ROOT, run_python
from tests.tensorrt_double.wheels import environment

pytestmark = pytest.mark.slow  # downloads the bindings on first use


@pytest.fixture
def bundle(make_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_bundle("echo", "negated")


def run(module, *arguments, version, scenario=None, **settings):
    variables = {**environment(version), **settings}
    variables["TENSORRT_DOUBLE"] = json.dumps(scenario or {})
    return run_python("-m", module, *map(str, arguments), environment=variables, cwd=ROOT)


def build(bundle, *arguments, **options):
    usual = ("--form", "fp32", "--stage", "echo", "--max-batch", 2)
    return run("engines.build", bundle, *usual, *arguments, **options)


def statuses(bundle, version):
    listing = run("engines.cache", "list", bundle, "--json", version=version)
    assert listing.returncode == 0, listing.stderr
    return sorted(item["status"] for item in json.loads(listing.stdout))


def test_a_device_that_is_updated_rebuilds_its_plans_and_says_why(bundle):
    first = build(bundle, "--json", version="10.3.0")
    assert first.returncode == 0, first.stderr
    assert [item["status"] for item in json.loads(first.stdout)] == ["built"]
    orin = Machine(
        library="tensorrt", version="10.3.0", cuda="12.6", gpu="Orin", architecture="sm_87"
    )
    (plan,) = find_plans(load_bundle(bundle), 0, "fp32", orin)
    assert plan.read().startswith(PLAN)
    assert [tensor.shape for tensor in plan.sidecar.inputs] == [(-1, 1, 2, 2)]

    again = build(bundle, "--json", version="10.3.0")
    assert {item["status"] for item in json.loads(again.stdout)} == {"up to date"}
    print("hits:", [f"{item['seconds'] * 1e3:.1f} ms" for item in json.loads(again.stdout)])

    line = "plan echo.fp32: built by TensorRT 10.3.0 for sm_87, this is 10.16.1.11"
    refused = build(bundle, "--no-build", version="10.16.1.11")
    assert refused.returncode == 1 and line in refused.stderr
    updated = build(bundle, version="10.16.1.11")
    assert updated.returncode == 0 and f"{line}: rebuilding\n" in updated.stderr

    kinds = ["elsewhere", "timings", "timings", "usable"]
    assert statuses(bundle, "10.16.1.11") == kinds
    pruned = run("engines.cache", "prune", bundle, "--elsewhere", version="10.16.1.11")
    assert pruned.stderr == "removed: 1\n"
    assert statuses(bundle, "10.16.1.11") == kinds[1:]


def test_another_gpu_or_cuda_is_another_machine(bundle):
    assert build(bundle, version="8.6.1").returncode == 0
    gpu = build(bundle, "--no-build", version="8.6.1", STUB_CUDA_GPUS="NVIDIA A2000/86/6000")
    assert "built by TensorRT 8.6.1 for sm_87, this is sm_86. Build it: " in gpu.stderr
    cuda = build(bundle, "--no-build", version="8.6.1", STUB_CUDA_VERSION="12020")
    assert "built with CUDA 12.6, this is 12.2. Build it: " in cuda.stderr


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ({"ends_by": "SIGSEGV"}, "echo.fp32: TensorRT crashed (SIGSEGV). Try "),
        ({"ends_by": "SIGKILL"}, "echo.fp32: the build was killed (SIGKILL), most often because"),
        ({"error": "no implementation for node fc"}, "cannot build it: no implementation for node"),
        ({"starts": False}, "TensorRT 11.4.0.106 is installed but does not start: CUDA init"),
    ],
    ids=["crash", "out of memory", "refusal", "no driver"],
)
def test_what_goes_wrong_in_the_build_is_one_line_and_leaves_nothing(bundle, scenario, words):
    result = build(bundle, version="11.4.0.106", scenario=scenario)
    *_, last = result.stderr.splitlines()
    assert result.returncode == 1
    assert last.startswith("Error: ") and words in last
    assert "Traceback" not in result.stderr
    assert {path.suffix for path in (bundle / "plans").iterdir()} == {".lock"}


def test_a_full_disk_is_named_by_the_building_process(tmp_path):
    """/dev/full refuses every byte, with the error of a full disk."""
    asked = request(tmp_path, "fp32", output="/dev/full")
    variables = environment("10.3.0")
    program = run_python(
        "-m", "engines.builder", environment=variables, cwd=ROOT, input=json.dumps(asked)
    )
    *_, answer = program.stdout.splitlines()
    assert json.loads(answer) == {
        "event": "failed",
        "message": "plan saver.fp32 cannot be written to /dev: No space left on device",
    }


def test_ctrl_c_ends_a_build_with_one_line(bundle):
    variables = {**os.environ, **environment("10.3.0"), "TENSORRT_DOUBLE": '{"seconds": 60}'}
    program = subprocess.Popen(
        [sys.executable, "-m", "engines.build", str(bundle), "--form", "fp32"],
        env=variables,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stderr.readline() == (
            "plan echo.fp32: building for batches 1, 2, 4, 8, 16, 32\n"
        )
        program.send_signal(signal.SIGINT)
        output = program.communicate()[1]
    assert output == "plan echo.fp32: interrupted, not built; nothing was changed\n"
    assert program.returncode == 130
    assert {path.suffix for path in (bundle / "plans").iterdir()} == {".lock"}
