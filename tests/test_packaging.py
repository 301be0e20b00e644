"""What is built holds everything, and works where only the wheel is."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What scripts/build_kernels makes for a release, which git does not track.
PREBUILT = ("kernels/prebuilt/manifest.json", "kernels/prebuilt/cu13/select-sm_87.cubin")
PACKAGES = ("calibration", "engines", "kernels", "runtime", "savers", "zoo")
KEYS = (
    "cascade",
    "large_only",
    "saver_only",
    "speedup",
    "overhead_ratio",
    "fill_loss",
    "escalation_rate",
    "macs_saved",
    "certificate",
    "environment",
)

pytestmark = pytest.mark.slow


def packaged_files() -> set[str]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    names = (path.relative_to(ROOT).as_posix() for path in paths if path.is_file())
    return {name for name in names if "__pycache__" not in name and "/plans/" not in name}


def load_script_environment():
    path = ROOT / "scripts" / "environment.py"
    spec = importlib.util.spec_from_file_location("packaging_environment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Build the sdist and, from it, the wheel."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*cache", ".venv*", ".git", "*.egg-info")
    tree = shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    for name in PREBUILT:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    options = ("--no-isolation", "--outdir", folder / "dist")
    output(sys.executable, "-I", "-m", "build", *options, cwd=tree)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Install the wheel, with base dependencies only, in an environment of its own."""
    scripts = load_script_environment()
    environment = scripts.Environment(tmp_path_factory.mktemp("environment"))
    ways = scripts.methods(scripts.probe(scripts.base_python()), environment.folder)
    scripts.create(environment, ways, environment.run)
    output(environment.python, "-I", "-m", "pip", "install", wheel, cwd=environment.folder)
    return environment.python


def test_the_wheel_holds_every_file_of_the_packages_and_the_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert (packaged_files() | set(PREBUILT)) - names == set()
    assert [name for name in names if name.endswith("dist-info/licenses/LICENSE")]
    roots = {name.partition("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == set(PACKAGES)
    assert not [name for name in names if "__pycache__" in name]


def test_the_sdist_holds_every_file_of_the_packages(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert packaged_files() | {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_installed_bench_runs_from_an_empty_folder(installed, tmp_path):
    arguments = ("--quick", "--json", "out.json")
    output(installed, "-m", "runtime.bench", *arguments, cwd=tmp_path)
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(KEYS) <= set(report)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_the_console_command_lists_the_verbs(installed, tmp_path):
    listing = output(installed.parent / "tinysaver", cwd=tmp_path)
    assert "  bench " in listing
    assert "  threshold " in listing
