"""Shared libraries in place of NVIDIA's, made by g++ once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def cache_folder() -> Path:
    """Return where what tests download and compile is kept between runs."""
    named = os.environ.get("TINYSAVER_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "tinysaver-tests"


def driver_folder() -> Path:
    """Return the folder of a ``libcuda.so.1`` that answers from environment variables."""
    source = (HERE / "libcuda.cc").read_bytes()
    folder = cache_folder() / f"libcuda-{hashlib.sha256(source).hexdigest()[:12]}"
    if not (folder / "libcuda.so.1").exists():
        compile_library(folder / "libcuda.so.1", source)
    return folder


def compile_library(path: Path, source: bytes) -> None:
    """Compile C++ to a shared library of that name; another process may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        options = ["-x", "c++", "-", f"-Wl,-soname,{path.name}", "-o", str(made)]
        subprocess.run([*command, *options], input=source, check=True)
        made.replace(path)


def run_python(
    *arguments: str, environment: dict[str, str], **options
) -> subprocess.CompletedProcess:
    """Run this Python with further environment variables; return what it printed."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
