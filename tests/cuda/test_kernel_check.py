"""The check of kernels on the double: it covers all, and sees what is wrong."""

from __future__ import annotations

import ctypes
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from kernels import ops
from runtime import kernel_check
from runtime.cuda import CudaDevice
from tests.cuda_double.driver import Driver
from tests.cuda_double.kernels import Kernels
from tests.cuda_double.shim import shim
from tests.kernels.every_kernel import kernel_names

CHECKLIST = Path(__file__).parents[2] / "docs" / "gpu-checklist.md"


@pytest.fixture
def device(gpu):
    gpu()
    opened = CudaDevice()
    yield opened
    opened.close()


def test_every_kernel_is_checked_and_right(device):
    checks = list(kernel_check.check_kernels(device))
    assert sorted(check.name for check in checks) == sorted(kernel_names() - {"select_bucket"})
    assert [check for check in checks if check.wrong] == []
    assert f"{len(checks)} kernels" in CHECKLIST.read_text()


class Spoilt(Kernels):
    """Kernels after which a bit is turned over in every byte that they wrote."""

    def launch(self, kernel, grid, arguments):
        touched, conditionals = super().launch(kernel, grid, arguments)
        for part in touched.writes:
            content = (ctypes.c_ubyte * (part.stop - part.start)).from_address(part.start)
            np.frombuffer(content, np.uint8)[...] ^= 0x20
        return touched, conditionals


def test_no_kernel_passes_that_writes_something_else():
    driver = Driver(Spoilt())
    shim().use(driver)
    try:
        opened = CudaDevice()
        passed = [check.name for check in kernel_check.check_kernels(opened) if not check.wrong]
        opened.close()
    finally:
        shim().use(None)
    assert passed == []


@pytest.mark.parametrize("name", [field.name for field in fields(ops.GateOutputs)])
def test_every_output_of_a_gate_is_compared(name, device, monkeypatch):
    outputs = []

    def remember(inputs, written, *others, original=ops.gate, **options):
        outputs.append(written)
        return original(inputs, written, *others, **options)

    def spoilt(memory, array, original=kernel_check.Memory.get):
        values = original(memory, array)
        if array == getattr(outputs[-1], name):
            values[values != kernel_check._UNTOUCHED] += 1
        return values

    monkeypatch.setattr(ops, "gate", remember)
    device.load("gate")
    with device.active():
        memory = kernel_check.Memory(device)
        assert kernel_check.check_gate(memory, "max_softmax", np.float32, 10).wrong == 0
        monkeypatch.setattr(kernel_check.Memory, "get", spoilt)
        assert kernel_check.check_gate(memory, "max_softmax", np.float32, 10).wrong > 0
        memory.close()
