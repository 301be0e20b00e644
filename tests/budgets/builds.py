"""The kernels compiled for every architecture, with what the compiler and disassembler tell."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kernels import nvrtc
from kernels.nvrtc import OPTIONS, Nvrtc, Target
from kernels.prebuilt import ARCHITECTURES
from kernels.sources import Source, load_source, module_names
from tests.budgets.sass import disassemble
from tests.budgets.usage import VERBOSE, Usage, parse_log


class Job(NamedTuple):
    """A module to compile for an architecture by a CUDA major's compiler."""

    cuda: int
    architecture: str
    module: str


class Build(NamedTuple):
    """A compiled module: usage and opcodes of each of its kernels."""

    job: Job
    version: tuple[int, int]
    cubin: bytes
    usage: dict[str, Usage]
    opcodes: dict[str, Counter[str]]


def jobs(cuda: int, architectures: Iterable[str] | None = None) -> list[Job]:
    """Return the jobs of a CUDA major, by default for all of its architectures."""
    chosen = ARCHITECTURES[cuda] if architectures is None else architectures
    return [Job(cuda, architecture, module) for module in module_names() for architecture in chosen]


def build_all(wanted: Iterable[Job]) -> Iterator[Build]:
    """Compile and disassemble, on all CPUs; builds come in the order of the jobs."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(build, wanted)


def build(job: Job) -> Build:
    """Compile and disassemble one module."""
    return compile_source(load_source(job.module), job, compiler(job))


def compiler(job: Job) -> Nvrtc:
    """Return the NVRTC of the job's CUDA major; a missing one is a KernelError."""
    found = nvrtc.find(Target(job.architecture, (job.cuda, 0)))
    assert found.version[0] == job.cuda, f"expected NVRTC {job.cuda}, got {found}"
    return found


def compile_source(
    source: Source, job: Job, compiler: Nvrtc, *, options: tuple[str, ...] = ()
) -> Build:
    """Compile and disassemble a source, with further options."""
    cubin, log = compiler.compile(source, job.architecture, (*OPTIONS, VERBOSE, *options))
    with tempfile.TemporaryDirectory() as folder:
        opcodes = disassemble(cubin, Path(folder))
    return Build(job, compiler.version, cubin, parse_log(log), opcodes)
