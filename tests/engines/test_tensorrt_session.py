"""What TensorRT logs, and which of its errors is passed on."""

from __future__ import annotations

import pytest

from engines.tensorrt_session import Log

DRIVER = "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)"


@pytest.fixture
def log():
    found = Log()
    found.add("ERROR", "no implementation for node fc\n")
    found.add("INTERNAL_ERROR", DRIVER)
    return found


def test_a_missing_driver_is_no_reason_where_none_is_needed(log):
    assert log.last_error(ahead_of_time=True) == "no implementation for node fc"


def test_on_the_device_itself_it_is(log):
    assert log.last_error(ahead_of_time=False) == DRIVER


def test_if_nothing_else_was_said_it_is_all_there_is():
    log = Log()
    log.add("ERROR", DRIVER)
    assert log.last_error(ahead_of_time=True) == DRIVER
    assert Log().last_error(ahead_of_time=True) == "it gave no reason"


def test_a_warning_is_kept_once_and_the_rest_not_at_all(log):
    for _ in range(3):
        log.add("WARNING", "subnormal weights")
        log.add("INFO", "hello")
        log.add("VERBOSE", "hello")
    assert list(log.warnings) == ["subnormal weights"] and len(log.errors) == 2
