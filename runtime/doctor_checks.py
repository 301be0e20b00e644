"""What the doctor finds: one finding per part of the machine, with cause and fix where due."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from runtime.doctor_system import Answer, System

if TYPE_CHECKING:
    from runtime.bundle import Bundle

Status = Literal["ok", "absent", "warning", "problem"]
"""``absent``: not there, and not needed. ``warning``: works, but slower or without some feature.
``problem``: needed or installed, and does not work."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    name
        Stable key of the check.
    found
        What is there, for people.
    cause, fix
        Why it is not as it should be, and the command or step that mends it.
    facts
        The same as plain data.
    """

    name: str
    status: Status
    found: str
    cause: str | None = None
    fix: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """The machine, what its libraries answered, and the bundle or what is wrong with it."""

    system: System
    answers: Mapping[str, Answer]
    bundle: Bundle | Finding | None = None

    @cached_property
    def is_jetson(self) -> bool:
        """Whether this is a Jetson."""
        model = self.system.text("proc/device-tree/model") or ""
        return "Jetson" in model or self.system.exists("etc/nv_tegra_release")

    @cached_property
    def packages(self) -> dict[str, str]:
        """Versions of the installed Debian packages."""
        text = self.system.text("var/lib/dpkg/status") or ""
        found = re.findall(
            r"^Package: (\S+)\nStatus: \S+ \S+ installed\n(?:.+\n)*?Version: (\S+)$", text, re.M
        )
        return dict(found)

    @property
    def has_gpu(self) -> bool:
        """Whether the driver reports a GPU."""
        return bool(self.answers["driver"].facts.get("gpus"))

    @property
    def driver_cuda(self) -> tuple[int, int]:
        """The CUDA version that the driver runs; (0, 0) without one."""
        major, _, minor = str(self.answers["driver"].facts.get("cuda", "0.0")).partition(".")
        return int(major), int(minor)

    @property
    def pip(self) -> str:
        """The command that installs into the examined Python."""
        return f"{self.python} -m pip install"

    @property
    def python(self) -> str:
        """The examined Python as a command: relative to the current folder, if it is below it."""
        folder = os.getcwd() + os.sep
        return self.system.python.removeprefix(folder)

    @property
    def in_container(self) -> bool:
        """Whether this is a container."""
        return self.system.exists(".dockerenv") or self.system.exists("run/.containerenv")


class Reason(NamedTuple):
    """A cause, and what mends it."""

    cause: str
    fix: str | None = None


def explain(error: str, *, pip: str, package: str) -> Reason:
    """Return what an import error means, and how to mend it.

    Parameters
    ----------
    pip
        The install command.
    package
        The distribution that has the library.
    """
    for pattern, cause, fix in _ERRORS:
        found = re.search(pattern, error)
        if found:
            # Not by str.format: an error may hold braces of its own.
            names = {"FOUND": found.group(found.lastindex or 0), "PIP": pip, "PACKAGE": package}
            cause, fix = _filled(cause, names), fix and _filled(fix, names)
            return Reason(f"{cause}: {_first_line(error)}", fix)
    return Reason(_first_line(error), f"{pip} --force-reinstall --no-cache-dir {package}")


# What is in an error message, what it means, and the way out. FOUND is the group, or all that
# was found.
_ERRORS: tuple[tuple[str, str, str | None], ...] = (
    (
        r"compiled using NumPy 1\.x|_ARRAY_API not found|numpy\.core\.multiarray failed",
        "it was built for NumPy 1, and this environment has NumPy 2",
        "PIP 'numpy<2'",
    ),
    (r"has no attribute 'bool'", "it needs a NumPy before 1.24", "PIP 'numpy<1.24'"),
    (
        r"libGL\.so\.1|libgthread-2\.0\.so\.0",
        "this cv2 draws windows, and the libraries for that are missing",
        "PIP opencv-python-headless",
    ),
    (
        r"undefined symbol: cu[A-Z]\w*",
        "it was built without the NVIDIA driver's library (FOUND)",
        "PIP --force-reinstall --no-cache-dir PACKAGE",
    ),
    (r"No module named '(\w+)", "FOUND, which it imports, is missing", "PIP FOUND"),
    (r"(?:GLIBC|GLIBCXX)_[\d.]+", "it was built for a newer system (FOUND)", None),
    (r"invalid ELF header|wrong ELF class", "it was built for another processor", None),
)


def _filled(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason was given"
