"""Python, its environment, and the libraries that every machine needs."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

from runtime.doctor_checks import Examination, Finding, explain
from runtime.environment import foreign_packages
from runtime.environment import version as own_version

OLDEST_PYTHON = (3, 10)

# Packages that JetPack, or apt, installs for the system's Python alone.
_SYSTEM_PACKAGES = {"tensorrt": "tensorrt", "cv2": "opencv"}
_DIST_PACKAGES = ("usr/lib/python3*/dist-packages", "usr/local/lib/python3*/dist-packages")


def check_python(examination: Examination) -> Finding:
    """Tell version and environment of the interpreter."""
    system = examination.system
    text = ".".join(map(str, system.version))
    facts = {"version": text, "executable": system.python, "environment": str(system.prefix)}
    place = f"environment {system.prefix}" if in_environment(examination) else system.python
    if system.version[:2] < OLDEST_PYTHON:
        return Finding(
            "python",
            "problem",
            f"{text}, {place}",
            cause="Python 3.10 is the oldest that works; JetPack 5 has 3.8",
            fix="Make an environment of Python 3.10 or newer (on Jetson: JetPack 6 has it)",
            facts=facts,
        )
    return Finding("python", "ok", f"{text}, {place}", facts=facts)


def check_distribution(examination: Examination) -> Finding:
    """Tell our own version; refuse packages of our names from elsewhere."""
    del examination
    facts = {"version": own_version()}
    foreign = foreign_packages()
    if not foreign:
        known = own_version() != "unknown"
        found = own_version() if known else "not installed, run from its folder"
        return Finding("tinysaver", "ok", found, facts=facts)
    names = ", ".join(f"{package} of {owner}" for package, owner in sorted(foreign.items()))
    owners = " ".join(sorted(set(foreign.values())))
    return Finding(
        "tinysaver",
        "problem",
        f"{own_version()}, mixed with {names}",
        cause="other distributions own packages of our names, and which is imported is chance",
        fix=f"Use an environment of its own (scripts/bench makes one), or: pip uninstall {owners}",
        facts={**facts, "foreign": foreign},
    )


def check_venv(examination: Examination) -> Iterator[Finding]:
    """Warn of an environment that hides what only the system's Python has."""
    hidden = hidden_packages(examination)
    if not hidden:
        return
    names, place = " and ".join(hidden), next(iter(hidden.values()))
    made_for = re.search(r"python(3\.\d+)", str(place))
    running = ".".join(map(str, examination.system.version[:2]))
    fix = show_system_packages(examination)
    if made_for and made_for.group(1) != running:
        fix = f"/usr/bin/python{made_for.group(1)} -m venv --system-site-packages NEW_FOLDER"
    yield Finding(
        "venv",
        "warning",
        f"hides {names} of {place}",
        cause=f"Python {running} of {examination.system.prefix} does not see the system's packages",
        fix=fix,
        facts={"hidden": sorted(hidden), "folder": str(place)},
    )


def hidden_packages(examination: Examination) -> dict[str, Path]:
    """Return the system's packages, and their folders, that this environment cannot import."""
    answers = examination.answers
    found: dict[str, Path] = {}
    for package, library in _SYSTEM_PACKAGES.items():
        if not in_environment(examination) or answers[library].state != "missing":
            continue
        for pattern in _DIST_PACKAGES:
            for path in examination.system.find(f"{pattern}/{package}"):
                found.setdefault(package, path.parent)
    return found


def show_system_packages(examination: Examination) -> str:
    """Return the command that lets an environment see the system's packages."""
    file = examination.system.prefix / "pyvenv.cfg"
    return (
        "sed -i 's/include-system-site-packages = false/include-system-site-packages = true/' "
        f"{file}"
    )


def in_environment(examination: Examination) -> bool:
    """Return whether Python runs in a virtual environment."""
    return examination.system.prefix != examination.system.base_prefix


def check_numpy(examination: Examination) -> Finding:
    """NumPy imports."""
    return _needed(examination, "numpy", "numpy")


def check_onnxruntime(examination: Examination) -> Finding:
    """ONNX Runtime imports; it runs cascades on the CPU."""
    return _needed(examination, "onnxruntime", "onnxruntime")


def _needed(examination: Examination, library: str, package: str) -> Finding:
    answer = examination.answers[library]
    if answer.state == "missing":
        fix = f"{examination.pip} {package}"
        return Finding(library, "problem", "not installed", cause="cascades need it", fix=fix)
    if answer.state == "broken":
        reason = explain(answer.error, pip=examination.pip, package=package)
        return Finding(library, "problem", "does not import", reason.cause, reason.fix)
    return Finding(library, "ok", str(answer.facts["version"]), facts=answer.facts)


def check_opencv(examination: Examination) -> Finding:
    """Tell the version of cv2, and whether it reads cameras through GStreamer."""
    answer = examination.answers["opencv"]
    if answer.state == "missing":
        fix = f"{examination.pip} 'opencv-python-headless>=4.5'"
        if "cv2" in hidden_packages(examination):
            fix = show_system_packages(examination)
        cause = "pictures and cameras need it, and frames are resized more slowly without"
        return Finding("opencv", "warning", "not installed", cause, fix)
    if answer.state == "broken":
        reason = explain(answer.error, pip=examination.pip, package="opencv-python-headless")
        return Finding("opencv", "problem", "does not import", reason.cause, reason.fix)
    version, gstreamer = answer.facts["version"], answer.facts["gstreamer"]
    found = f"{version}, {'with' if gstreamer else 'without'} GStreamer"
    if gstreamer or not examination.is_jetson:
        return Finding("opencv", "ok", found, facts=answer.facts)
    cause = "the cv2 of pip has no GStreamer, which CSI cameras and hardware decoding need"
    fix = _use_system_opencv(examination)
    return Finding("opencv", "warning", found, cause, fix, answer.facts)


def _use_system_opencv(examination: Examination) -> str:
    installed = [
        name
        for name in (item.metadata["Name"] or "" for item in importlib.metadata.distributions())
        if name.startswith("opencv-")
    ]
    names = " ".join(sorted(set(installed))) or "opencv-python"
    return f"{examination.python} -m pip uninstall {names}  # JetPack's own has it"
