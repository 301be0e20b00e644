"""The tests that only a GPU can judge, on the double: that they run, not what they find."""

from __future__ import annotations

import json

import pytest

from runtime.cuda import CudaDevice
from runtime.cuda_resources import Event
from tests.kernels import cuda_machine, test_gpu
from tests.kernels.cuda_machine import CudaMachine
from tests.kernels.gate_cases import Case
from tests.kernels.test_dense_emulated import PLANS


@pytest.fixture
def machine(gpu):
    gpu()
    device = CudaDevice()
    yield CudaMachine(device)
    device.close()


def test_values_are_compared(machine):
    test_gpu.test_gate(Case(33, 10, "float16", "edge"), machine)
    test_gpu.test_gather(PLANS[0], machine)
    test_gpu.test_scatter(PLANS[0], 10, machine)
    test_gpu.test_preprocess("letterbox", "float16", machine)


@pytest.mark.parametrize("peak", [0.0, 204.8])
def test_speeds_go_to_the_report(peak, machine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Event, "milliseconds_since", lambda later, earlier: 0.5)
    monkeypatch.setattr(cuda_machine, "REPEATS", 2)
    monkeypatch.setenv("TINYSAVER_GPU_REPORT", str(tmp_path / "report.json"))
    assert machine.peak() == 0  # the double does not tell
    monkeypatch.setattr(CudaMachine, "peak", lambda machine: peak)
    test_gpu.test_speed_of_the_gate(256, 10, machine)
    test_gpu.test_speed_of_scatter(1000, machine)
    test_gpu.test_speed_of_preprocess("nv12", machine)
    test_gpu.keep("another", machine.speed(launch_of_nothing(machine), 10**6))
    report = json.loads((tmp_path / "report.json").read_text())
    kernels = ("gate fp16 256x10", "scatter fp16 256x1000", "preprocess fp16 nv12 32x224x224")
    assert set(report) == {*kernels, "another"}
    assert report["another"]["gigabytes_per_second"] == pytest.approx(2.0)
    assert report["another"]["share_of_peak"] == (pytest.approx(2.0 / peak) if peak else None)
    assert "another: 500.0 us, 2 GB/s" in capsys.readouterr().out


def launch_of_nothing(machine):
    case = Case(1, 2, "float16")
    return test_gpu.launch(case, test_gpu.upload(case, case.values(), machine))
