"""The doctor survives what libraries and commands do, and says what that was."""

import pytest

from runtime.doctor_checks import explain
from runtime.doctor_system import LIBRARIES, System
from tests.runtime.fake_machine import FakeMachine


@pytest.fixture
def machine(tmp_path):
    return FakeMachine(tmp_path)


def test_a_library_that_imports_tells_its_facts(machine):
    folder = machine.package("numpy", "__version__ = '2.1.0'")
    answer = machine.system().ask("numpy")
    assert answer.works
    assert answer.facts == {"version": "2.1.0", "file": str(folder / "__init__.py")}


def test_a_library_that_is_not_there_is_missing(machine):
    assert machine.system().ask("numpy").state == "missing"
    assert machine.system().ask("cuda_bindings").state == "missing"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise ImportError('libx.so: cannot open')", "ImportError: libx.so: cannot open"),
        ("import os; os.abort()", "the import crashed (SIGABRT)"),
        ("import os; os.kill(os.getpid(), 11)", "the import crashed (SIGSEGV)"),
        ("import os; os._exit(0)", "it said nothing"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
        ("import absent_module", "ModuleNotFoundError: No module named 'absent_module'"),
        ("x = 1", "AttributeError: module 'numpy' has no attribute '__version__'"),
        ("raise ValueError('long' * 1000)", "ValueError: long"),
    ],
)
def test_an_import_that_fails_crashes_or_exits_is_broken(machine, source, error):
    machine.package("numpy", source)
    answer = machine.system().ask("numpy")
    assert answer.state == "broken"
    assert answer.error.startswith(error)
    assert len(answer.error) <= 1000


def test_an_import_that_hangs_is_broken(machine):
    machine.package("numpy", "import time; time.sleep(60)")
    answer = machine.system(seconds=0.3).ask("numpy")
    assert (answer.state, answer.error) == ("broken", "no answer within 0.3 s")


def test_an_import_may_print_what_it_likes(machine):
    machine.package(
        "numpy", "print('{}'); __version__ = '1'; import atexit\natexit.register(print)"
    )
    assert machine.system().ask("numpy").facts["version"] == "1"


def test_a_python_that_cannot_be_started_is_broken(machine):
    answer = machine.system(python="/nowhere/python").ask("numpy")
    assert answer.error == "/nowhere/python: No such file or directory"


def test_all_libraries_are_asked(machine):
    machine.package("numpy")
    answers = machine.system().ask_all()
    assert set(answers) == set(LIBRARIES)
    assert {name for name, answer in answers.items() if answer.works} == {"numpy"}


def test_a_command_gives_its_output_or_nothing(machine):
    machine.command("works", "echo 'NV Power Mode: 15W'")
    machine.command("fails", "echo partly; exit 3")
    machine.command("hangs", "sleep 60")
    system = machine.system(seconds=0.5)
    assert system.run("works", "-q") == "NV Power Mode: 15W\n"
    assert system.run("fails") == "partly\n"
    assert system.run("hangs") is None
    assert system.run("absent-command") is None


def test_files_that_cannot_be_read_are_no_text(machine):
    machine.file("etc/is_a_folder/file")
    (machine.root / "etc/bad").write_bytes(b"\xff\xfe ok")
    system = machine.system()
    assert system.text("etc/is_a_folder") is None
    assert system.text("absent") is None
    assert "ok" in system.text("etc/bad")
    assert not system.exists("absent")
    assert system.find("nothing/*") == []


def test_the_defaults_are_this_machine_and_this_python():
    answer = System().ask("numpy")
    assert answer.works
    assert answer.facts["version"]


@pytest.mark.parametrize(
    ("error", "cause", "fix"),
    [
        ("ImportError: numpy.core.multiarray failed to import", "NumPy 1", "pip 'numpy<2'"),
        ("AttributeError: module 'numpy' has no attribute 'bool'", "1.24", "pip 'numpy<1.24'"),
        ("ImportError: libGL.so.1: cannot open", "windows", "pip opencv-python-headless"),
        (
            "ImportError: x.so: undefined symbol: cuArrayCreate_v2",
            "(undefined symbol: cuArr",
            "some",
        ),
        ("ImportError: version `GLIBC_2.38' not found", "newer system (GLIBC_2.38)", None),
        (
            "ModuleNotFoundError: No module named 'flatbuffers.x'",
            "flatbuffers, ",
            "pip flatbuffers",
        ),
        ("OSError: x.so: invalid ELF header", "another processor", None),
        ("ImportError: {strange} %s\nsecond line", "ImportError: {strange} %s", "some"),
        ("", "no reason was given", "some"),
    ],
)
def test_import_errors_are_explained(error, cause, fix):
    reason = explain(error, pip="pip", package="some")
    assert cause in reason.cause
    assert "\n" not in reason.cause
    assert reason.fix is fix is None or fix in reason.fix


def test_what_a_library_printed_of_numpy_is_part_of_the_reason(machine):
    machine.package(
        "cv2",
        """
        import sys
        print("A module that was compiled using NumPy 1.x cannot be run in\\nNumPy 2.1.0 as it "
              "may crash.", file=sys.stderr)
        raise ImportError("initialization failed")
        """,
    )
    error = machine.system().ask("opencv").error
    assert "ImportError: initialization failed (compiled using NumPy 1.x" in error
    assert explain(error, pip="pip", package="x").fix == "pip 'numpy<2'"
