"""The tables of docs/kernels.md, made from what was compiled and counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kernels.launch import THREADS
from tests.budgets.builds import Build
from tests.budgets.limits import BUDGETS
from tests.budgets.occupancy import occupancy
from tests.budgets.traffic import Traffic

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"

BANDWIDTH_GBPS = {
    "Orin Nano": 68.0,
    "Orin NX": 102.4,
    "AGX Orin": 204.8,
    "Thor": 273.0,
    "RTX 4090": 1008.0,
    "H100": 3350.0,
}
"""Peak memory bandwidth by NVIDIA's data sheets; docs/kernels.md names them."""

ONE_THREAD = "select_bucket"


def budgets() -> str:
    """Return the budgets of tests/budgets/limits.py."""
    rows = [
        (_code(pattern.replace(r"\w+", "*")), *budget[:2], budget.vector_loads or "")
        for pattern, budget in BUDGETS.items()
    ]
    return _table(("kernels", "registers", "bytes of shared memory", "128-bit loads"), rows)


def resources(builds: Sequence[Build]) -> str:
    """Return registers and occupancy of every kernel, by architecture, for one compiler."""
    architectures = list(dict.fromkeys(build.job.architecture for build in builds))
    cells: dict[str, dict[str, str]] = {}
    shared: dict[str, int] = {}
    for build in builds:
        for kernel, usage in build.usage.items():
            shared[kernel] = max(usage.shared, shared.get(kernel, 0))
            cells.setdefault(kernel, {})[build.job.architecture] = _cell(build, kernel)
    rows = [
        (_code(kernel), shared[kernel], *(cells[kernel][name] for name in architectures))
        for kernel in sorted(cells)
    ]
    major, minor = builds[0].version
    return _table((f"NVRTC {major}.{minor}", "shared", *architectures), rows)


def _cell(build: Build, kernel: str) -> str:
    usage = build.usage[kernel]
    if kernel == ONE_THREAD:
        return str(usage.registers)
    share = occupancy(
        build.job.architecture, registers=usage.registers, shared=usage.shared, threads=THREADS
    )
    return f"{usage.registers} / {round(100 * share)} %"


def traffic(measured: Iterable[Traffic]) -> str:
    """Return bytes moved against the least possible."""
    rows = [
        (
            _code(item.kernel),
            item.case,
            f"{item.least:,}",
            f"{item.counted:,}",
            f"{item.counted / item.least:.3f}",
        )
        for item in measured
    ]
    return _table(("kernel", "case", "least", "counted", "ratio"), rows)


def estimates(measured: Iterable[Traffic]) -> str:
    """Return the microseconds that the bytes take at each device's peak bandwidth."""
    rows = [
        (
            _code(item.kernel),
            item.case,
            *(_microseconds(item, rate) for rate in BANDWIDTH_GBPS.values()),
        )
        for item in measured
    ]
    devices = (f"{name} ({rate:g} GB/s)" for name, rate in BANDWIDTH_GBPS.items())
    return _table(("kernel", "case", *devices), rows)


def _microseconds(item: Traffic, gigabytes_per_second: float) -> str:
    time = item.sectors / gigabytes_per_second / 1e3
    if time < 0.1:
        return "< 0.1"
    return f"{time:.0f}" if time >= 10 else f"{time:.2g}"


def _code(text: str) -> str:
    return f"`{text}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def find(text: str, name: str) -> str:
    """Return a table of the document; a missing one is a KeyError."""
    found = re.search(_pattern(name), text, re.DOTALL)
    if found is None:
        raise KeyError(f"{DOCUMENT}: no table {name}")
    return found[2].strip()


def replace(text: str, name: str, table: str) -> str:
    """Return the document with a table in place of what stands between its marks."""
    find(text, name)
    return re.sub(
        _pattern(name), lambda found: f"{found[1]}\n{table}\n{found[3]}", text, flags=re.DOTALL
    )


def _pattern(name: str) -> str:
    return rf"(<!-- table: {re.escape(name)} -->)(.*?)(<!-- end of table -->)"
