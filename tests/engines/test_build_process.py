"""However a building process ends, its caller gets an answer or one clear line; and it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from engines import build_process
from engines.build_messages import BuildRequest, Built, PhaseStarted, StepDone
from engines.build_process import run_build
from engines.errors import EngineError
from runtime.plans import Flags, bucket_profiles
from tests.tensorrt_double.libraries import ROOT, run_python

BUILT = Built(inputs=(), outputs=(), seconds=1.5)


class Seen:
    """Keeps what a build told."""

    def __init__(self):
        self.events, self.beats = [], 0

    def progress(self, event):
        self.events.append(event)

    def heartbeat(self):
        self.beats += 1


@pytest.fixture
def request_for(tmp_path):
    return BuildRequest(
        name="saver.fp16",
        library="tensorrt",
        model="model.onnx",
        form="fp16",
        inputs=(),
        outputs=(),
        profiles=bucket_profiles([1]),
        flags=Flags(),
        output=str(tmp_path / "plan"),
    )


def run(request, program, watch=None):
    """Run a program in place of the builder; it has ``say`` to answer with."""
    prelude = "import os, sys, time\ndef say(text): print(text, flush=True)\n"
    return run_build(request, watch or Seen(), command=(sys.executable, "-c", prelude + program))


def failure(request, program):
    with pytest.raises(EngineError) as caught:
        run(request, program)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_request_arrives_and_the_answer_comes_back(request_for, tmp_path):
    program = f"open({str(tmp_path / 'asked')!r}, 'w').write(sys.stdin.read())\n"
    answer = run(request_for, program + f"say({BUILT.model_dump_json()!r})")
    assert answer == BUILT
    asked = BuildRequest.model_validate_json((tmp_path / "asked").read_text())
    assert asked == request_for


def test_progress_is_passed_on_in_order(request_for):
    events = [PhaseStarted(phase="a", steps=2), StepDone(phase="a", step=0)]
    lines = [event.model_dump_json() for event in [*events, BUILT]]
    seen = Seen()
    run(request_for, "\n".join(f"say({line!r})" for line in lines), seen)
    assert seen.events == events


def test_a_line_that_comes_in_pieces_is_one_answer(request_for):
    text = BUILT.model_dump_json()
    program = (
        f"sys.stdout.write({text[:9]!r}); sys.stdout.flush(); time.sleep(0.2); say({text[9:]!r})"
    )
    assert run(request_for, program) == BUILT


def test_while_nothing_is_told_a_heart_beats(request_for, monkeypatch):
    monkeypatch.setattr(build_process, "_HEARTBEAT_SECONDS", 0.05)
    seen = Seen()
    run(request_for, f"time.sleep(1); say({BUILT.model_dump_json()!r})", seen)
    assert seen.beats >= 3


def test_a_refusal_is_passed_on_word_for_word(request_for):
    program = """say('{"event": "failed", "message": "no implementation for node 7"}')"""
    assert failure(request_for, program) == "no implementation for node 7"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_crash_names_the_signal_and_the_last_words(request_for, name):
    program = "print('terminate called: bad_alloc', file=sys.stderr, flush=True)\n"
    message = failure(request_for, program + f"import signal; os.kill(os.getpid(), signal.{name})")
    assert message.startswith(f"saver.fp16: TensorRT crashed ({name}). ")
    assert message.endswith("Its last words: terminate called: bad_alloc")


def test_a_kill_is_said_to_be_want_of_memory_most_often(request_for):
    message = failure(request_for, "import signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "was killed (SIGKILL), most often because memory ran out" in message
    assert "--workspace" in message


def test_a_kill_that_the_kernel_counted_is_want_of_memory(request_for, monkeypatch, tmp_path):
    statistics = tmp_path / "vmstat"
    statistics.write_text("pgfault 12\noom_kill 3\n")
    monkeypatch.setattr(build_process, "_STATISTICS", statistics)
    program = (
        f"open({str(statistics)!r}, 'w').write('oom_kill 4\\n')\n"
        "import signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert "the system ran out of memory and killed the build" in failure(request_for, program)


def test_the_kernels_own_statistics_are_read():
    assert build_process._out_of_memory_kills() >= 0
    assert "oom_kill" in build_process._STATISTICS.read_text()


@pytest.mark.parametrize("status", [0, 3])
def test_an_early_end_names_the_status(request_for, status):
    message = failure(request_for, f"print('oh', file=sys.stderr); sys.exit({status})")
    assert message == (
        f"saver.fp16: the building process ended early, status {status}. Its last words: oh"
    )


def test_what_is_no_answer_is_shown(request_for):
    message = failure(request_for, "say('Segfault ahead')\ntime.sleep(60)")
    assert message == "the building process answered 'Segfault ahead', which is no answer."


def test_a_command_that_cannot_start_is_an_error_of_the_system(request_for):
    with pytest.raises(FileNotFoundError):
        run_build(request_for, Seen(), command=("/nowhere/python",))


def test_an_interrupt_ends_the_process(request_for, tmp_path):
    class Interrupting(Seen):
        def progress(self, event):
            raise KeyboardInterrupt

    pid = tmp_path / "pid"
    started = PhaseStarted(phase="a", steps=1).model_dump_json()
    program = f"open({str(pid)!r}, 'w').write(str(os.getpid())); say({started!r}); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run(request_for, program, Interrupting())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_process_that_answers_and_then_hangs_is_ended(request_for, monkeypatch):
    monkeypatch.setattr(build_process, "_GRACE_SECONDS", 0.1)
    assert run(request_for, f"say({BUILT.model_dump_json()!r}); time.sleep(60)") == BUILT


def test_ctrl_c_reaches_the_caller_only(request_for):
    """The build has a session of its own, so the terminal's signal does not tear it mid-write."""
    program = f"assert os.getsid(0) == os.getpid(); say({BUILT.model_dump_json()!r})"
    assert run(request_for, program) == BUILT


def alive(pid):
    """Whether a process runs; one that waits to be collected does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_builder_answers_even_where_a_library_prints(tmp_path):
    """What is printed goes to standard error; without TensorRT the answer says so."""
    (tmp_path / "tensorrt.py").write_text(
        "import os\nos.write(1, b'noise\\n')\nraise ModuleNotFoundError(name='tensorrt_libs')\n"
    )
    asked = BuildRequest(
        name="saver.fp16",
        library="tensorrt",
        model="none.onnx",
        form="fp16",
        inputs=(),
        outputs=(),
        profiles=bucket_profiles([1]),
        flags=Flags(),
        output=str(tmp_path / "plan"),
    )
    program = run_python(
        "-m",
        "engines.builder",
        environment={"PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        input=asked.model_dump_json(),
    )
    assert (program.returncode, program.stderr) == (0, "noise\n")
    assert program.stdout.startswith('{"event":"failed","message":"TensorRT is not installed')


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_a_real_caller_leaves_no_builder(name, tmp_path):
    pid = tmp_path / "pid"
    builder = (
        "import os, time; from engines.builder import _die_with_parent; _die_with_parent(); "
        f"open({str(pid) + '.new'!r}, 'w').write(str(os.getpid())); "
        f"os.rename({str(pid) + '.new'!r}, {str(pid)!r}); time.sleep(60)"
    )
    # In the background of a shell SIGINT is ignored, and a child inherits that.
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from engines.build_messages import BuildRequest
from engines.build_process import run_build
from tests.engines.test_build_process import Seen
from runtime.plans import Flags, bucket_profiles
request = BuildRequest(name="a", library="tensorrt", model="m", form="fp16", inputs=(), outputs=(),
    profiles=bucket_profiles([1]), flags=Flags(), output="o")
run_build(request, Seen(), command=(sys.executable, "-c", {builder!r}))
"""
    caller = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    with caller:
        while not pid.exists() and caller.poll() is None:
            time.sleep(0.02)
        caller.send_signal(getattr(signal, name))
        caller.communicate()
    assert caller.returncode == -getattr(signal, name)
    deadline = time.monotonic() + 10
    while alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(int(pid.read_text()))
