"""Python, its environment, and what every machine needs."""

import pytest

from runtime.doctor_software import (
    check_distribution,
    check_numpy,
    check_onnxruntime,
    check_opencv,
    check_python,
    check_venv,
)
from tests.runtime.fake_machine import FakeMachine

OPENCV = """
__version__ = "4.8.0"
def getBuildInformation():
    return "  Video I/O:\\n    GStreamer:                   {gstreamer}\\n"
"""


@pytest.fixture
def machine(tmp_path):
    return FakeMachine(tmp_path)


@pytest.fixture
def environment(machine, tmp_path):
    """Return the examination of a Python in a virtual environment of its own."""

    def examine(*libraries, **changes):
        return machine.examination(*libraries, prefix=tmp_path / "venv", **changes)

    return examine


def system_package(machine, name, python="python3.10"):
    (machine.root / f"usr/lib/{python}/dist-packages/{name}").mkdir(parents=True)


def test_python_tells_its_version_and_environment(machine, environment, tmp_path):
    finding = check_python(environment(version=(3, 10, 12)))
    assert (finding.status, finding.found) == ("ok", f"3.10.12, environment {tmp_path / 'venv'}")
    assert "environment" not in check_python(machine.examination()).found


def test_a_python_that_is_too_old_is_a_problem(machine):
    finding = check_python(machine.examination(version=(3, 8, 10)))
    assert finding.status == "problem"
    assert "JetPack 6" in finding.fix


def test_an_environment_that_hides_the_systems_packages_is_told_how_to_show_them(
    machine, environment, tmp_path
):
    for name in ("tensorrt", "cv2"):
        system_package(machine, name)
    (finding,) = check_venv(environment(version=(3, 10, 12)))
    assert finding.status == "warning"
    assert finding.found.startswith("hides tensorrt and cv2 of ")
    assert finding.fix.endswith(f"{tmp_path}/venv/pyvenv.cfg")


def test_the_command_shows_them(machine, environment, tmp_path):
    """The command of the doctor, run on the file that `python -m venv` writes."""
    import subprocess

    system_package(machine, "cv2")
    (tmp_path / "venv").mkdir()
    config = tmp_path / "venv" / "pyvenv.cfg"
    config.write_text("home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.10.12\n")
    (finding,) = check_venv(environment(version=(3, 10, 12)))
    subprocess.run(finding.fix, shell=True, check=True)
    assert "include-system-site-packages = true\n" in config.read_text()


def test_packages_for_another_python_need_an_environment_of_that(machine, environment):
    system_package(machine, "tensorrt", "python3.10")
    (finding,) = check_venv(environment(version=(3, 12, 1)))
    assert finding.fix.startswith("/usr/bin/python3.10 -m venv --system-site-packages")


def test_packages_that_are_seen_are_not_hidden(machine, environment):
    system_package(machine, "cv2")
    machine.package("cv2", OPENCV.format(gstreamer="YES"))
    assert list(check_venv(environment("opencv"))) == []
    assert list(check_venv(machine.examination())) == []


def test_foreign_packages_of_our_names_are_a_problem(machine, monkeypatch, tmp_path):
    info = tmp_path / "other" / "kernels-0.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9\n")
    (info / "top_level.txt").write_text("kernels\n")
    assert check_distribution(machine.examination()).status == "ok"
    monkeypatch.syspath_prepend(tmp_path / "other")
    finding = check_distribution(machine.examination())
    assert finding.status == "problem"
    assert "kernels of kernels" in finding.found
    assert finding.fix.endswith("pip uninstall kernels")


@pytest.mark.parametrize("check", [check_numpy, check_onnxruntime])
def test_what_every_machine_needs_is_a_problem_where_it_is_not(machine, check):
    library = check.__name__.removeprefix("check_")
    finding = check(machine.examination(library))
    assert (finding.status, finding.found) == ("problem", "not installed")
    assert finding.fix.endswith(f"pip install {library}")
    machine.package(library, "raise ImportError('x.so: undefined symbol: abc')")
    finding = check(machine.examination(library))
    assert finding.status == "problem"
    assert "undefined symbol: abc" in finding.cause
    assert finding.fix.endswith(f"--force-reinstall --no-cache-dir {library}")


def test_onnxruntime_that_works_is_fine(machine):
    providers = "def get_available_providers(): return ['CPUExecutionProvider']"
    machine.package("onnxruntime", f"__version__ = '1.18.0'\n{providers}")
    finding = check_onnxruntime(machine.examination("onnxruntime"))
    assert (finding.status, finding.found) == ("ok", "1.18.0")
    assert finding.facts["providers"] == ["CPUExecutionProvider"]


@pytest.mark.parametrize(("built", "text"), [("YES (1.20.3)", "with"), ("NO", "without")])
def test_cv2_tells_whether_it_has_gstreamer(machine, built, text):
    machine.package("cv2", OPENCV.format(gstreamer=built))
    finding = check_opencv(machine.examination("opencv"))
    assert (finding.status, finding.found) == ("ok", f"4.8.0, {text} GStreamer")


def test_cv2_without_gstreamer_is_a_warning_on_a_jetson(machine):
    machine.jetson()
    machine.package("cv2", OPENCV.format(gstreamer="NO"))
    finding = check_opencv(machine.examination("opencv"))
    assert finding.status == "warning"
    assert "pip uninstall opencv-" in finding.fix


def test_no_cv2_is_a_warning_and_the_systems_own_is_preferred(machine, environment, tmp_path):
    finding = check_opencv(machine.examination("opencv"))
    assert finding.status == "warning"
    assert "opencv-python-headless" in finding.fix
    system_package(machine, "cv2")
    assert check_opencv(environment("opencv")).fix.endswith(f"{tmp_path}/venv/pyvenv.cfg")


def test_cv2_that_does_not_import_is_a_problem(machine):
    machine.package("cv2", "raise ImportError('libGL.so.1: cannot open shared object file')")
    finding = check_opencv(machine.examination("opencv"))
    assert finding.status == "problem"
    assert finding.fix.endswith("opencv-python-headless")
