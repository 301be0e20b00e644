"""Imports point one way, and heavy third-party packages stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each package may import of the others: a package, or single modules of it.
ALLOWED = {
    "kernels": set(),
    "runtime": {"kernels"},
    "engines": {
        "kernels",
        "runtime.bundle",
        "runtime.driver",
        "runtime.certification",
        "runtime.errors",
        "runtime.images",
        "runtime.plan_fit",
        "runtime.plans",
        "runtime.preprocess",
        "runtime.schema",
        "runtime.session",
        "runtime.terminal",
    },
    "calibration": {"kernels", "runtime", "engines"},
    "savers": {"kernels", "runtime", "engines", "calibration"},
    "zoo": set(),
}
# Where a third-party package may be imported at all.
CONFINED = {
    "torch": {"savers"},
    "onnx": {"engines", "calibration", "savers"},
    "tensorrt": {"runtime", "engines"},
    "tensorrt_rtx": {"runtime", "engines"},
    "pycuda": {"runtime"},
}
# Of these, one module of runtime is the only one that imports them.
ONE_MODULE = ("tensorrt", "pycuda")


class Import(NamedTuple):
    importer: str
    imported: str


def modules() -> dict[str, Path]:
    found = {}
    for package in ALLOWED:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports_of(name: str, source: str, *, is_package: bool = False) -> Iterator[Import]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(name, node, is_package)
            yield from (Import(name, f"{base}.{alias.name}") for alias in node.names)


def absolute(name: str, node: ast.ImportFrom, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = name.split(".")
    parent = parts[: len(parts) - node.level + is_package]
    return ".".join([*parent, *([node.module] if node.module else [])])


def violation(item: Import) -> str | None:
    importer, imported = item.importer.partition(".")[0], item.imported.partition(".")[0]
    if imported in ALLOWED and imported != importer and not allowed(importer, item.imported):
        return f"{item.importer} imports {item.imported}"
    if imported in CONFINED and importer not in CONFINED[imported]:
        return f"{item.importer} imports {item.imported}"
    return None


def allowed(importer: str, imported: str) -> bool:
    return any(f"{imported}.".startswith(f"{name}.") for name in ALLOWED[importer])


def all_imports() -> list[Import]:
    return [
        item
        for name, path in modules().items()
        for item in imports_of(
            name, path.read_text(encoding="utf-8"), is_package=path.stem == "__init__"
        )
    ]


def test_imports_point_one_way_and_heavy_packages_are_confined() -> None:
    found = all_imports()
    assert Import("runtime.environment", "runtime.errors.TinysaverError") in found
    assert [text for text in map(violation, found) if text] == []


@pytest.mark.parametrize("package", ONE_MODULE)
def test_one_module_of_runtime_at_most_imports(package: str) -> None:
    importers = {
        item.importer
        for item in all_imports()
        if item.importer.startswith("runtime.") and item.imported.partition(".")[0] == package
    }
    assert len(importers) <= 1


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("kernels.ops", "import runtime.bundle"),
        ("runtime.cascade", "from calibration import records"),
        ("runtime.cascade", "def f():\n    import onnx.helper"),
        ("runtime.deep.module", "from ...engines import build"),
        ("engines.build", "from runtime.cascade import Cascade"),
        ("engines.build", "from runtime import cascade"),
        ("calibration.records", "import torch"),
        ("calibration.search", "import savers"),
        ("calibration.record", "import pycuda.driver"),
    ],
)
def test_a_forbidden_import_is_seen(importer: str, source: str) -> None:
    assert [item for item in imports_of(importer, source) if violation(item)]


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("runtime.gate", "from kernels.reference import accept"),
        ("runtime.gate", "from . import bundle"),
        ("engines.build", "from runtime.bundle import Bundle"),
        ("engines.build", "from runtime import plans"),
        ("savers.train", "import torch\nfrom calibration import provenance"),
    ],
)
def test_a_legitimate_import_passes(importer: str, source: str) -> None:
    assert not [item for item in imports_of(importer, source) if violation(item)]


def test_importing_runtime_loads_no_optional_package() -> None:
    optional = "{'cv2', 'matplotlib', 'onnx', 'pycuda', 'scipy', 'tensorrt', 'torch'}"
    program = f"import sys, runtime, runtime.cli; print(sorted({optional} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
