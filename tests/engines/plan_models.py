"""Small ONNX models in the three forms that TensorRT takes, and some that it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
IMAGE, LOGITS = ("n", 1, 4, 4), ("n", 3)


def weights(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> onnx.TensorProto:
    values = np.random.default_rng(0).standard_normal(shape)
    return numpy_helper.from_array(values.astype(dtype), name)


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    image: tuple[int | str, ...] = IMAGE,
    logits: tuple[int | str, ...] = LOGITS,
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.save(model, path)
    return path


def fp32(folder: Path, **shapes: tuple[int | str, ...]) -> Path:
    """The logits are a matrix product of the pixels."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w"], ["logits"], name="fc"),
    ]
    return write(folder / "fp32.onnx", nodes, [weights("w", (16, 3))], **shapes)


def fp16(folder: Path) -> Path:
    """The same, cast, with float32 inputs and outputs."""
    nodes = [
        helper.make_node("Cast", ["input"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Flatten", ["half"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["half_logits"], name="fc"),
        helper.make_node("Cast", ["half_logits"], ["logits"], to=TensorProto.FLOAT),
    ]
    return write(folder / "fp16.onnx", nodes, [weights("w", (16, 3), np.float16)])


def int8_trt(folder: Path) -> Path:
    """The same with symmetric Q/DQ around the input of the product."""
    constants = [
        weights("w", (16, 3)),
        numpy_helper.from_array(np.float32(0.02), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
    ]
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("Gemm", ["dq", "w"], ["logits"], name="fc"),
    ]
    return write(folder / "int8_trt.onnx", nodes, constants)


def unknown_operator(folder: Path) -> Path:
    """A node that no TensorRT knows."""
    nodes = [helper.make_node("FooBar", ["input"], ["logits"], name="foo")]
    return write(folder / "unknown.onnx", nodes, [])


def no_model(folder: Path, content: bytes = b"") -> Path:
    """A file that is not an ONNX model."""
    path = folder / "nothing.onnx"
    path.write_bytes(content)
    return path


MAKERS = {"fp32": fp32, "fp16": fp16, "int8_trt": int8_trt}
