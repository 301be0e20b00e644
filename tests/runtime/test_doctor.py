"""The program: what it prints, its exit code, its JSON; whole machines from end to end."""

import json
import subprocess
import sys
from io import StringIO

import pytest
from click.testing import CliRunner
from rich.console import Console

from runtime import cli, doctor
from runtime.bundle import demo_folder
from runtime.doctor_checks import Finding
from runtime.doctor_report import Section, Verdict, as_json, show
from runtime.doctor_system import System
from tests.runtime.fake_machine import ROOT, FakeMachine

RUNTIME = "def get_available_providers(): return ['CPUExecutionProvider']\n__version__ = '1.18.0'"


@pytest.fixture
def machine(tmp_path):
    """A PC without a GPU that has what it needs."""
    made = FakeMachine(tmp_path)
    made.file("proc/cpuinfo", "processor : 0\nmodel name : A CPU\nflags : avx2 avx_vnni\n")
    made.package("numpy", "__version__ = '1.26.4'")
    made.package("onnxruntime", RUNTIME)
    return made


def by_name(sections):
    return {finding.name: finding for section in sections for finding in section.findings}


@pytest.fixture
def run(monkeypatch):
    """Run the program on a machine; return its result."""

    def call(machine, *arguments, **changes):
        monkeypatch.setattr(doctor, "System", lambda: machine.system(**changes))
        return CliRunner().invoke(doctor.main, list(map(str, arguments)))

    return call


def test_a_machine_without_a_gpu_is_fine(machine):
    sections = doctor.examine(machine.system())
    assert doctor.verdict(sections) == Verdict(cpu=True, gpu=False)
    assert {finding.status for finding in by_name(sections).values()} == {"ok", "absent", "warning"}


def test_a_jetson_with_everything_runs_on_both(machine):
    machine.jetson()
    machine.driver(name="Orin", minor=7)
    machine.tensorrt("10.3.0")
    machine.package("pycuda", "VERSION_TEXT = '2024.1'")
    machine.package("pycuda.driver", "")
    sections = doctor.examine(machine.system())
    assert doctor.verdict(sections) == Verdict(cpu=True, gpu=True)
    found = by_name(sections)
    assert found["jetpack"].found.startswith("JetPack 6.2")
    assert found["driver"].found.endswith("Orin (sm_87, 8.0 GiB)")
    assert found["tensorrt"].status == "ok"


EVERYTHING = ("python", "tinysaver", "numpy", "onnxruntime", "driver", "tensorrt", "pycuda")


@pytest.mark.parametrize("lacking", EVERYTHING)
def test_a_gpu_is_used_only_with_all_that_it_needs(lacking):
    """What is not installed is a warning at most, and yet not there."""
    findings = [Finding(name, "warning" if name == lacking else "ok", name) for name in EVERYTHING]
    assert doctor.verdict([Section("All", findings)]) == Verdict(
        cpu=lacking in ("driver", "tensorrt", "pycuda"), gpu=False
    )


def test_a_broken_library_does_not_stop_the_others(machine):
    (machine.site / "onnxruntime/__init__.py").write_text("import os; os.abort()")
    machine.package("tensorrt", "raise SystemError('strange')")
    sections = doctor.examine(machine.system())
    assert doctor.verdict(sections) == Verdict(cpu=False, gpu=False)
    found = by_name(sections)
    assert "crashed" in found["onnxruntime"].cause
    assert "strange" in found["tensorrt"].cause
    assert found["numpy"].status == "ok"


def test_a_check_that_fails_is_a_warning_of_its_own(machine, monkeypatch):
    def check_moon(examination):
        raise RuntimeError("it is down")

    monkeypatch.setitem(doctor.CHECKS, "Machine", (check_moon,))
    found = by_name(doctor.examine(machine.system()))
    assert found["moon"].status == "warning"
    assert "it is down" in found["moon"].cause
    assert found["numpy"].status == "ok"


def test_the_exit_code_is_0_with_warnings_and_1_with_a_problem(machine, run):
    result = run(machine)
    assert result.exit_code == 0, result.output
    assert "warning  opencv         not installed\n" in result.output
    machine.driver(status=999, error="CUDA_ERROR_UNKNOWN")
    result = run(machine)
    assert result.exit_code == 1
    assert "1 problem, 1 warning. Cascades can run here on the CPU." in result.output


