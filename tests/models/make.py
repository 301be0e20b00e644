"""Write the ONNX files beside this script; needs the package onnx, and is not run by the tests.

Every model is a formula that a reader can work out by hand. With mean 0 and standard deviation
1/255 the network input *is* the pixel, so a test chooses the logits by choosing the frame.

    python tests/models/make.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parent
OPSET, IR_VERSION = 13, 8  # old on purpose: every ONNX Runtime that is supported reads them
IMAGE = ("n", 1, 2, 2)
LOGITS = ("n", 4)

Shape = tuple["int | str", ...]


def tensor(name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def write(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: tuple[onnx.TensorProto, ...] = (),
) -> None:
    graph = helper.make_graph(nodes, name, inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    (FOLDER / f"{name}.onnx").write_bytes(model.SerializeToString())


def echo() -> None:
    """The four logits are the four pixels."""
    flat = helper.make_node("Flatten", ["input"], ["logits"])
    write("echo", [flat], [tensor("input", IMAGE)], [tensor("logits", LOGITS)])


def negated() -> None:
    """The four logits are the negated pixels: the answer is the darkest pixel."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Neg", ["flat"], ["logits"]),
    ]
    write("negated", nodes, [tensor("input", IMAGE)], [tensor("logits", LOGITS)])


def nan() -> None:
    """As `echo`, but all logits of a row are NaN where the first pixel is 255."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gather", ["flat", "first"], ["pixel"], axis=1),
        helper.make_node("Sub", ["limit", "pixel"], ["room"]),
        helper.make_node("Sqrt", ["room"], ["root"]),
        helper.make_node("Sub", ["root", "root"], ["zero"]),
        helper.make_node("Add", ["flat", "zero"], ["logits"]),
    ]
    constants = (constant("first", [0], np.int64), constant("limit", [254.5]))
    write("nan", nodes, [tensor("input", IMAGE)], [tensor("logits", LOGITS)], constants)


def rows() -> None:
    """Logits ``[ln n, 0, 0, 0]`` in a batch of n: the confidence n / (n + 3) tells n."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Shape", ["flat"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["count"], axis=0),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Log", ["number"], ["log"]),
        helper.make_node("Mul", ["log", "hot"], ["row"]),
        helper.make_node("Mul", ["flat", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "row"], ["logits"]),
    ]
    constants = (
        constant("first", [0], np.int64),
        constant("hot", [[1, 0, 0, 0]]),
        constant("zero", [0]),
    )
    write("rows", nodes, [tensor("input", IMAGE)], [tensor("logits", LOGITS)], constants)


def features() -> None:
    """As `echo`, leaving also twice the pixels and a score, which is the first pixel / 255.

    Its outputs mean [] and places [m, 2] (of the pixels that are not 0) have no row per sample.
    """
    nodes = [
        helper.make_node("Flatten", ["input"], ["logits"]),
        helper.make_node("Add", ["logits", "logits"], ["features"]),
        helper.make_node("Gather", ["logits", "first"], ["pixel"], axis=1),
        helper.make_node("Div", ["pixel", "full"], ["score"]),
        helper.make_node("ReduceMean", ["logits"], ["mean"], keepdims=0),
        helper.make_node("NonZero", ["logits"], ["indices"]),
        helper.make_node("Transpose", ["indices"], ["pairs"], perm=[1, 0]),
        helper.make_node("Cast", ["pairs"], ["places"], to=TensorProto.FLOAT),
    ]
    outputs = [
        tensor("logits", LOGITS),
        tensor("features", ("n", 4)),
        tensor("score", ("n", 1)),
        tensor("mean", ()),
        tensor("places", ("m", 2)),
    ]
    constants = (constant("first", [0], np.int64), constant("full", [255]))
    write("features", nodes, [tensor("input", IMAGE)], outputs, constants)


def reads_features() -> None:
    """Logits ``features - 3 * input``: the negated pixels if both are of the same sample."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Mul", ["flat", "three"], ["scaled"]),
        helper.make_node("Sub", ["features", "scaled"], ["logits"]),
    ]
    inputs = [tensor("input", IMAGE), tensor("features", ("n", 4))]
    write("reads_features", nodes, inputs, [tensor("logits", LOGITS)], (constant("three", [3]),))


def wide() -> None:
    """An input of 4 x 6: the four logits are the means of its rows."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[3], keepdims=0),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    write("wide", nodes, [tensor("input", ("n", 1, 4, 6))], [tensor("logits", LOGITS)])


def colour() -> None:
    """Three channels: the four logits are the pixels of the first one."""
    nodes = [
        helper.make_node("Gather", ["input", "first"], ["channel"], axis=1),
        helper.make_node("Flatten", ["channel"], ["logits"]),
    ]
    inputs = [tensor("input", ("n", 3, 2, 2))]
    constants = (constant("first", [0], np.int64),)
    write("colour", nodes, inputs, [tensor("logits", LOGITS)], constants)


def five() -> None:
    """Five classes."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gather", ["flat", "order"], ["logits"], axis=1),
    ]
    constants = (constant("order", [0, 1, 2, 3, 0], np.int64),)
    write("five", nodes, [tensor("input", IMAGE)], [tensor("logits", ("n", 5))], constants)


def fixed() -> None:
    """As `echo`, exported for a batch of one."""
    flat = helper.make_node("Flatten", ["input"], ["logits"])
    write("fixed", [flat], [tensor("input", (1, 1, 2, 2))], [tensor("logits", (1, 4))])


def double() -> None:
    """As `echo`, reading float64."""
    nodes = [
        helper.make_node("Cast", ["input"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["single"], ["logits"]),
    ]
    inputs = [tensor("input", IMAGE, TensorProto.DOUBLE)]
    write("double", nodes, inputs, [tensor("logits", LOGITS)])


if __name__ == "__main__":
    for make in (
        echo,
        negated,
        nan,
        rows,
        features,
        reads_features,
        wide,
        colour,
        five,
        fixed,
        double,
    ):
        make()
