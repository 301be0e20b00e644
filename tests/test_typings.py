"""TensorRT's type stubs are mended to what mypy can read, and to nothing else."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "typings.py"
BROKEN = """
class IPlugin:
    def size(self, in: list[int], out: list[int]) -> int: ...
    def scale(self, power: int = 1, channel_axis: int) -> bool: ...
    bool: int
bool: DataType
float32: DataType
"""
MENDED = """
class IPlugin:
    def size(self, in_: list[int], out: list[int]) -> int: ...
    def scale(self, power: int = 1, channel_axis: int = ...) -> bool: ...
    bool: int

float32: DataType
"""


def test_only_what_is_no_python_or_shadows_bool_is_mended():
    spec = importlib.util.spec_from_file_location("typings_script", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.mended(BROKEN) == MENDED
    ast.parse(MENDED)
