"""The machine and the Python environment that a number was measured in."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import TinysaverError

DISTRIBUTION = "tinysaver-runtime"
PACKAGES = ("calibration", "engines", "kernels", "runtime", "savers", "zoo")


class EnvironmentConflict(TinysaverError, RuntimeError):
    """Another distribution owns one of our package names."""


@dataclass(frozen=True)
class MachineFacts:
    """What a benchmark's numbers depend on.

    Attributes
    ----------
    cpus, cpus_available
        Logical processors of the machine, and those this process may use.
    providers
        Execution providers of ONNX Runtime.
    commit
        Git commit of the checkout, ``-dirty`` when it has changes; None without a checkout.
    """

    cpu: str
    cpus: int
    cpus_available: int
    system: str
    python: str
    numpy: str
    onnxruntime: str
    providers: tuple[str, ...]
    tinysaver: str
    commit: str | None


def describe() -> MachineFacts:
    """Return the facts of this machine and environment."""
    import numpy
    import onnxruntime

    return MachineFacts(
        cpu=_cpu_name(),
        cpus=os.cpu_count() or 1,
        cpus_available=_cpus_available(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        numpy=numpy.__version__,
        onnxruntime=onnxruntime.__version__,
        providers=tuple(onnxruntime.get_available_providers()),
        tinysaver=version(),
        commit=_commit(Path(__file__).resolve().parent.parent),
    )


def version() -> str:
    """Return the installed version, or ``unknown`` when run from a folder that is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def dot_product_instructions(cpu_info: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the CPU's instructions for sums of 8-bit products, by Linux's name; None without any.

    ``avx512_vnni`` and ``avx_vnni`` on x86-64, ``i8mm`` and ``asimddp`` on Arm. Without them such
    sums saturate on x86-64, unless weights have 7 bits.
    """
    try:
        text = cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = found.group(1).split() if found else []
    known = ("avx512_vnni", "avx_vnni", "i8mm", "asimddp")
    return next((flag for flag in known if flag in flags), None)


def foreign_packages() -> dict[str, str]:
    """Return, for each of our package names that another distribution owns too, its name."""
    owners: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        names = _package_names(distribution)
        if names and _normalised(distribution) != DISTRIBUTION:
            owners.update(dict.fromkeys(names, _normalised(distribution)))
    return owners


def refuse_foreign_packages() -> None:
    """Check that `foreign_packages` finds none.

    Raises
    ------
    EnvironmentConflict
        Names each package, the distribution that owns it, and the way out.
    """
    owners = foreign_packages()
    if not owners:
        return
    found = ", ".join(f"{package!r} of {owner}" for package, owner in sorted(owners.items()))
    names = " ".join(sorted(set(owners.values())))
    raise EnvironmentConflict(
        f"this environment has packages of our names from elsewhere: {found}. "
        f"Use an environment of its own (scripts/bench makes one), or: pip uninstall {names}, "
        f"then install {DISTRIBUTION} again."
    )


def _package_names(distribution: importlib.metadata.Distribution) -> list[str]:
    declared = distribution.read_text("top_level.txt")
    if declared is not None:
        return sorted(set(PACKAGES).intersection(declared.split()))
    # Reading the text is ten times faster than `distribution.files`, which parses each line.
    record = distribution.read_text("RECORD") or ""
    return [name for name in PACKAGES if re.search(rf"^{name}(/|\.py,)", record, re.MULTILINE)]


def _normalised(distribution: importlib.metadata.Distribution) -> str:
    return re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()


def _cpu_name() -> str:
    for path, pattern in (
        ("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"),
        ("/proc/device-tree/model", r"^([^\0]+)"),
    ):
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found = re.search(pattern, text, re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _cpus_available() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _commit(folder: Path) -> str | None:
    # Only the checkout's own: site-packages may lie inside some other repository.
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
