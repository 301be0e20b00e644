"""Reading ONNX files: damaged ones, unknown operators and weights from elsewhere are refused.

Nothing is run. TensorRT's parser accepts an empty file, and one of garbage, and fails long after
without naming either; so every file is read here first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto

from engines.errors import UnsupportedModel

HOST_DOMAINS = ("com.microsoft", "com.ms")
"""Operators of ONNX Runtime's own, which TensorRT does not know."""

# How files begin that users take for ONNX.
_LOOKALIKES = {
    b"PK\x03\x04": "a zip archive, as torch.save writes; export the model with torch.onnx.export",
    b"version https://git-lfs": "a Git LFS pointer; get the file itself: git lfs pull",
    b"\x89HDF": "an HDF5 file, as Keras writes; convert the model with tf2onnx",
    b"vtrt": "a TensorRT-RTX plan; give the ONNX file it was built from",
    b"<": "HTML or XML; it may be an error page that was downloaded in its place",
}
# Constants of these types (with their bytes per number), and of this size at most, are read from
# external files too: shapes and scales are among them.
_READ = {TensorProto.FLOAT: 4, TensorProto.INT64: 8}
_SMALL = 8192


class OnnxFile(NamedTuple):
    """A checked file.

    Attributes
    ----------
    proto
        Its content; of weights that lie beside it only the small ones, which may be shapes.
    external
        Files that it keeps weights in, relative to its own folder, in order of name.
    """

    path: Path
    proto: onnx.ModelProto
    external: tuple[str, ...]


def read_onnx(path: Path) -> OnnxFile:
    """Read and check an ONNX file; large weights that lie beside it stay there.

    Raises
    ------
    UnsupportedModel
        When it is missing, empty, truncated or no ONNX, has an operator that is not known, or
        weights that are missing, cut short or outside the file's folder.
    """
    proto = _parse(path, _content(path))
    _check_graph(path, proto)
    _check_operators(path, proto)
    external = external_files(proto)
    _check_external(path, proto)
    _check_format(path, proto, has_external=bool(external))
    return OnnxFile(path, proto, external)


