"""From a checked ONNX file to its description."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import onnx

from engines.batch import batch_axis, declared_batch, inputs_at
from engines.errors import UnsupportedModel
from engines.macs import Macs, count_macs
from engines.onnx_file import HOST_DOMAINS, OnnxFile, all_nodes, default_opset
from engines.onnx_model import OnnxModel, Shape, Tensor
from engines.shapes import check_shapes, dimensions, graph_inputs

OLDEST_TENSORRT_OPSET = 17
"""What the parser of TensorRT 8.6 reads at most."""


def describe(file: OnnxFile, *, size: tuple[int, int] | None = None) -> OnnxModel:
    """Describe a file that was read; see `engines.onnx_model.load_model`.

    Raises
    ------
    UnsupportedModel
        When shapes do not fit together.
    """
    proto = file.proto
    shapes = _sized(inputs_at(proto, declared_batch(proto)), size)
    try:
        check_shapes(proto, shapes)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{file.path}: shapes do not fit together: {error}") from None
    axis = batch_axis(proto)
    macs = count_macs(proto, shapes)
    operators = Counter(_operator(node) for node in all_nodes(proto))
    return OnnxModel(
        path=file.path,
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        ir_version=proto.ir_version,
        opset=default_opset(proto) or 0,
        inputs=tuple(map(_tensor, graph_inputs(proto.graph))),
        outputs=tuple(map(_tensor, proto.graph.output)),
        fixed_batch=axis.fixed,
        batch_obstacle=axis.obstacle,
        batch_freeable=axis.freeable,
        external_data=file.external,
        parameters=sum(math.prod(tensor.dims) for tensor in proto.graph.initializer),
        macs=None if macs.total is None else macs.total // declared_batch(proto),
        macs_note=_macs_note(macs),
        operators=dict(operators.most_common()),
        notes=tuple(_notes(proto)),
    )


def _sized(shapes: dict[str, Shape], size: tuple[int, int] | None) -> dict[str, Shape]:
    """Fill dynamic heights and widths of images ``[n, c, h, w]``."""
    if size is None:
        return shapes
    return {
        name: (*shape[:2], *(_known(*pair) for pair in zip(shape[2:], size, strict=True)))
        if len(shape) == 4
        else shape
        for name, shape in shapes.items()
    }


def _known(found: int | str | None, given: int) -> int:
    return found if isinstance(found, int) else given


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind).name if kind else "no tensor"
    return Tensor(info.name, dtype, dimensions(info))


def _operator(node: onnx.NodeProto) -> str:
    own = node.domain in ("", "ai.onnx")
    return str(node.op_type) if own else f"{node.domain}.{node.op_type}"


def _macs_note(macs: Macs) -> str | None:
    if macs.unknown:
        return f"the shapes of {macs.unknown} cannot be told; give --size if it is the image's"
    if macs.uncounted:
        return f"without {', '.join(f'{name} {n}' for name, n in macs.uncounted.items())}"
    return None


def _notes(proto: onnx.ModelProto) -> Iterator[str]:
    opset = default_opset(proto) or 0
    if opset > OLDEST_TENSORRT_OPSET:
        yield f"opset {opset}: TensorRT 8.6 reads up to {OLDEST_TENSORRT_OPSET}"
    hosted = {_operator(node) for node in all_nodes(proto) if node.domain.startswith(HOST_DOMAINS)}
    if hosted:
        yield f"only ONNX Runtime has {', '.join(sorted(hosted))}; TensorRT does not"
