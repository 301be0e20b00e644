"""A plan that serves is taken, else built by one process; whatever happens, none is ever wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engines import plan_store
from engines.errors import EngineError
from engines.plan_store import Policy, look_up, obtain
from runtime.plans import Flags, bucket_profiles, load_sidecar
from tests.engines.plan_cases import ORIN, key, maker, wanted
from tests.tensorrt_double.libraries import ROOT, run_python


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "bundle"
    folder.mkdir()
    return folder


@pytest.fixture
def said():
    return []


def no_build(partial):
    raise AssertionError("built again")


def files(folder):
    """Names in the plan folder but the lock's, which stays."""
    return sorted(path.name for path in (folder / "plans").iterdir() if path.suffix != ".lock")


def test_what_is_built_is_described_and_found_again(bundle, said):
    make, _ = maker(b"the plan", warnings=("careful",))
    outcome = obtain(wanted(bundle), make, said.append)
    assert (outcome.status, outcome.warnings) == ("built", ("careful",))
    assert outcome.plan.read() == b"the plan"
    assert outcome.plan.key == key()
    assert outcome.plan.folder == bundle / "plans"
    again = obtain(wanted(bundle), no_build, said.append)
    assert (again.status, again.plan, again.warnings) == ("up to date", outcome.plan, ())
    assert said == []
    assert len(files(bundle)) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"machine": ORIN.model_copy(update={"version": "10.16.2"})},
            "built by TensorRT 10.3.0 for sm_87, this is 10.16.2",
        ),
        ({"model_sha256": "ab" * 32}, "built from another model (sha256 010101010101..., the "
            "bundle has abababababab...)"),
        ({"profiles": bucket_profiles([4])}, "built for batches 1, 8, this asks for 4"),
        ({"flags": Flags(tf32=True)}, "built with tf32 False, this asks for tf32 True"),
    ],
)  # fmt: skip
def test_a_plan_for_something_else_is_built_anew_and_the_reason_said(bundle, said, change, words):
    first, _ = maker(b"first")
    obtain(wanted(bundle), first, said.append)
    second, calls = maker(b"second")
    outcome = obtain(wanted(bundle, **change), second, said.append)
    assert len(calls) == 1 and outcome.plan.read() == b"second"
    assert said == [f"plan saver.fp16: {words}: rebuilding"]
    # The first is still there for whom it serves: two GPUs or versions do not fight over a bundle.
    assert obtain(wanted(bundle), no_build, said.append).plan.read() == b"first"


def test_another_form_or_stage_is_not_a_reason_to_say_anything(bundle, said):
    obtain(wanted(bundle), maker()[0], said.append)
    obtain(wanted(bundle, form="int8_trt"), maker()[0], said.append)
    assert said == []


def test_a_version_compatible_plan_serves_a_later_version(bundle, said):
    flags = Flags(version_compatible=True)
    obtain(wanted(bundle, flags=flags), maker()[0], said.append)
    later = ORIN.model_copy(update={"version": "10.16.2", "cuda": "13.2"})
    outcome = obtain(wanted(bundle, flags=flags, machine=later), no_build, said.append)
    assert outcome.plan.key.machine == ORIN


def test_where_nothing_may_be_built_the_reason_is_an_error(bundle, said):
    policy = Policy(build=False)
    with pytest.raises(EngineError, match=r"plan saver\.fp16: not in .*plans or .*cache"):
        obtain(wanted(bundle), no_build, said.append, policy=policy)
    assert not (bundle / "plans").exists()
    obtain(wanted(bundle), maker()[0], said.append)
    assert obtain(wanted(bundle), no_build, said.append, policy=policy).status == "up to date"
    newer = ORIN.model_copy(update={"version": "10.16.2"})
    with pytest.raises(EngineError, match=r"for sm_87, this is 10\.16\.2\. Build it: "):
        obtain(wanted(bundle, machine=newer), no_build, said.append, policy=policy)
    assert said == []


