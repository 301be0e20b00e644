"""The machine as the doctor sees it: its files, its commands, and libraries asked one by one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

PROBE = Path(__file__).with_name("doctor_probe.py")
LIBRARIES = (
    "driver",
    "tensorrt",
    "tensorrt_rtx",
    "onnxruntime",
    "opencv",
    "pycuda",
    "cuda_bindings",
    "nvrtc",
    "numpy",
)
"""What is asked, the slowest first."""

_AT_ONCE = 4
_TAIL = 400


@dataclass(frozen=True)
class Answer:
    """What a library said when it was imported in a process of its own.

    Attributes
    ----------
    state
        ``missing``: not installed. ``broken``: installed, and the import failed, crashed or hung.
    facts
        See `runtime.doctor_probe`; empty unless it works.
    error
        Why it is broken.
    """

    state: Literal["works", "missing", "broken"]
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def works(self) -> bool:
        """Whether it was imported."""
        return self.state == "works"


@dataclass(frozen=True)
class System:
    """Where the doctor looks. The defaults are this machine and this Python.

    Attributes
    ----------
    root
        Folder that the paths of system files are below.
    python
        The interpreter that libraries are asked with.
    prefix, base_prefix
        As in `sys`: they differ in a virtual environment.
    import_path
        Where that interpreter looks for packages.
    environ
        Environment variables of all processes that are started; commands are found by its ``PATH``.
    seconds
        After which a process that has not answered counts as hanging.
    """

    root: Path = Path("/")
    python: str = sys.executable
    version: tuple[int, int, int] = sys.version_info[:3]
    prefix: Path = Path(sys.prefix)
    base_prefix: Path = Path(sys.base_prefix)
    import_path: tuple[str, ...] = tuple(os.path.abspath(place) for place in sys.path)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    seconds: float = 20.0

    def text(self, path: str | Path) -> str | None:
        """Return a system file's text; None where it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Return whether there is such a file or folder."""
        try:
            return (self.root / path).exists()
        except OSError:
            return False

    def find(self, pattern: str) -> list[Path]:
        """Return the files that a pattern names, sorted."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def run(self, command: str, *arguments: str) -> str | None:
        """Return what a command prints; None where it is missing or hangs."""
        file = shutil.which(command, path=self.environ.get("PATH", ""))
        if file is None:
            return None
        done = self._start([file, *arguments])
        return done.stdout if isinstance(done, subprocess.CompletedProcess) else None

    def ask(self, library: str) -> Answer:
        """Import a library in a process of its own."""
        done = self._start([self.python, str(PROBE), library, json.dumps(self.import_path)])
        if isinstance(done, str):
            return Answer("broken", error=done)
        if done.returncode < 0:
            return Answer("broken", error=f"the import crashed ({_signal(-done.returncode)})")
        try:
            facts = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            return Answer("broken", error=done.stderr.strip()[-_TAIL:] or "it said nothing")
        if facts.get("missing"):
            return Answer("missing")
        if "error" in facts:
            return Answer("broken", error=_with_hint(facts["error"], done.stderr))
        return Answer("works", facts)

    def ask_all(self, libraries: Iterable[str] = LIBRARIES) -> dict[str, Answer]:
        """Ask several libraries, a few at a time."""
        names = list(libraries)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(zip(names, pool.map(self.ask, names), strict=True))

    def _start(self, command: list[str]) -> subprocess.CompletedProcess[str] | str:
        """Run a command to its end; return in words what kept it from that."""
        try:
            return subprocess.run(
                command,
                env=dict(self.environ),
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {self.seconds:g} s"
        except OSError as error:
            return f"{command[0]}: {error.strerror}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _with_hint(error: str, noise: str) -> str:
    """Add what a library printed about NumPy, which says more than the error that follows."""
    found = re.search(r"compiled using NumPy 1\.x cannot be run in\s+NumPy [\d.]+", noise)
    return f"{error} ({' '.join(found.group().split())})" if found else error