def external_files(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return the files that a model keeps weights in, relative to its own, in order of name."""
    locations = (
        item.value
        for tensor in _external(proto)
        for item in tensor.external_data
        if item.key == "location"
    )
    return tuple(sorted(set(locations)))


def node_title(node: onnx.NodeProto) -> str:
    """Return how a message names a node."""
    name = node.name or f"(without a name, output {next(iter(node.output), '')})"
    return f"node {name} ({node.op_type})"


def default_opset(proto: onnx.ModelProto) -> int | None:
    """Return the version of ONNX's own operators."""
    versions = [item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")]
    return versions[0] if versions else None


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of graphs inside its nodes, and of the model's functions."""
    yield from nested_nodes(proto.graph.node)
    for function in proto.functions:
        yield from nested_nodes(function.node)


def nested_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, and after each those of the graphs inside it."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from nested_nodes(graph.node)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UnsupportedModel(f"{path}: not found. Give an ONNX file.") from None
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read: {error.strerror}.") from None
    if not content:
        raise UnsupportedModel(f"{path}: the file is empty. Copy or export it again.")
    for start, what in _LOOKALIKES.items():
        if content.startswith(start):
            raise UnsupportedModel(f"{path}: expected an ONNX model, got {what}.")
    return content


def _parse(path: Path, content: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError:
        proto = None
    if proto is None or not _is_text(proto):
        raise UnsupportedModel(
            f"{path}: not an ONNX model, or one cut short ({len(content):,} bytes). "
            "Copy or export it again."
        )
    return proto


def _is_text(message: Message) -> bool:
    """Return whether all strings are UTF-8; where one is not, protobuf hands out bytes."""
    for field, value in message.ListFields():
        several = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_STRING and not all(isinstance(item, str) for item in several):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, several)):
            return False
    return True


def _check_graph(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse what decodes only because a field that is missing is no error in protobuf."""
    graph = proto.graph
    for what, found in (("nodes", graph.node), ("inputs", graph.input), ("outputs", graph.output)):
        if not found:
            raise UnsupportedModel(
                f"{path}: the graph has no {what}: no ONNX model of a network, or a damaged one. "
                "Copy or export it again."
            )
    if default_opset(proto) is None:
        raise UnsupportedModel(
            f"{path}: no opset is named; the file is cut short or damaged. Copy or export it again."
        )


def _check_operators(path: Path, proto: onnx.ModelProto) -> None:
    opset = default_opset(proto) or 0
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise UnsupportedModel(
            f"{path}: opset {opset}, but onnx {onnx.__version__} knows up to {newest}. "
            "Export with an older opset, or: pip install --upgrade onnx"
        )
    versions = {item.domain: item.version for item in proto.opset_import}
    local = {(item.domain, item.name) for item in proto.functions}
    for node in all_nodes(proto):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) in local or domain.startswith(HOST_DOMAINS):
            continue
        if not _is_known(node.op_type, domain, versions.get(domain, opset)):
            raise UnsupportedModel(f"{path}: {_unknown(node, opset)}")


def _is_known(operator: str, domain: str, version: int) -> bool:
    try:
        schema = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return False
    return not schema.deprecated


def _unknown(node: onnx.NodeProto, opset: int) -> str:
    title = node_title(node)
    if node.domain not in ("", "ai.onnx"):
        return (
            f"{title}: an operator of domain {node.domain!r}, which neither ONNX nor ONNX Runtime "
            "defines. Export the model without custom layers."
        )
    if onnx.defs.has(node.op_type):
        return f"{title}: the operator is not in opset {opset}. Export with another opset."
    return f"{title}: unknown operator. Export the model without custom layers."


def _check_external(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse external weights that are not there; read those that may be shapes or scales."""
    for tensor in _external(proto):
        entries = {item.key: item.value for item in tensor.external_data}
        location = entries.get("location", "")
        file = _beside(path, tensor.name, location)
        content = _Extent(path, tensor, file, entries)
        if content.is_small:
            tensor.raw_data = content.read()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


class _Extent:
    """Where the weights of a tensor lie in their file."""

    def __init__(
        self, path: Path, tensor: onnx.TensorProto, file: Path, entries: dict[str, str]
    ) -> None:
        self.file = file
        self.offset = self._number(entries, "offset", 0)
        size = math.prod(tensor.dims) * _READ.get(tensor.data_type, 0)
        self.length = self._number(entries, "length", size)
        self.is_small = 0 < size <= _SMALL
        end, found = self.offset + max(self.length, size), file.stat().st_size
        if end > found:
            raise UnsupportedModel(
                f"{file}: cut short: weights {tensor.name!r} of {path.name} end at byte {end:,}, "
                f"the file has {found:,}. Copy or export both again."
            )
        if size and self.length != size:
            raise UnsupportedModel(
                f"{path}: weights {tensor.name!r}: expected {size:,} bytes, "
                f"the model says {self.length:,}. Export it again."
            )

    def read(self) -> bytes:
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.length)

    def _number(self, entries: dict[str, str], key: str, default: int) -> int:
        text = entries.get(key, str(default))
        if not text.isascii() or not text.isdecimal():
            raise UnsupportedModel(
                f"{self.file}: {key}: expected a number, the model says {text!r}. Export it again."
            )
        return int(text)


def _beside(path: Path, weights: str, location: str) -> Path:
    """Return the external file, which must lie in the folder of the model, or below it."""
    file = path.parent / location
    pure = PurePosixPath(location)
    odd = not location or not location.isprintable() or "\\" in location
    if (
        odd
        or pure.is_absolute()
        or ".." in pure.parts
        or not file.resolve().is_relative_to(path.parent.resolve())
    ):
        raise UnsupportedModel(
            f"{path}: weights {weights!r} lie in {location!r}, outside the model's folder. "
            "Save the model again with its weights in one folder."
        )
    if not file.is_file():
        raise UnsupportedModel(
            f"{file}: not found, but {path.name} keeps weights there ({weights!r}). "
            "Copy it beside the model."
        )
    return file


def _check_format(path: Path, proto: onnx.ModelProto, *, has_external: bool) -> None:
    try:
        # The path tells the checker where weights are relative to.
        onnx.checker.check_model(os.fspath(path) if has_external else proto)
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModel(f"{path}: not valid ONNX: {reason} Export it again.") from None


def _external(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    tensors = [*proto.graph.initializer]
    for node in all_nodes(proto):
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for graph in (attribute.g, *attribute.graphs):
                tensors += graph.initializer
    return [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