def test_force_builds_what_is_there(bundle, said):
    obtain(wanted(bundle), maker(b"old")[0], said.append)
    outcome = obtain(wanted(bundle), maker(b"new")[0], said.append, policy=Policy(force=True))
    assert (outcome.status, outcome.plan.read()) == ("built", b"new")
    assert len(files(bundle)) == 2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda plan: plan.path.write_bytes(plan.path.read_bytes()[:-1]), "has 3 bytes"),
        (lambda plan: plan.path.write_bytes(b"PLAN"), "is not what its sidecar describes"),
        (lambda plan: plan.path.unlink(), "No such file"),
        (lambda plan: plan.sidecar_path.write_text("{"), "its sidecar is damaged"),
        (lambda plan: plan.sidecar_path.write_text(""), "its sidecar is damaged"),
    ],
    ids=["truncated", "edited", "plan lost", "sidecar truncated", "sidecar empty"],
)
def test_a_damaged_plan_is_not_used_but_built_anew(bundle, said, spoil, words):
    spoil(obtain(wanted(bundle), maker()[0], said.append).plan)
    assert look_up(wanted(bundle)).plan is None
    outcome = obtain(wanted(bundle), maker(b"sound")[0], said.append)
    assert outcome.plan.read() == b"sound"
    (line,) = said
    assert line.startswith("plan saver.fp16: ") and words in line and line.endswith(": rebuilding")


def test_a_plan_without_its_sidecar_is_built_anew(bundle, said):
    obtain(wanted(bundle), maker()[0], said.append).plan.sidecar_path.unlink()
    assert look_up(wanted(bundle)) == (None, None)
    assert obtain(wanted(bundle), maker(b"sound")[0], said.append).plan.read() == b"sound"


