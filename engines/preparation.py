"""A model ready for its other forms: simplified, named, of an opset that TensorRT reads."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

from engines.errors import EngineError
from engines.onnx_file import default_opset, node_title, read_onnx
from runtime.session import ORT_ERRORS

NEWEST_OPSET = 17
"""The newest that TensorRT 8.6 reads."""

OLDEST_OPSET = 13
"""The oldest whose QuantizeLinear has an axis, for weights quantised by channel."""

Domains = set[str]


def prepare(path: Path) -> onnx.ModelProto:
    """Return the FP32 model that all its other forms are made from.

    Batch normalisations are folded into convolutions, constants computed, all nodes named,
    and the opset lies between `OLDEST_OPSET` and `NEWEST_OPSET` where ONNX can convert to it.

    Parameters
    ----------
    path
        An ONNX file whose graph computes in float32.

    Raises
    ------
    UnsupportedModel
        When the file is damaged or has an unknown operator.
    EngineError
        When ONNX Runtime cannot run it, or it was quantised or cast already.
    """
    read_onnx(path)
    model = onnx.load(path)
    _check_precision(path, model)
    _name_nodes(model.graph)
    simple = _simplified(path, _with_opset(model))
    _name_nodes(simple.graph)
    return onnx.shape_inference.infer_shapes(simple)


def _check_precision(path: Path, model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"):
            raise EngineError(
                f"{path}: {node_title(node)}: the model is quantised already. "
                "Forms are made from the FP32 model: give that."
            )
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    if kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}:
        raise EngineError(
            f"{path}: has 16-bit weights already. Forms are made from the FP32 model: give that."
        )


def _with_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in an opset of our span, or as it is where ONNX cannot convert it."""
    found = default_opset(model) or NEWEST_OPSET
    wanted = min(max(found, OLDEST_OPSET), NEWEST_OPSET)
    if wanted == found:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, wanted)
        onnx.checker.check_model(converted, full_check=True)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return model
    return converted


def _simplified(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return what ONNX Runtime's rewrites that keep to ONNX's own operators make of the model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "simplified.onnx")
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            raise EngineError(
                f"{path}: ONNX Runtime {ort.__version__} cannot run it: "
                f"{str(error).splitlines()[0]} Export the model again."
            ) from None
        simple = onnx.load(options.optimized_model_filepath)
    if _domains(simple) - _domains(model):
        return model
    used = [item for item in simple.opset_import if item.domain in _domains(simple) | {""}]
    del simple.opset_import[:]
    simple.opset_import.extend(used)
    return simple


def _domains(model: onnx.ModelProto) -> Domains:
    return {node.domain for node in model.graph.node} - {"", "ai.onnx"}


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: those that are kept in FP32 are told by name."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}.{index}"
        taken.add(node.name)
