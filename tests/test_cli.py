from __future__ import annotations

import re
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from runtime import cli, environment, terminal


@pytest.fixture
def fake_verb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A verb ``fake``, without a click command yet."""
    module = types.ModuleType("fake_verb")
    monkeypatch.setitem(sys.modules, "fake_verb", module)
    monkeypatch.setitem(cli.VERBS, "fake", cli.Verb("fake_verb", "Nothing."))
    return module


def owner(folder: Path, name: str, **files: str) -> Path:
    """Make an installed distribution of metadata only."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for file, text in files.items():
        (info / file.replace("top_level", "top_level.txt")).write_text(text)
    return folder


def test_without_arguments_all_verbs_are_listed() -> None:
    result = CliRunner().invoke(cli.main, [])
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in cli.VERBS)


def test_an_unknown_verb_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli.main, ["bensch"])
    assert result.exit_code == 2
    assert "bensch" in result.output


@pytest.mark.parametrize("verb", cli.VERBS.values(), ids=cli.VERBS)
def test_every_listed_verb_has_its_module(verb: cli.Verb) -> None:
    assert find_spec(verb.module) is not None


@pytest.mark.parametrize("name", cli.VERBS)
def test_the_help_of_every_verb_is_well_formed_and_has_an_example(name: str) -> None:
    result = CliRunner().invoke(cli.main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "\\b" not in result.output
    assert "Example" in result.output or "Commands:" in result.output


def test_all_arguments_are_forwarded_untouched(fake_verb: types.ModuleType) -> None:
    @click.command()
    @click.option("--batch", type=int)
    @click.argument("files", nargs=-1)
    def command(batch: int, files: tuple[str, ...]) -> None:
        click.echo(f"{batch} {files}")

    fake_verb.main = command
    result = CliRunner().invoke(cli.main, ["fake", "--batch", "32", "a", "--", "--b"])
    assert result.output == "32 ('a', '--b')\n", result.output


def test_help_of_a_verb_is_its_own(fake_verb: types.ModuleType) -> None:
    fake_verb.main = click.Command("main", help="What it does.")
    result = CliRunner().invoke(cli.main, ["fake", "--help"])
    assert "Usage: tinysaver fake" in result.output
    assert "What it does." in result.output


def test_the_exit_status_of_a_verb_is_passed_on(fake_verb: types.ModuleType) -> None:
    fake_verb.main = click.Command("main", callback=lambda: sys.exit(3))
    assert CliRunner().invoke(cli.main, ["fake"]).exit_code == 3


def test_a_missing_extra_is_named(
    fake_verb: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    fake_verb.main = click.Command("main", callback=lambda: __import__("torch"))
    result = CliRunner().invoke(cli.main, ["fake"])
    assert result.exit_code == 1
    assert "pip install 'tinysaver-runtime[train]'" in result.output


def test_modules_of_verbs_can_be_imported_without_any_extra() -> None:
    # Run as python -m MODULE, only then can they name the extra that is missing.
    blocked = dict.fromkeys(("torch", "scipy", "sklearn", "matplotlib", "onnx"))
    modules = [verb.module for verb in cli.VERBS.values()]
    code = (
        f"import importlib, sys; sys.modules.update({blocked}); "
        f"[importlib.import_module(name) for name in {modules}]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_extras_named_for_missing_modules_exist() -> None:
    project = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert all(f"\n{extra} = [" in extras for extra in terminal.EXTRAS.values())


@pytest.mark.parametrize(
    "files",
    [
        {"top_level": "kernels\n"},
        {"RECORD": "kernels/__init__.py,sha256=x,1\nkernels-1.0.dist-info/RECORD,,\n"},
        {"RECORD": "kernels.py,sha256=x,1\n"},
    ],
    ids=["declared", "package in the record", "module in the record"],
)
def test_a_foreign_package_of_our_name_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_verb: types.ModuleType,
    files: dict[str, str],
) -> None:
    fake_verb.main = click.Command("main", callback=lambda: pytest.fail("the verb was run"))
    monkeypatch.syspath_prepend(owner(tmp_path, "Other_Kernels", **files))
    assert environment.foreign_packages() == {"kernels": "other-kernels"}
    result = CliRunner().invoke(cli.main, ["fake"])
    assert result.exit_code == 1
    assert "'kernels' of other-kernels" in result.output
    assert "scripts/bench" in result.output


def test_similar_names_and_our_own_distribution_are_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner(tmp_path, "tinysaver_runtime", top_level="\n".join(environment.PACKAGES))
    owner(tmp_path, "other", RECORD="kernels_extra/__init__.py,,\nlib/kernels/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.foreign_packages() == {}
    environment.refuse_foreign_packages()


def test_machine_facts_are_filled_in() -> None:
    facts = environment.describe()
    assert 1 <= facts.cpus_available <= facts.cpus
    assert facts.cpu
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert "CPUExecutionProvider" in facts.providers


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    for command in (("init",), (*identity, "commit", "--allow-empty", "-m", "First")):
        subprocess.run(["git", *command], cwd=tmp_path, capture_output=True, check=True)
    return tmp_path


def test_only_the_commit_of_the_own_checkout_counts(repository: Path) -> None:
    commit = environment._commit(repository)
    assert re.fullmatch(r"[0-9a-f]{7,40}", commit or "")
    (repository / "site-packages").mkdir()
    assert environment._commit(repository / "site-packages") is None


def test_a_damaged_checkout_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert environment._commit(tmp_path) is None
