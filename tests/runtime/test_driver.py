"""What is read of the driver, through a libcuda of our own; and the words when there is none."""

from __future__ import annotations

import pytest

from runtime import driver
from runtime.driver import DriverError
from tests.tensorrt_double.libraries import ROOT, driver_folder, run_python

PROGRAM = """
from runtime.driver import DriverError, ask_driver
try:
    print(ask_driver())
except DriverError as error:
    print("DriverError:", error)
"""


def ask(**settings):
    environment = {"LD_LIBRARY_PATH": str(driver_folder()), **settings}
    result = run_python("-c", PROGRAM, environment=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_version_and_gpus_are_read():
    gpus = "NVIDIA RTX 4090/89/25000,NVIDIA GB10/121/128000"
    assert ask(STUB_CUDA_VERSION="13020", STUB_CUDA_GPUS=gpus) == (
        "Driver(cuda='13.2', gpus=("
        "Gpu(name='NVIDIA RTX 4090', architecture='sm_89', memory_bytes=25000), "
        "Gpu(name='NVIDIA GB10', architecture='sm_121', memory_bytes=128000)))"
    )


def test_a_machine_without_gpus_is_described():
    assert ask(STUB_CUDA_GPUS="") == "Driver(cuda='12.6', gpus=())"


@pytest.mark.parametrize(
    ("status", "words"), [("100", "cuInit: CUDA_ERROR_NO_DEVICE"), ("803", "cuInit: error 803")]
)
def test_a_driver_that_does_not_start_is_named_with_its_error(status, words):
    message = ask(STUB_CUDA_INIT=status)
    assert message.startswith("DriverError: the NVIDIA driver does not work: ")
    assert words in message


def test_without_a_driver_the_message_says_so(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(DriverError, match="no NVIDIA driver"):
        driver.ask_driver()


def test_a_gpu_that_is_not_there_is_refused():
    found = driver.Driver("12.6", (driver.Gpu("a", "sm_87", 1),))
    assert found.gpu().name == "a"
    for index in (-1, 1):
        with pytest.raises(DriverError, match=rf"GPU {index}: .* reports 1 GPU"):
            found.gpu(index)


def test_a_board_has_its_name_from_the_device_tree(tmp_path, monkeypatch):
    model = tmp_path / "model"
    monkeypatch.setattr(driver, "_BOARD", model)
    assert driver.board() is None
    model.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert driver.board() == "NVIDIA Jetson AGX Orin Developer Kit"
