"""Every planted bug is caught by the detector that planted.py names, with its message and line.

A crash, a time-out, a copy that does not build or a text that is not there to change: not caught.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from tests.cuda_cpu import build
from tests.cuda_cpu.emulation import KERNELS
from tests.kernels.planted import BUGS, Bug, PatchError

QUICK = ("divergent barrier", "out-of-bounds write", "unstable compaction")


@pytest.fixture(scope="module")
def copies(request: pytest.FixtureRequest, tmp_path_factory) -> dict[Bug, Path]:
    """A folder for each bug that a selected test needs, where all is built that can be."""
    chosen: set[Bug] = {
        item.callspec.params["bug"] for item in request.session.items if item.path == request.path
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


@with_bugs
def test_a_planted_bug_is_caught(bug: Bug, copies: dict[Bug, Path]) -> None:
    folder = copies[bug]
    bug.plant(folder)
    with pytest.raises(bug.detection.error) as caught:
        bug.run(bug.machine(folder))
    assert re.search(bug.expected(folder), str(caught.value), re.DOTALL)


@with_bugs
def test_without_the_bug_the_same_run_is_clean(bug: Bug, copies: dict[Bug, Path]) -> None:
    bug.run(bug.machine())