@pytest.mark.parametrize("error", [EngineError, KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_a_build_that_fails_leaves_what_was_there(bundle, said, error):
    obtain(wanted(bundle), maker(b"old")[0], said.append)
    before = files(bundle)

    def fail(partial):
        partial.write_bytes(b"half")
        raise error

    with pytest.raises(error if isinstance(error, type) else OSError):
        obtain(wanted(bundle), fail, said.append, policy=Policy(force=True))
    assert files(bundle) == before
    assert obtain(wanted(bundle), no_build, said.append).plan.read() == b"old"


def test_a_sidecar_that_cannot_be_written_leaves_no_plan_that_is_used(bundle, said, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plan_store, "replacing", full)
    with pytest.raises(OSError, match="No space left"):
        obtain(wanted(bundle), maker()[0], said.append)
    monkeypatch.undo()
    assert look_up(wanted(bundle)).plan is None
    assert obtain(wanted(bundle), maker()[0], said.append).status == "built"


def test_a_bundle_that_cannot_be_written_has_its_plans_in_the_users_cache(bundle, said, tmp_path):
    (bundle / "plans").write_bytes(b"a file where the folder would be")
    outcome = obtain(wanted(bundle), maker()[0], said.append)
    assert outcome.plan.path.is_relative_to(tmp_path / "cache")
    assert obtain(wanted(bundle), no_build, said.append).plan == outcome.plan


def test_where_nothing_can_be_written_both_places_are_named(bundle, said, tmp_path):
    (bundle / "plans").write_bytes(b"")
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(EngineError) as caught:
        obtain(wanted(bundle), no_build, said.append)
    message = str(caught.value)
    assert f"{bundle / 'plans'}: File exists" in message
    assert f"{tmp_path / 'cache'}" in message and "XDG_CACHE_HOME" in message


PROCESS = """
import sys, time
from pathlib import Path
from engines.plan_store import obtain
from tests.engines.plan_cases import maker, wanted

folder, content, go = Path(sys.argv[1]), sys.argv[2].encode(), Path(sys.argv[3])

def make(partial):
    partial.write_bytes(content[:1])
    print("building", flush=True)
    while not go.exists():
        time.sleep(0.01)
    return maker(content)[0](partial)

def say(line):
    print(line, flush=True)

outcome = obtain(wanted(folder), make, say)
print(outcome.status, outcome.plan.read().decode())
"""


@contextlib.contextmanager
def started(folder, content, go, *, before=""):
    """Start a process that builds once the file ``go`` is there; it is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-c", before + PROCESS, str(folder), content, str(go)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_of_two_processes_one_builds_and_the_other_waits(bundle, tmp_path):
    go = tmp_path / "go"
    with started(bundle, "first", go) as first, contextlib.ExitStack() as stack:
        assert first.stdout.readline() == "building\n"
        second = stack.enter_context(started(bundle, "second", go))
        waiting = "plan saver.fp16: another process is building it; waiting\n"
        assert second.stdout.readline() == waiting
        go.touch()
        assert first.communicate()[0] == "built first\n"
        assert second.communicate() == ("built meanwhile first\n", "")
    assert len(files(bundle)) == 2


def test_a_process_killed_in_a_build_frees_the_lock_and_its_remains_are_swept(
    bundle, said, tmp_path
):
    with started(bundle, "first", tmp_path / "go") as first:
        assert first.stdout.readline() == "building\n"
        first.kill()
    assert len(files(bundle)) == 1  # the partial file
    assert look_up(wanted(bundle)) == (None, None)
    outcome = obtain(wanted(bundle), maker(b"second")[0], said.append)
    assert outcome.plan.read() == b"second"
    assert files(bundle) == sorted([outcome.plan.path.name, outcome.plan.sidecar_path.name])


KILLED = """
import json, os, signal, sys
from pathlib import Path
from engines.plan_store import look_up, obtain
from tests.engines.plan_cases import maker, wanted

folder, old = Path(sys.argv[1]), sys.argv[2]
CHANGES = ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir")

def build_and_die(step):
    count = 0
    def audit(event, arguments):
        nonlocal count
        if event in CHANGES and any("plans" in str(item) for item in arguments[:2]):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(audit)
    obtain(wanted(folder), maker(b"new")[0], lambda line: None)
    os._exit(0)

results = []
while not results or results[-1][0] != 0:
    for path in (folder / "plans").glob("*"):
        path.unlink()
    if old:
        plan = obtain(wanted(folder), maker(b"old")[0], print).plan
        plan.path.write_bytes(b"bad")
    child = os.fork()
    if child == 0:
        build_and_die(len(results) + 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = look_up(wanted(folder)).plan
    results.append((status, found and found.read().decode()))
json.dump(results, sys.stdout)
"""


@pytest.mark.parametrize("old", ["", "old"], ids=["empty cache", "a damaged plan before"])
def test_killed_before_any_change_of_a_build_the_cache_is_sound(bundle, old):
    """SIGKILL before each access to the folder in turn: what is found then is whole, or nothing."""
    program = run_python("-W", "ignore", "-c", KILLED, str(bundle), old, environment={}, cwd=ROOT)
    assert program.returncode == 0, program.stderr
    *killed, whole = json.loads(program.stdout)
    assert whole == [0, "new"]
    assert len(killed) > 8
    assert {status for status, _ in killed} == {-signal.SIGKILL}
    assert {found for _, found in killed} <= {None, "new"}
    assert killed[0][1] is None and killed[-1][1] == "new"


def test_a_full_disk_in_the_middle_of_a_plan_leaves_nothing(bundle, tmp_path):
    """The kernel refuses to let a file grow over 4 kB, as a full disk would."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    with started(bundle, "x" * 5000, tmp_path, before=limit) as process:
        errors = process.communicate()[1]
    assert process.returncode == 1 and "File too large" in errors
    assert files(bundle) == []
    assert look_up(wanted(bundle)) == (None, None)


def test_a_hit_costs_little_more_than_reading_the_plan(bundle, said):
    """No time is asserted; that nothing is built, locked or written is."""
    plan = obtain(wanted(bundle), maker(os.urandom(1 << 20))[0], said.append).plan
    before = {path: path.stat().st_mtime_ns for path in (bundle / "plans").iterdir()}
    started = time.perf_counter()
    assert obtain(wanted(bundle), no_build, said.append).plan == plan
    print(f"hit of a 1 MB plan: {(time.perf_counter() - started) * 1e3:.1f} ms")
    assert {path: path.stat().st_mtime_ns for path in (bundle / "plans").iterdir()} == before
    assert load_sidecar(plan.sidecar_path) == plan