def test_in_a_pipe_every_line_stands_alone(machine, run):
    """A long command is one line, so that it can be copied and searched for."""
    place = "/very/long/" + "folder/" * 40
    output = run(machine, prefix=place).output
    version = ".".join(map(str, sys.version_info[:3]))
    assert f"\nok       python         {version}, environment {place}\n" in output
    for line in output.splitlines()[:-1]:
        assert line.split()[0] in ("ok", "absent", "warning", "problem", "cause:", "fix:")
    assert "\x1b" not in output


def test_json_has_stable_keys(machine, run):
    told = json.loads(run(machine, "--json").stdout)
    assert set(told) == {"format", "usable", "problems", "warnings", "checks"}
    assert told["format"] == "tinysaver.doctor/1"
    assert told["usable"] == {"cpu": True, "gpu": False}
    assert (told["problems"], told["warnings"]) == (0, 1)
    for check in told["checks"]:
        assert set(check) == {"section", "name", "status", "found", "cause", "fix", "facts"}
    names = [check["name"] for check in told["checks"]]
    assert names == [
        *("cpu", "python", "tinysaver", "numpy", "onnxruntime", "opencv", "driver", "cuda"),
        *("nvrtc", "tensorrt", "pycuda", "cuda_bindings"),
    ]


def test_a_bundle_is_examined_too(machine, run):
    told = json.loads(run(machine, demo_folder(), "--json").stdout)
    assert told["checks"][-1]["name"] == "bundle"
    assert told["checks"][-1]["facts"]["name"] == "fashion"


def test_a_bundle_that_is_not_there_is_a_problem(machine, run):
    result = run(machine, "/nowhere", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["usable"] == {"cpu": False, "gpu": False}


FINDINGS = [
    Section("Python", [Finding("python", "ok", "3.11")]),
    Section("GPU", [Finding("tensorrt", "problem", "bad " * 30, "why " * 30, "mend " * 30)]),
    Section("Bundle", []),
]


def shown(**options):
    console = Console(file=StringIO(), width=60, force_terminal=True, **options)
    show(console, FINDINGS, Verdict(cpu=True, gpu=False))
    return console.file.getvalue()


def test_on_a_terminal_text_is_wrapped_but_a_command_is_not():
    lines = shown(color_system=None).splitlines()
    assert "  ✓ python         3.11" in lines
    assert max(len(line) for line in lines if "mend" not in line) <= 60
    assert [line for line in lines if "mend" in line] == [f"{' ' * 19}fix: {'mend ' * 30}"]
    assert "Bundle" not in lines
    assert lines[-1] == "1 problem. Cascades can run here on the CPU."


def test_a_terminal_without_unicode_gets_plain_marks():
    class Ascii(StringIO):
        encoding = "ascii"

    console = Console(file=Ascii(), width=80, force_terminal=True, color_system=None)
    show(console, FINDINGS, Verdict(cpu=False, gpu=False))
    text = console.file.getvalue()
    assert text.isascii()
    assert "  + python" in text
    assert text.endswith("No cascade can run here yet.\n")


def test_nothing_wrong_is_said():
    told = as_json(FINDINGS[:1], Verdict(cpu=True, gpu=True))
    assert told["problems"] == 0
    console = Console(file=StringIO(), width=80)
    show(console, FINDINGS[:1], Verdict(cpu=True, gpu=True))
    expected = "Nothing is wrong. Cascades can run here on the CPU and the GPU.\n"
    assert console.file.getvalue().endswith(expected)


def test_the_doctor_starts_where_onnxruntime_does_not_import(tmp_path):
    """Whatever the broken library does, the program itself must not import it."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("import os; os.abort()")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runtime.doctor as d; d.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    checks = {item["name"]: item for item in json.loads(result.stdout)["checks"]}
    assert "SIGABRT" in checks["onnxruntime"]["cause"]


def test_packages_of_our_names_do_not_keep_the_doctor_from_telling_of_them(
    machine, run, monkeypatch, tmp_path
):
    info = tmp_path / "other" / "kernels-0.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9\n")
    (info / "top_level.txt").write_text("kernels\n")
    monkeypatch.syspath_prepend(tmp_path / "other")
    monkeypatch.setattr(doctor, "System", machine.system)
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == 1
    assert "problem  tinysaver" in result.output
    assert "fix: Use an environment of its own" in result.output


def test_without_click_the_doctor_says_what_to_install(tmp_path):
    program = "import sys; sys.modules['click'] = None; import runtime.doctor"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"doctor: {sys.executable} lacks click")
    assert "Traceback" not in result.stderr


def test_this_machine_can_be_examined():
    sections = doctor.examine(System())
    assert doctor.verdict(sections).cpu
