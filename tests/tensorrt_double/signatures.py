"""Signatures as pybind11 writes them into docstrings, and calls held against them.

pybind11 converts more than this accepts, on purpose: an enumeration given as an integer, or an
integer where an enumeration stands, is an error here even where a release would let it pass.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

Fits = Callable[[str, Any], bool]
"""Whether a value may be given for a type that is not one of Python's own."""


class Parameter(NamedTuple):
    """One parameter; its type is the last part of what the docstring says, as ``Dims``."""

    name: str
    type: str
    required: bool


class Signature(NamedTuple):
    """One overload, without ``self``."""

    parameters: tuple[Parameter, ...]
    returns: str

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], fits: Fits) -> dict[str, Any]:
        """Return the arguments by name.

        Raises
        ------
        TypeError
            When they do not fit, as pybind11 would, or more strictly.
        """
        names = [parameter.name for parameter in self.parameters]
        if len(args) > len(names):
            raise TypeError(f"takes {len(names)} argument(s), got {len(args)}")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names or name in given:
                raise TypeError(f"unexpected keyword {name}; it has {names}")
            given[name] = value
        for parameter in self.parameters:
            self._check(parameter, given, fits)
        return given

    def _check(self, parameter: Parameter, given: dict[str, Any], fits: Fits) -> None:
        if parameter.name not in given:
            if parameter.required:
                raise TypeError(f"lacks the argument {parameter.name}")
        elif not _fits(parameter.type, given[parameter.name], fits):
            value = given[parameter.name]
            raise TypeError(f"{parameter.name}: expected {parameter.type}, got {value!r}")


@functools.cache
def parse(docstring: str | None, *, has_self: bool = True) -> list[Signature]:
    """Return the overloads that a docstring lists; none where it is not pybind11's.

    Parameters
    ----------
    has_self
        Whether the first parameter is the object itself.
    """
    text = docstring or ""
    lines = re.findall(r"^\s*\d+\. (\w+\(.*)$", text, re.MULTILINE)
    if not lines:
        lines = text.strip().splitlines()[:1]
    return [signature for line in lines if (signature := _parse_line(line, has_self))]


def _parse_line(line: str, has_self: bool) -> Signature | None:
    found = re.match(r"^\w*\((.*)\) -> (.+)$", line.strip())
    if not found or found.group(1).startswith("*args"):
        return None
    parts = [part for part in _split(found.group(1)) if part]
    parameters = tuple(map(_parameter, parts[1:] if has_self else parts))
    return Signature(parameters, _last(found.group(2)))


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(":")
    kind, default, _ = rest.partition(" = ")
    return Parameter(name.strip(), _last(kind), not default)


def _last(kind: str) -> str:
    """Return ``Dims`` of ``tensorrt_bindings.tensorrt.Dims``; ``List[int]`` stays."""
    kind = kind.strip()
    return kind if "[" in kind else re.split(r"::|\.", kind)[-1]


def _fits(kind: str, value: Any, fits: Fits) -> bool:
    own = {"bool": bool, "str": str, "float": float, "tuple": tuple, "list": list}
    if kind in own:
        return type(value) is own[kind]
    if kind in ("int", "SupportsInt"):
        return type(value) is int
    if kind in ("buffer", "Buffer"):
        return isinstance(value, (bytes, bytearray, memoryview))
    if kind in ("List[int]", "list[int]"):
        return isinstance(value, list) and all(type(item) is int for item in value)
    return fits(kind, value)
