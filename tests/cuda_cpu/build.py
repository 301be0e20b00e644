"""Builds CUDA sources with g++ for the emulation, each as a shared library: a module.

Finished files are kept in ``build/cuda_cpu`` under a name that holds the hash of all that went into
them: sources, flags, compiler, CUDA headers. They are moved there whole, and several processes may
build at once: for the same file they wait. What has not been used for a month is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCES = Path(__file__).resolve().parent / "src"
CACHE = SOURCES.parents[2] / "build" / "cuda_cpu"
CUDA_HEADERS = (
    ("nvidia-cuda-runtime", "vector_types.h"),
    ("nvidia-cuda-crt", "crt/host_defines.h"),
)
DAYS_KEPT = 30
COMPILER = os.environ.get("CXX", "g++")
JOBS = 2

# -ffp-contract=off: the same bits whether or not the CPU has a fused multiply-add; kernels that
# want one call fmaf. Never -ffast-math: it drops NaN and infinities, which kernels are tested with.
FLAGS = (
    *("-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror"),
    "-Wno-unknown-pragmas",  # unroll
)
KERNEL = re.compile(r"__global__\s+void\s+__launch_bounds__\(([^),]+)[^)]*\)\s*(\w+)\s*\(")


class BuildError(RuntimeError):
    """A source cannot be built; the message is the compiler's."""


class Variant(NamedTuple):
    """How everything is built.

    Attributes
    ----------
    flags
        For all sources.
    sanitizer
        More of them for kernels and drivers, not for the emulation itself.
    """

    name: str
    flags: tuple[str, ...] = ()
    sanitizer: tuple[str, ...] = ()


PLAIN = Variant("plain")
PORTABLE = Variant("portable", ("-DCUDA_CPU_UCONTEXT",))
# Instrumented code is slow to compile.
_TRACED = ("-O1", "-g1", "-fno-omit-frame-pointer")
THREAD = Variant("thread", ("-DCUDA_CPU_TSAN", *_TRACED), ("-fsanitize=thread",))
ADDRESS = Variant(
    "address",
    ("-DCUDA_CPU_ASAN", *_TRACED),
    ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
)


def has_compiler() -> bool:
    """Return whether this machine can build; where it cannot, tests that build are skipped."""
    return shutil.which(COMPILER) is not None


def module(source: Path, *, variant: Variant = PLAIN) -> Path:
    """Return the shared library of a ``.cu`` file, with the C interface of ``launch.h``.

    Raises
    ------
    BuildError
        With what the compiler says.
    """
    text = _preprocessed(source)

    def make(partial: Path) -> None:
        unit = partial.with_suffix(".cc")
        unit.write_text(_translation_unit(source, text))
        command = (*_compile(variant), *variant.sanitizer, f"-ffile-prefix-map={source.parent}/=")
        _run(*command, "-shared", *map(str, _runtime(variant)), str(unit), "-o", str(partial))

    return _kept(f"{source.stem}.so", _key(text, variant), make)


def modules(wanted: Iterable[tuple[Path, Variant]]) -> None:
    """Build several modules, each with its variant, some at the same time.

    Raises
    ------
    BuildError
        For the first that cannot be built.
    """
    pairs = list(wanted)
    for variant in {variant for _, variant in pairs}:
        _runtime(variant)
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(lambda pair: module(pair[0], variant=pair[1]), pairs))


def kernel_names(source: Path) -> list[str]:
    """Return the names of the kernels in a ``.cu`` file."""
    return [name for _, name in KERNEL.findall(_preprocessed(source))]


def program(source: Path, *, variant: Variant) -> Path:
    """Return the program of a C++ file that loads modules by itself.

    Raises
    ------
    BuildError
        With what the compiler says.
    """

    def make(partial: Path) -> None:
        command = (*_compile(variant), *variant.sanitizer)
        _run(*command, str(source), "-ldl", "-o", str(partial))

    return _kept(source.stem, _key(source.read_text(), variant), make)


def cuda_headers() -> tuple[Path, ...]:
    """Return the folders of the CUDA headers that pip has installed; a toolkit's are never used.

    Raises
    ------
    BuildError
        When they are not installed.
    """
    return tuple(_include_folder(*header) for header in CUDA_HEADERS)


def _include_folder(distribution: str, header: str) -> Path:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(f"/include/{header}"):
            return Path(str(file.locate())).parents[header.count("/")]
    raise BuildError(f"{distribution}: {header} not found. Run: pip install -e '.[test]'")


def _preprocessed(source: Path) -> str:
    # Without the emulation's headers, so that the qualifiers stand as they are; lines are kept.
    return _run(COMPILER, "-E", "-x", "c++", "-DCUDA_CPU", source.name, folder=source.parent)


def _translation_unit(source: Path, preprocessed: str) -> str:
    kernels = [f"CUDA_CPU_KERNEL({name}, {most})" for most, name in KERNEL.findall(preprocessed)]
    if not kernels:
        raise BuildError(f"{source}: no kernel: __global__ void __launch_bounds__(n) name(...)")
    return "\n".join(['#include "cuda_cpu.h"', f'#include "{source}"', *kernels, ""])


def _runtime(variant: Variant) -> list[Path]:
    def build(source: Path) -> Path:
        def make(partial: Path) -> None:
            _run(*_compile(variant), "-c", str(source), "-o", str(partial))

        return _kept(f"{source.stem}.o", _key(source.name, variant), make)

    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(build, sorted(SOURCES.glob("*.cc"))))


def _compile(variant: Variant) -> list[str]:
    includes = [f"-I{folder}" for folder in (SOURCES, *cuda_headers())]
    return [COMPILER, *FLAGS, *variant.flags, *includes, f"-ffile-prefix-map={SOURCES}/="]


@functools.cache
def _emulation() -> str:
    """Return what every build depends on."""
    sources = [path.read_text() for path in sorted(SOURCES.iterdir())]
    headers = [importlib.metadata.version(distribution) for distribution, _ in CUDA_HEADERS]
    return "\0".join([_run(COMPILER, "--version"), *FLAGS, *headers, *sources])


def _key(text: str, variant: Variant) -> str:
    whole = "\0".join([text, *map(str, variant), _emulation()])
    return hashlib.sha256(whole.encode()).hexdigest()[:20]


def _kept(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return a file of the cache, made if it is not there."""
    kept = CACHE / f"{key}-{name}"
    if kept.exists():
        os.utime(kept)
        return kept
    CACHE.mkdir(parents=True, exist_ok=True)
    _remove_unused()
    with _turn(key), tempfile.TemporaryDirectory(dir=CACHE) as folder:
        if not kept.exists():
            partial = Path(folder) / name
            make(partial)
            os.replace(partial, kept)
    return kept


@contextlib.contextmanager
def _turn(key: str) -> Iterator[None]:
    """Wait for another process or thread that makes the same file."""
    with open(CACHE / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_unused() -> None:
    oldest = time.time() - DAYS_KEPT * 24 * 3600
    for path in CACHE.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may be faster
            if path.stat().st_mtime < oldest:
                path.unlink() if path.is_file() else shutil.rmtree(path)


def _run(*command: str, folder: Path | None = None) -> str:
    if not has_compiler():
        pytest.skip(f"{COMPILER}: not found. Install g++, or name a compiler in CXX.")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout
