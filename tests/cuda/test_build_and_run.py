"""Plans that `engines.build` makes on the doubled TensorRT are found, and run, by a cascade."""

from __future__ import annotations

import pytest

from runtime import Cascade
from runtime.devices import GpuOptions
from tests.cuda import bundles
from tests.cuda.agreement import check_equal
from tests.cuda_double.driver import Machine
from tests.cuda_double.install import TENSORRT
from tests.cuda_double.structures import version_number
from tests.tensorrt_double.libraries import ROOT, run_python
from tests.tensorrt_double.wheels import environment

pytestmark = pytest.mark.slow  # a process for each plan


def build(folder, *arguments):
    """Build on a machine that is what the double of the driver says it is."""
    machine = Machine()
    major, minor = machine.capability
    gpu = f"{machine.name}/{major}{minor}/{machine.memory}"
    settings = {
        "STUB_CUDA_GPUS": gpu,
        "STUB_CUDA_VERSION": str(version_number(machine.driver)),
    }
    program = run_python(
        "-m",
        "engines.build",
        str(folder),
        *arguments,
        environment={**environment(TENSORRT), **settings},
        cwd=ROOT,
    )
    assert program.returncode == 0, program.stderr


def test_a_bundle_is_built_and_run(gpu, tmp_path):
    folder = bundles.three_stages(tmp_path / "bundle")
    build(folder, "--form", "fp32", "--max-batch", "8")
    frames = bundles.random_frames(40, bundles.NV12["shape"])
    with Cascade.load(folder, "cpu") as cascade:
        expected = cascade.run(frames)
    gpu()
    with Cascade.load(folder, "cuda", batch=8, gpu=GpuOptions(verify=False)) as cascade:
        assert cascade.executor.mode == "graph"
        check_equal(cascade.run(frames), expected, cascade.thresholds, band=1e-4)
