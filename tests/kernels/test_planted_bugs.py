"""Every planted bug is caught by the detector that the table names, with its message and line.

A crash, a time-out, a copy that does not build or a text that is not there to change: not caught.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from tests.cuda_cpu import build, standalone
from tests.cuda_cpu.emulation import KERNELS
from tests.cuda_cpu.standalone import Crash
from tests.kernels.planted import Bug, PatchError
from tests.kernels.planted_bugs import BUGS

QUICK = ("divergent barrier", "out-of-bounds write", "unstable compaction")


@pytest.fixture(scope="module")
def copies(request: pytest.FixtureRequest, tmp_path_factory) -> dict[Bug, Path]:
    """A folder for each bug that a selected test needs, where all is built that can be."""
    chosen: set[Bug] = {
        item.callspec.params["bug"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    folders = {bug: tmp_path_factory.mktemp("copy") for bug in chosen}
    wanted = []
    for bug, folder in folders.items():
        wanted.append((KERNELS / f"{bug.module}.cu", bug.detection.variant))
        with contextlib.suppress(PatchError):  # the bug's own test will say so
            wanted.append((bug.plant(folder), bug.detection.variant))
    with contextlib.suppress(build.BuildError):
        build.modules(dict.fromkeys(wanted))
    return folders


with_bugs = pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, marks=() if bug.name in QUICK else pytest.mark.slow) for bug in BUGS],
    ids=str,
)


def assert_caught(bug: Bug, folder: Path) -> None:
    bug.plant(folder)
    with pytest.raises(bug.detection.error) as caught:
        bug.run(bug.machine(folder))
    assert re.search(bug.expected(folder), str(caught.value), re.DOTALL)


@with_bugs
def test_a_planted_bug_is_caught(bug: Bug, copies: dict[Bug, Path]) -> None:
    assert_caught(bug, copies[bug])


@with_bugs
def test_without_the_bug_the_same_run_is_clean(bug: Bug, copies: dict[Bug, Path]) -> None:
    bug.run(bug.machine())


@pytest.fixture
def bug() -> Bug:
    (bug,) = (bug for bug in BUGS if bug.name == "out-of-bounds write")
    return dataclasses.replace(bug, detector="values", message=".*", at="")


def test_a_crash_does_not_count_as_caught(bug: Bug, tmp_path: Path) -> None:
    crash = "    if (*reinterpret_cast<volatile u32*>(u64(k)) == 1) write("
    with pytest.raises(Crash, match="exit -11"):
        assert_caught(dataclasses.replace(bug, new=crash), tmp_path)


def test_a_kernel_that_does_not_end_does_not_count_as_caught(
    bug: Bug, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(standalone, "TIMEOUT_S", 2)
    endless = "    for (volatile u32 word = 0; !word;) write("
    with pytest.raises(subprocess.TimeoutExpired):
        assert_caught(dataclasses.replace(bug, new=endless), tmp_path)


def test_a_copy_that_does_not_build_does_not_count_as_caught(bug: Bug, tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match=r"gather\.cu:\d+:\d+: error"):
        assert_caught(dataclasses.replace(bug, new="    nonsense;\n"), tmp_path)


def test_a_text_that_is_not_there_does_not_count_as_caught(bug: Bug, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"out-of-bounds write: gather\.cu has not the text"):
        assert_caught(dataclasses.replace(bug, old="nowhere"), tmp_path)


def test_a_change_that_breaks_nothing_does_not_count_as_caught(bug: Bug, tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_caught(dataclasses.replace(bug, new=f"\n{bug.old}"), tmp_path)
