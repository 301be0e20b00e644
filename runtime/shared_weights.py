"""Weights that several stages read from the same files: mapped once, for all their sessions.

An ONNX file may leave its weights in another file and name the place of each there. Where stages of
a cascade name the same file, as those of ``savers.shared_depth`` do, each session would hold them
once more. Here the file is mapped into memory, and every session is given the same tensors in it.

Reading those places needs no onnx package: the few fields are picked from the protobuf message.
Field numbers are those of onnx.proto3 (github.com/onnx/onnx, Apache-2.0).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from runtime.bundle import Bundle
from runtime.schema import Form
from runtime.session import Weights

# Of TensorProto.DataType; tensors of another type are left to the session.
_TYPES: dict[int, type[np.generic]] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    10: np.float16,
}
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _NAME, _EXTERNAL = 1, 2, 8, 13
_KEY, _VALUE = 1, 2


class Place(NamedTuple):
    """Where the content of an initialiser lies."""

    name: str
    location: str
    offset: int
    dtype: type[np.generic]
    shape: tuple[int, ...]


@dataclass
class SharedWeights:
    """Files that several stages of a bundle name, and the tensors in them that sessions were given.

    Attributes
    ----------
    files
        Resolved paths.
    """

    files: frozenset[Path]
    _maps: dict[Path, npt.NDArray[np.uint8]] = field(default_factory=dict)
    _tensors: dict[tuple[object, ...], ort.OrtValue] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle, forms: Sequence[Form]) -> SharedWeights:
        """Return the files that more than one stage names, in the forms that it runs in."""
        counts = Counter(
            bundle.file(name).resolve()
            for stage, form in enumerate(forms)
            for name in bundle.described(stage, form).external_data
        )
        return cls(frozenset(path for path, count in counts.items() if count > 1))

    def tensors(self, model: Path) -> Weights:
        """Return the tensors of an ONNX file that lie in the shared files, by name.

        They must outlive the session. What cannot be read is left out, for the session to read and
        to explain.
        """
        if not self.files:
            return {}
        try:
            places = list(external_places(model.read_bytes()))
        except ValueError:
            return {}
        found = ((place, (model.parent / place.location).resolve()) for place in places)
        shared = {item.name: self._tensor(item, path) for item, path in found if path in self.files}
        return {name: tensor for name, tensor in shared.items() if tensor is not None}

    def _tensor(self, place: Place, path: Path) -> ort.OrtValue | None:
        key = (path, *place[2:])
        if key not in self._tensors:
            size = np.dtype(place.dtype).itemsize
            nbytes = math.prod(place.shape) * size
            content = self._map(path)[place.offset : place.offset + nbytes]
            if not nbytes or len(content) != nbytes or place.offset % size:
                return None
            array = content.view(place.dtype).reshape(place.shape)
            self._tensors[key] = ort.OrtValue.ortvalue_from_numpy(array)
        return self._tensors[key]

    def _map(self, path: Path) -> npt.NDArray[np.uint8]:
        if path not in self._maps:
            self._maps[path] = np.memmap(path, np.uint8, mode="r")
        return self._maps[path]


NOTHING_SHARED = SharedWeights(frozenset())


def external_places(model: bytes) -> Iterator[Place]:
    """Yield the initialisers of a serialised ``ModelProto`` that lie in other files.

    Raises
    ------
    ValueError
        When it is no such message.
    """
    for number, graph in _fields(memoryview(model)):
        if number == _GRAPH:
            for inner, tensor in _fields(_message(graph)):
                if inner == _INITIALIZER:
                    yield from _place(_message(tensor))


def _place(tensor: memoryview) -> Iterator[Place]:
    name, kind, shape, entries = "", 0, [], {}
    for number, value in _fields(tensor):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else list(_packed(value))
        elif number == _TYPE and isinstance(value, int):
            kind = value
        elif number == _NAME:
            name = str(_message(value), "utf-8")
        elif number == _EXTERNAL:
            entry = dict(_fields(_message(value)))
            key, text = (str(_message(entry.get(part, b"")), "utf-8") for part in (_KEY, _VALUE))
            entries[key] = text
    if "location" in entries and kind in _TYPES:
        offset = int(entries.get("offset", 0))
        yield Place(name, entries["location"], offset, _TYPES[kind], tuple(shape))


def _message(value: int | bytes | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("expected a message, got a number")
    return memoryview(value)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an integer, or the bytes of anything longer."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"no protobuf message: wire type {kind}")
        if place + size > len(message):
            raise ValueError("a protobuf message that was cut")
        yield tag >> 3, message[place : place + size]
        place += size


def _packed(values: memoryview) -> Iterator[int]:
    place = 0
    while place < len(values):
        value, place = _varint(values, place)
        yield value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if place == len(message):
            raise ValueError("a protobuf message that was cut")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("no protobuf message: a number of more than 64 bits")
