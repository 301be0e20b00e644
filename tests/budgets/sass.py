"""Machine instructions of a cubin, by NVIDIA's nvdisasm."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from collections import Counter
from pathlib import Path

_FUNCTION = re.compile(r"^\.text\.(\w+):$", re.MULTILINE)
# An address, perhaps a predicate, then the opcode with its modifiers: LDG.E.128.CONSTANT.
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


def tool(name: str) -> Path:
    """Return a program of an installed wheel ``nvidia-cuda-<name>``."""
    for item in importlib.metadata.files(f"nvidia-cuda-{name}") or []:
        if item.name == name:
            return Path(str(item.locate()))
    raise FileNotFoundError(f"nvidia-cuda-{name} does not hold {name}")


def disassemble(cubin: bytes, folder: Path) -> dict[str, Counter[str]]:
    """Return how often each opcode occurs in each kernel; ``folder`` takes a file."""
    path = folder / "module.cubin"
    path.write_bytes(cubin)
    command = [tool("nvdisasm"), "--no-dataflow", "--print-code", path]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _, *parts = _FUNCTION.split(text)
    return {
        name: Counter(_OPCODE.findall(code)) for name, code in zip(*[iter(parts)] * 2, strict=True)
    }


def count(opcodes: Counter[str], *parts: str) -> int:
    """Return how many instructions have all of the given parts: ``count(ops, "LDG", "128")``."""
    return sum(number for name, number in opcodes.items() if set(parts) <= set(name.split(".")))
