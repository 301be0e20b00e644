"""The command that builds the cubins of a release."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from click.testing import CliRunner

from kernels import nvrtc
from kernels.errors import CompilerMissingError
from kernels.nvrtc import Target
from kernels.prebuilt import ARCHITECTURES, Job, find_prebuilt, load_manifest
from kernels.sources import load_source, module_names

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_kernels.py"
ORIN = Target("sm_87", (13, 0))


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("build_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_fills_a_folder_that_load_cubin_uses(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "plan", lambda: [Job(nvrtc.find(ORIN), "select", "sm_87")])
    result = CliRunner().invoke(script.main, ["--output", str(tmp_path / "made")])
    assert result.exit_code == 0, result.output
    assert "NVRTC 13." in result.stdout
    assert f"{tmp_path / 'made'}: 1 cubins, 0.0 MB" in result.stdout
    cubin = find_prebuilt(tmp_path / "made", load_source("select"), ORIN)
    assert cubin and cubin.startswith(b"\x7fELF")


def test_a_missing_compiler_is_an_error_without_a_traceback(script, tmp_path, monkeypatch):
    def find(target):
        raise CompilerMissingError("Install it: pip install x")

    monkeypatch.setattr(nvrtc, "find", find)
    result = CliRunner().invoke(script.main, ["--output", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: Install it: pip install x\n"


def test_an_older_compiler_does_not_stand_in_for_a_majors_own(script, monkeypatch):
    monkeypatch.setattr(script.nvrtc, "find", lambda target: nvrtc_12())
    with pytest.raises(script.KernelError, match=r"expected an NVRTC of CUDA 13, got NVRTC 12\.9"):
        script.compiler(13, "sm_87")


def nvrtc_12():
    class Older:
        version = (12, 9)

        def __str__(self):
            return "NVRTC 12.9"

    return Older()


def test_a_folder_that_cannot_be_made_is_an_error_without_a_traceback(
    script, tmp_path, monkeypatch
):
    monkeypatch.setattr(script, "plan", lambda: [Job(nvrtc.find(ORIN), "select", "sm_87")])
    (tmp_path / "file").write_text("in the way")
    result = CliRunner().invoke(script.main, ["--output", str(tmp_path / "file" / "made")])
    assert result.exit_code == 1
    assert "Not a directory" in result.stderr
    assert load_manifest(tmp_path).cubins == ()


@pytest.mark.slow  # the wheel of NVRTC 12 comes with scripts/test --all
def test_the_plan_has_every_module_for_every_architecture(script):
    planned = {(job.nvrtc.version[0], job.architecture, job.module) for job in script.plan()}
    assert planned == {
        (cuda, architecture, module)
        for cuda, architectures in ARCHITECTURES.items()
        for architecture in architectures
        for module in module_names()
    }
