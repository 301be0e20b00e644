"""Modules of the CPU emulation are built once, with clear errors, from headers that pip has."""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda_cpu import build
from tests.kernels.toys import TOYS


def copy_of_the_runtime(folder: Path) -> Path:
    """A cache that has no modules; what they are linked with would take 10 s to build again."""
    build.module(TOYS)
    folder.mkdir()
    for path in build.CACHE.glob("*.o"):
        shutil.copy(path, folder)
    return folder


def test_a_module_is_built_once_and_again_when_a_header_changes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build, "CACHE", copy_of_the_runtime(tmp_path / "cache"))
    source, header = tmp_path / "one.cu", tmp_path / "one.cuh"
    header.write_text("constexpr int VALUE = 1;\n")
    source.write_text(
        '#include "one.cuh"\n'
        'extern "C" __global__ void __launch_bounds__(1) one(int* out) { write(out, VALUE); }\n'
    )
    first = build.module(source)
    made = first.stat().st_ino
    assert build.module(source) == first and first.stat().st_ino == made
    header.write_text("constexpr int VALUE = 2;\n")
    assert build.module(source) != first
    leftovers = [path.name for path in build.CACHE.iterdir() if path.is_dir()]
    assert leftovers == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("int unused;", "unused variable"),
        ("__shared__ int raw; raw = 0;", r"write SHARED\(TYPE, name\)"),
        ("write(out, max(1, 2u));", "no matching function"),
        ("struct Odd { int a[3]; }; read((Odd*)out);", "ONE_ACCESS"),
    ],
)
def test_a_source_that_does_not_build_shows_what_the_compiler_says(
    tmp_path: Path, body: str, message: str
) -> None:
    source = tmp_path / "bad.cu"
    source.write_text(
        f'extern "C" __global__ void __launch_bounds__(1) bad(int* out) {{ (void)out; {body} }}\n'
    )
    with pytest.raises(build.BuildError, match=message) as error:
        build.module(source)
    assert re.search(r"bad\.cu:1:", str(error.value))


def test_who_wants_the_same_file_waits_for_the_one_who_makes_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    made = []

    def make(partial: Path) -> None:
        made.append(partial)
        time.sleep(0.1)
        partial.write_text("done")

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: build._kept("file", "key", make), range(4)))
    assert len(made) == 1
    assert {path.read_text() for path in paths} == {"done"}


def test_a_source_without_a_kernel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.cu").write_text("int x;\n")
    with pytest.raises(build.BuildError, match=r"none\.cu: no kernel"):
        build.module(tmp_path / "none.cu")


def test_headers_come_from_pip_and_their_absence_says_what_to_install(monkeypatch) -> None:
    assert all("site-packages" in str(folder) for folder in build.cuda_headers())
    monkeypatch.setattr(build, "CUDA_HEADERS", (("nvidia-cuda-nothing", "vector_types.h"),))
    with pytest.raises(build.BuildError, match=r"nothing: vector_types\.h not found\. Run: pip"):
        build.cuda_headers()


def test_without_a_compiler_tests_are_skipped_with_the_reason(monkeypatch) -> None:
    monkeypatch.setattr(build, "COMPILER", "no-such-compiler")
    with pytest.raises(pytest.skip.Exception, match=r"no-such-compiler: not found\. Install g\+\+"):
        build.module(TOYS)
