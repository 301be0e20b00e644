"""The CUDA sources of this package, each with the headers it includes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from kernels.errors import KernelError

FOLDER = Path(__file__).resolve().parent
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


class Source(NamedTuple):
    """One module to compile.

    Attributes
    ----------
    name
        File name, as it stands in the compiler's messages: ``gate.cu``.
    text
        Its content.
    headers
        Name and content of every header it includes, also through another, in the order of names.
    """

    name: str
    text: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of everything that the compiler is given as text."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


def module_names() -> tuple[str, ...]:
    """Return the names that `load_source` takes, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.cu")))


def load_source(module: str) -> Source:
    """Return the source of a module, such as ``gate``, with its headers.

    Raises
    ------
    ValueError
        When there is no such module.
    KernelError
        When a file of the installed package is missing or unreadable.
    """
    if module not in module_names():
        raise ValueError(f"module: expected one of {', '.join(module_names())}, got {module!r}")
    name = f"{module}.cu"
    text = _read(name)
    headers: dict[str, str] = {}
    _add_headers(text, headers)
    return Source(name, text, tuple(sorted(headers.items())))


def _add_headers(text: str, headers: dict[str, str]) -> None:
    for name in _INCLUDE.findall(text):
        if name not in headers:
            headers[name] = _read(name)
            _add_headers(headers[name], headers)


def _read(name: str) -> str:
    try:
        return (FOLDER / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KernelError(
            f"{FOLDER / name}: cannot be read ({error}). Install tinysaver-runtime again."
        ) from None
