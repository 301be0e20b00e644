"""The set-up behind the scripts, and what ``scripts/test --all`` promises."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_environment():
    path = ROOT / "scripts" / "environment.py"
    spec = importlib.util.spec_from_file_location("scripts_environment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


env = load_environment()
PLAIN = env.Host("/usr/bin/python3", cv2=False, tensorrt=False, numpy_1=False)
JETPACK = env.Host("/usr/bin/python3", cv2=True, tensorrt=True, numpy_1=True)


@pytest.fixture
def environment(tmp_path):
    folder = tmp_path / "environment"
    folder.mkdir()
    return env.Environment(folder)


@pytest.fixture
def ready(environment):
    """An environment that a set-up has finished, of which only the stamp and the Python exist."""
    environment.python.parent.mkdir()
    environment.python.symlink_to(sys.executable)
    stamp = env.Stamp(environment.interpreter(), env.project_hash(), ("opencv",))
    environment.write_stamp(stamp)
    environment.log.touch()
    return environment


@pytest.mark.parametrize(
    ("stamp", "action"),
    [
        (None, "rebuild"),
        (env.Stamp(), "rebuild"),
        (env.Stamp("py", "", ("test",)), "rebuild"),
        (env.Stamp("other", "hash", ("test",)), "rebuild"),
        (env.Stamp("py", "old", ("test",)), "install"),
        (env.Stamp("py", "hash", ("opencv",)), "install"),
        (env.Stamp("py", "hash", ("test",)), "start"),
        (env.Stamp("py", "hash", ("opencv", "test")), "start"),
    ],
)
def test_a_stamp_decides_what_is_done(stamp, action):
    wanted = frozenset({"test"})
    assert env.decide(stamp, python="py", project="hash", extras=wanted) == action


def test_a_broken_interpreter_is_rebuilt(ready):
    ready.python.unlink()
    ready.python.symlink_to("/nonexistent/python3.10")
    assert env.needed(ready, frozenset()) == "rebuild"


def test_another_python_counts_only_when_asked_for(ready, monkeypatch):
    monkeypatch.setattr(env, "base_python", lambda: "/usr/bin/env")
    monkeypatch.delenv("PYTHON", raising=False)
    assert env.needed(ready, frozenset()) == "start"
    monkeypatch.setenv("PYTHON", "/usr/bin/env")
    assert env.needed(ready, frozenset()) == "rebuild"


def test_a_second_run_changes_nothing(ready, monkeypatch):
    monkeypatch.setattr(env.Environment, "run", lambda *_: pytest.fail("a command was run"))
    before = (ready.folder / env.STAMP_NAME).stat().st_mtime_ns
    env.ensure(ready, frozenset({"opencv"}))
    assert (ready.folder / env.STAMP_NAME).stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"python": "x"}'])
def test_a_damaged_stamp_means_rebuild(environment, text):
    (environment.folder / env.STAMP_NAME).write_text(text)
    assert environment.stamp() == env.Stamp()
    assert env.needed(environment, frozenset()) == "rebuild"


def failing(*words):
    """Return a `run` in which each command that contains one of the words fails, and its record."""
    seen = []

    def run(command):
        seen.append(" ".join(command))
        return not any(word in seen[-1] for word in words)

    return run, seen


@pytest.mark.parametrize(
    ("broken", "chosen"),
    [
        ((), "venv"),
        (("-m venv /",), "venv and the system's pip"),
        (("-m venv /", "--python"), "virtualenv"),
        (("-m venv",), "virtualenv"),
    ],
)
def test_the_first_way_that_works_is_taken(environment, broken, chosen):
    run, _ = failing(*broken)
    assert env.create(environment, env.methods(PLAIN, environment.folder), run).name == chosen


def test_a_way_that_leaves_no_pip_does_not_count(environment):
    checks = iter([False, True])
    way = env.create(
        environment,
        env.methods(PLAIN, environment.folder),
        lambda command: next(checks) if command[-1] == "--version" else True,
    )
    assert way.name == "venv and the system's pip"


def test_without_any_way_the_apt_line_is_printed(environment):
    run, seen = failing("-m venv", "-m pip")
    with pytest.raises(env.SetUpError, match=r"sudo apt install python3\.\d+-venv"):
        env.create(environment, env.methods(PLAIN, environment.folder), run)
    assert len(seen) == 3


def test_leftovers_of_a_failed_way_are_removed(environment):
    environment.write_stamp(env.Stamp())
    leftover = environment.folder / "lib" / "half"
    found = []

    def run(command):
        found.append(leftover.exists())
        leftover.mkdir(parents=True)
        return False

    with pytest.raises(env.SetUpError):
        env.create(environment, env.methods(PLAIN, environment.folder), run)
    assert found == [False, False, False]
    assert environment.stamp() == env.Stamp()


@pytest.mark.parametrize(("host", "sees"), [(PLAIN, False), (JETPACK, True)])
def test_only_jetpack_environments_see_the_system(environment, host, sees):
    commands = [" ".join(way.commands[-1]) for way in env.methods(host, environment.folder)]
    venv, _, virtualenv = commands
    assert ("--system-site-packages" in venv) == sees
    assert ("--system-site-packages" in virtualenv) == sees


def simulate_build(monkeypatch, environment, host):
    """Run `build` without creating or installing anything; return what `install` got."""
    calls = []

    def install(_, extras, *options):
        assert env.needed(environment, frozenset()) == "rebuild"
        calls.append((extras, options))

    environment.python.parent.mkdir()
    environment.python.symlink_to(sys.executable)
    monkeypatch.setattr(env, "probe", lambda python: host)
    monkeypatch.setattr(env, "create", lambda *_: env.Method("test", ()))
    monkeypatch.setattr(env, "install", install)
    env.build(environment, frozenset({"test"}))
    return calls


def test_opencv_comes_from_the_registry_where_the_system_has_none(environment, monkeypatch):
    calls = simulate_build(monkeypatch, environment, PLAIN)
    assert calls == [({"opencv", "test"}, ())]
    assert env.needed(environment, frozenset({"opencv", "test"})) == "start"


def test_the_systems_opencv_and_its_numpy_are_kept(environment, monkeypatch):
    ((extras, options),) = simulate_build(monkeypatch, environment, JETPACK)
    assert extras == {"test"}
    assert options[0] == "--constraint"
    assert Path(options[1]).read_text() == "numpy<2\n"


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["build", "extend"])
def test_an_interrupted_set_up_is_redone(ready, monkeypatch, step):
    monkeypatch.setattr(env, "probe", lambda python: PLAIN)
    monkeypatch.setattr(env, "create", lambda *_: env.Method("test", ()))
    monkeypatch.setattr(env, "install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(env, step)(ready, frozenset({"test"}))
    assert env.needed(ready, frozenset()) == "rebuild"


def test_extras_add_up(ready, monkeypatch):
    monkeypatch.setattr(env, "install", lambda *_: None)
    env.extend(ready, frozenset({"test"}))
    assert env.needed(ready, frozenset({"opencv", "test"})) == "start"


@pytest.mark.parametrize(("still_works", "action"), [(True, "start"), (False, "rebuild")])
def test_what_worked_is_kept_when_an_extra_cannot_be_installed(
    ready, monkeypatch, still_works, action
):
    monkeypatch.setattr(
        env.Environment, "run", lambda self, command: still_works and "pip" not in command
    )
    with pytest.raises(env.SetUpError, match="installing failed"):
        env.extend(ready, frozenset({"test"}))
    assert env.needed(ready, frozenset({"opencv"})) == action


def test_a_folder_of_someone_else_is_left_alone(environment):
    precious = environment.folder / "precious"
    precious.touch()
    with pytest.raises(env.SetUpError, match="was not made by these scripts"):
        env.ensure(environment, frozenset())
    assert list(environment.folder.iterdir()) == [precious]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(env.SetUpError, match="TINYSAVER_VENV"):
        env.ensure(env.Environment(tmp_path / "file" / "environment"), frozenset())


OURS = ("PYTHON", "REQUIRE_ALL", "REQUIRE_GPU", "TINYSAVER_VENV")


def start(*command, cwd, **variables):
    inherited = {key: value for key, value in os.environ.items() if key not in OURS}
    return subprocess.run(
        command, cwd=cwd, env=inherited | variables, capture_output=True, text=True, check=False
    )


def test_a_python_that_is_too_old_is_refused(tmp_path):
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = start(str(ROOT / "scripts" / "bench"), cwd=tmp_path, PYTHON=str(old))
    assert result.returncode == 1
    assert f"expected Python 3.10 or newer, got none of: {old}" in result.stderr


SKIPS = {
    "skip": "import pytest\ndef test_it():\n    pytest.skip('why')\n",
    "module": "import pytest\npytest.importorskip('no_such_module')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef f():\n    pytest.skip('why')\n"
    "def test_it(f):\n    pass\n",
}
NO_SKIPS = {
    "xfail": "import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert False\n",
    "gpu": "import pytest\n@pytest.mark.gpu\ndef test_it():\n    pass\n",
}


def run_pytest(folder, source, **variables):
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_it.py").write_text(source + "\ndef test_passes():\n    pass\n")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs a GPU\n")
    return start(sys.executable, "-m", "pytest", "-q", cwd=folder, **variables)


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS)
def test_a_skip_fails_when_all_is_required(tmp_path, source):
    assert run_pytest(tmp_path, source).returncode in (0, 5)
    required = run_pytest(tmp_path, source, REQUIRE_ALL="1")
    assert required.returncode in (1, 2)
    assert "REQUIRE_ALL=1 allows no skip" in required.stdout


@pytest.mark.parametrize("source", NO_SKIPS.values(), ids=NO_SKIPS)
def test_expected_failures_and_missing_gpus_pass_when_all_is_required(tmp_path, source):
    result = run_pytest(tmp_path, source, REQUIRE_ALL="1")
    assert result.returncode == 0
    assert "failed" not in result.stdout.replace("xfailed", "")


def copy_of_the_repository(folder):
    ignored = shutil.ignore_patterns(".*cache", ".venv*", ".git", "__pycache__", "*.egg-info")
    return Path(shutil.copytree(ROOT, folder, ignore=ignored))


@pytest.mark.slow
def test_a_fresh_clone_sets_up_once_and_refuses_foreign_packages(tmp_path):
    clone = copy_of_the_repository(tmp_path / "a clone")
    bench = [str(clone / "scripts" / "bench"), "--help"]
    first = start(*bench, cwd=tmp_path, PYTHON=sys.executable)
    assert first.returncode == 0, first.stderr
    assert "setting up" in first.stderr
    second = start(*bench, cwd=tmp_path)
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    (packages,) = (clone / ".venv").glob("lib/python3*/site-packages")
    foreign = packages / "kernels-9.0.dist-info"
    foreign.mkdir()
    (foreign / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 9.0\n")
    (foreign / "top_level.txt").write_text("kernels\n")
    (packages / "kernels").mkdir()
    (packages / "kernels" / "__init__.py").touch()
    third = start(*bench, cwd=tmp_path)
    assert third.returncode == 1
    assert "'kernels' of kernels" in third.stderr
    assert "Traceback" not in third.stderr
