"""Which tests run, and which may be skipped.

With ``REQUIRE_ALL=1`` none may be skipped but those that need a GPU where there is none. With
``TINYSAVER_TEST_DOUBLES=1`` those of tests/cuda run, without it all others.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
REQUIRE_GPU = os.environ.get("REQUIRE_GPU") == "1"
ON_DOUBLES = os.environ.get("TINYSAVER_TEST_DOUBLES") == "1"
DOUBLES = Path(__file__).resolve().parent / "cuda"
NO_GPU = pytest.StashKey[bool]()


@functools.cache
def driver_reports_a_device() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return ready and count.value > 0


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Keep the doubles of the driver and TensorRT in runs of their own: they stay loaded."""
    is_on_doubles = DOUBLES in (collection_path, *collection_path.parents)
    encloses_them = collection_path in DOUBLES.parents
    return True if is_on_doubles != ON_DOUBLES and not encloses_them else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not driver_reports_a_device():
        if REQUIRE_GPU:
            pytest.fail("REQUIRE_GPU=1, but the NVIDIA driver reports no device")
        item.stash[NO_GPU] = True
        pytest.skip("the NVIDIA driver reports no device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and not item.stash.get(NO_GPU, False):
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    if report.skipped:
        _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if REQUIRE_ALL:
        report.outcome = "failed"
        report.longrepr = f"skipped, but REQUIRE_ALL=1 allows no skip: {report.longrepr}"
