"""Cubins come from the release, the cache or the compiler: never stale, never damaged."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from kernels import cubins, nvrtc, prebuilt
from kernels.cubins import Places, load_cubin
from kernels.errors import CompileError, CompilerMissingError, KernelError
from kernels.nvrtc import OPTIONS, Target
from kernels.sources import Source

SM_87 = Target("sm_87", (12, 6))
ADD = Source("add.cu", "add", (("sum.cuh", "sum"),))


class Compiler:
    """Stands in for NVRTC: its cubin tells what it was made of."""

    path = "libnvrtc.so.12"

    def __init__(self, version: tuple[int, int]) -> None:
        self.version = version
        self.compiled: list[str] = []

    def compile(self, source, architecture, options=OPTIONS):
        self.compiled.append(architecture)
        made_of = (source, architecture, options, self.version)
        return nvrtc.Compiled(repr(made_of).encode(), "")


@pytest.fixture
def compiler(monkeypatch) -> Compiler:
    stand_in = Compiler((12, 6))
    monkeypatch.setattr(nvrtc, "find", lambda target: stand_in)
    return stand_in


@pytest.fixture
def source(monkeypatch):
    """Make `ADD`, or what it is replaced by, the source of every module."""
    current = [ADD]

    def load(module):
        return current[0]

    monkeypatch.setattr(cubins, "load_source", load)
    monkeypatch.setattr(prebuilt, "load_source", load)
    return current


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(shipped=tmp_path / "shipped", cache=tmp_path / "cache")


def entry(places: Places) -> Path:
    assert places.cache
    (path,) = places.cache.iterdir()
    return path


def ship(places: Places, compiler: Compiler, *architectures: str) -> list[prebuilt.Entry]:
    jobs = [prebuilt.Job(compiler, "add", architecture) for architecture in architectures]
    return list(prebuilt.build(places.shipped, jobs, threads=1))


def no_compiler(target):
    raise CompilerMissingError("none")


def test_a_module_is_compiled_once(compiler, source, places):
    first = load_cubin("add", SM_87, places=places)
    assert load_cubin("add", SM_87, places=places) == first
    assert compiler.compiled == ["sm_87"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other.cu"},
        {"text": "add "},
        {"headers": (("sum.cuh", "sum "),)},
        {"headers": (("total.cuh", "sum"),)},
        {"headers": ()},
    ],
)
def test_another_source_is_compiled_anew(compiler, source, places, change):
    first = load_cubin("add", SM_87, places=places)
    source[0] = ADD._replace(**change)
    assert load_cubin("add", SM_87, places=places) != first
    assert len(compiler.compiled) == 2


def test_other_options_architectures_and_compilers_are_kept_apart(compiler, source, places):
    wanted = [
        lambda: load_cubin("add", SM_87, places=places),
        lambda: load_cubin("add", SM_87, places=places, options=("-G",)),
        lambda: load_cubin("add", SM_87._replace(architecture="sm_90"), places=places),
    ]
    found = {load() for load in wanted}
    compiler.version = (12, 9)
    found |= {load() for load in wanted}
    assert len(found) == 6
    assert {load() for load in wanted} <= found
    assert len(compiler.compiled) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
    ],
    ids=["empty", "half a checksum", "cut", "longer", "a bit of the cubin", "a bit of the sum"],
)
def test_a_damaged_entry_is_reported_and_rebuilt(compiler, source, places, caplog, damage):
    first = load_cubin("add", SM_87, places=places)
    whole = entry(places).read_bytes()
    entry(places).write_bytes(damage(whole))
    assert load_cubin("add", SM_87, places=places) == first
    assert "damaged, so it is compiled again" in caplog.text
    assert entry(places).read_bytes() == whole
    assert len(compiler.compiled) == 2


def test_an_entry_that_cannot_be_read_is_compiled(compiler, source, places, caplog):
    first = load_cubin("add", SM_87, places=places)
    path = entry(places)
    path.unlink()
    path.mkdir()
    assert load_cubin("add", SM_87, places=places) == first
    assert "cannot be read, so it is compiled again" in caplog.text


def test_a_cache_that_cannot_be_written_is_no_error(compiler, source, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    places = Places(tmp_path, cache=tmp_path / "file" / "cache")
    assert load_cubin("add", SM_87, places=places)
    assert "cannot be written, so each start compiles" in caplog.text


def test_without_a_cache_nothing_is_written(compiler, source, tmp_path):
    for _ in range(2):
        load_cubin("add", SM_87, places=Places(tmp_path, cache=None))
    assert list(tmp_path.iterdir()) == []
    assert len(compiler.compiled) == 2


def test_a_write_that_fails_leaves_the_entry_as_it_was(compiler, source, places, monkeypatch):
    load_cubin("add", SM_87, places=places)
    whole = entry(places).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    entry(places).write_bytes(whole[:-1])
    assert load_cubin("add", SM_87, places=places) == whole[32:]
    assert entry(places).read_bytes() == whole[:-1]


def test_the_users_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cubins.user_cache() == tmp_path / "tinysaver" / "cubins"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cubins.user_cache() == tmp_path / "home" / ".cache" / "tinysaver" / "cubins"


def test_without_a_home_there_is_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert cubins.user_cache() is None
    assert Places.of_user().cache is None


def test_a_cubin_of_the_release_needs_no_compiler(compiler, source, places, monkeypatch):
    ship(places, compiler, "sm_87", "sm_90")
    monkeypatch.setattr(nvrtc, "find", no_compiler)
    assert b"'sm_87'" in load_cubin("add", SM_87, places=places)
    assert b"'sm_90'" in load_cubin("add", SM_87._replace(architecture="sm_90"), places=places)
    assert places.cache and not places.cache.exists()


def test_a_cubin_of_the_release_is_used_only_for_its_architecture(compiler, source, places):
    ship(places, compiler, "sm_80", "sm_86")
    compiler.version = (12, 9)
    assert b"'sm_87'" in load_cubin("add", SM_87, places=places)


@pytest.mark.parametrize(
    ("driver", "taken"), [((12, 2), (12, 9)), ((13, 0), (13, 5)), ((14, 0), (13, 5))]
)
def test_of_the_releases_cubins_the_newest_that_the_driver_takes_is_used(
    source, places, driver, taken
):
    jobs = [prebuilt.Job(Compiler(version), "add", "sm_87") for version in ((12, 9), (13, 5))]
    list(prebuilt.build(places.shipped, jobs, threads=2))
    assert str(taken).encode() in load_cubin("add", Target("sm_87", driver), places=places)


def test_a_release_for_newer_drivers_only_is_not_used(compiler, source, places):
    ship(places, Compiler((13, 5)), "sm_87")
    assert b"(12, 6)" in load_cubin("add", SM_87, places=places)


@pytest.mark.parametrize(
    "change", [{"text": "add "}, {"headers": (("sum.cuh", "sum "),)}, {"name": "a.cu"}]
)
def test_a_stale_cubin_of_the_release_is_not_used(compiler, source, places, change):
    ship(places, compiler, "sm_87")
    source[0] = ADD._replace(**change)
    assert repr(source[0]).encode() in load_cubin("add", SM_87, places=places)
    assert len(compiler.compiled) == 2


def test_other_options_than_the_releases_are_compiled(compiler, source, places):
    ship(places, compiler, "sm_87")
    assert b"'-G'" in load_cubin("add", SM_87, places=places, options=("-G",))


@pytest.mark.parametrize("content", [None, b"", b"changed"])
def test_a_damaged_cubin_of_the_release_is_compiled(compiler, source, places, caplog, content):
    (shipped,) = ship(places, compiler, "sm_87")
    path = places.shipped / shipped.file
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    assert load_cubin("add", SM_87, places=places) == whole
    assert f"{path}: " in caplog.text


@pytest.mark.parametrize(
    "text", ["", "{", '{"format": "tinysaver.cubins/2", "cubins": []}', '{"cubins": [{}]}']
)
def test_a_damaged_manifest_counts_as_none(compiler, source, places, caplog, text):
    ship(places, compiler, "sm_87")
    (places.shipped / prebuilt.MANIFEST_NAME).write_text(text)
    assert load_cubin("add", SM_87, places=places)
    assert len(compiler.compiled) == 2
    assert "manifest.json: not usable, so kernels are compiled" in caplog.text


def test_a_build_that_fails_leaves_nothing_that_would_be_used(compiler, source, places):
    ship(places, compiler, "sm_87")

    class Refusing(Compiler):
        def compile(self, source, architecture, options=OPTIONS):
            raise CompileError(architecture)

    with pytest.raises(CompileError):
        ship(places, Refusing((12, 6)), "sm_90")
    assert prebuilt.load_manifest(places.shipped).cubins == ()


def test_a_build_removes_the_cubins_of_the_one_before(compiler, source, places):
    ship(places, compiler, "sm_87", "sm_90")
    ship(places, compiler, "sm_90")
    found = sorted(path.name for path in places.shipped.rglob("*") if path.is_file())
    assert found == ["add-sm_90.cubin", "manifest.json"]


def test_without_release_cache_and_compiler_the_error_reaches_the_caller(
    source, places, monkeypatch
):
    monkeypatch.setattr(nvrtc, "find", no_compiler)
    with pytest.raises(KernelError, match="none"):
        load_cubin("add", SM_87, places=places)


def test_a_real_module_is_compiled_kept_and_shipped(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    target = Target("sm_87", (13, 0))
    places = Places(tmp_path / "shipped", tmp_path / "cache")
    cubin = load_cubin("select", target, places=places)
    assert cubin.startswith(b"\x7fELF")
    assert entry(places).read_bytes().endswith(cubin)
    job = prebuilt.Job(nvrtc.find(target), "select", "sm_87")
    list(prebuilt.build(places.shipped, [job], threads=1))
    assert load_cubin("select", target, places=Places(places.shipped)) == cubin
    assert caplog.text == ""
