"""The doubles of libcuda and TensorRT below the real pycuda and cuda-bindings.

These tests run in a process of their own, see CONTRIBUTING.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.devices import GpuOptions
from tests.cuda import bundles
from tests.cuda_cpu.build import has_compiler
from tests.cuda_double.driver import Driver, Machine
from tests.cuda_double.install import install, kernels
from tests.cuda_double.plans import write_plans
from tests.cuda_double.shim import shim
from tests.tensorrt_double.libraries import cache_folder

ZOO = Path(__file__).parents[2] / "zoo" / "fashion"
ZOO_BUCKETS = (1, 8, 32, 64, 256)


@pytest.fixture(scope="session", autouse=True)
def doubles() -> None:
    """Install the doubles, once."""
    if not has_compiler():
        pytest.skip("no C++ compiler: install g++, or name one in CXX")
    # Kernels are compiled once, whatever tests a run selects.
    os.environ["XDG_CACHE_HOME"] = str(cache_folder() / "home")
    install()


class Start:
    """Starts GPUs, of which the last one is there."""

    def __init__(self) -> None:
        self.drivers: list[Driver] = []

    def __call__(self, seed: int | None = 0, **machine: object) -> Driver:
        """Start one on which nothing may go wrong, and of which nothing may be left."""
        driver = self.ignoring(seed, **machine)
        self.drivers.append(driver)
        return driver

    def ignoring(self, seed: int | None = 0, **machine: object) -> Driver:
        """Start one whose state at the end is the test's business."""
        driver = Driver(kernels(), Machine(**machine), seed=seed)
        shim().use(driver)
        return driver


@pytest.fixture
def gpu() -> Iterator[Start]:
    """Return what starts a GPU."""
    start = Start()
    yield start
    shim().use(None)
    for driver in start.drivers:
        assert driver.errors == []
        assert (driver.leaked, driver.live()) == ({}, {})


@pytest.fixture
def quick() -> GpuOptions:
    """Without the self-check, which has tests of its own."""
    return GpuOptions(verify=False)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Path:
    """The demo bundle with plans of its FP32 models."""
    folder = tmp_path_factory.mktemp("zoo") / "fashion"
    shutil.copytree(ZOO, folder)
    shim().use(Driver(kernels()))
    write_plans(folder, ZOO_BUCKETS)
    return folder


@pytest.fixture
def folder(gpu: Start, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A bundle of two stages with plans for the module's BUCKETS, and a GPU to run it."""
    gpu()
    written = bundles.two_stages(tmp_path / "bundle")
    write_plans(written, request.module.BUCKETS)
    return written


@pytest.fixture
def frames(request: pytest.FixtureRequest) -> np.ndarray:
    """As many random frames as the module's ROWS."""
    return bundles.random_frames(request.module.ROWS, (6, 6, 3))
