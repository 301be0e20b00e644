"""A learned gate in a saver's own ONNX file: a further output ``score f32 [n]``.

The model stays as it is; nodes that read its logits are added behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from engines.errors import UnsupportedModel

if TYPE_CHECKING:
    from engines.export_nodes import Nodes
    from engines.onnx_file import OnnxFile

OUTPUT = "score"
MOST_DISTANCE = 50.0
"""A logit farther below the largest counts as so far: its probability is nothing by then."""
_DISTANCES = 4
_OLDEST_OPSET = 13

Floats = npt.NDArray[np.float64]


class ScoreHead(NamedTuple):
    """A logistic model of logits.

    Attributes
    ----------
    distance
        Weights of how far the next logits are below the largest, the nearest first.
    probability
        Weights of the softmax probabilities, in order of the classes.
    """

    distance: tuple[float, ...]
    probability: tuple[float, ...]
    bias: float

    def score(self, distance: Floats, probability: Floats) -> Floats:
        """Return the score f64 [n] in [0, 1] of inputs f64 [n, distances] and [n, K]."""
        u = distance @ np.array(self.distance) + probability @ np.array(self.probability)
        value: Floats = 1 / (1 + np.exp(-np.clip(u + self.bias, -500, 500)))
        return value


def distances_to(classes: int) -> int:
    """Return how many logits beside the largest a head reads the distances of."""
    return min(_DISTANCES, classes - 1)


def with_score(path: Path, logits: str, head: ScoreHead) -> bytes:
    """Return the content of an ONNX file with the further output `OUTPUT`, the score of its logits.

    Parameters
    ----------
    logits
        Name of the model's output f32 [n, K].

    Raises
    ------
    UnsupportedModel
        When the file is damaged, has an opset before 13, keeps weights elsewhere, or has no such
        output, or one of the new one's name already.
    """
    import onnx
    from onnx import TensorProto, helper

    from engines.export_nodes import Nodes
    from engines.onnx_file import read_onnx

    file = read_onnx(path)
    opset = _checked_opset(file)
    graph = file.proto.graph
    outputs = {output.name: output for output in graph.output}
    if logits not in outputs or OUTPUT in outputs:
        raise UnsupportedModel(
            f"{path}: expected an output {logits!r} and none called {OUTPUT!r}, got "
            f"{', '.join(outputs)}."
        )
    nodes = Nodes(opset).within("tinysaver.gate.")
    value = _add_head(nodes, logits, head)
    added = nodes.graph("gate", [])
    graph.node.extend([*added.node, helper.make_node("Identity", [value], [OUTPUT])])
    graph.initializer.extend(added.initializer)
    batch = outputs[logits].type.tensor_type.shape.dim[0]
    size = batch.dim_param or batch.dim_value or "n"
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [size]))
    onnx.checker.check_model(file.proto)
    content: bytes = file.proto.SerializeToString()
    return content


def _checked_opset(file: OnnxFile) -> int:
    from engines.onnx_file import default_opset

    opset = default_opset(file.proto) or 0
    if file.external or opset < _OLDEST_OPSET:
        found = f"weights in {', '.join(file.external)}" if file.external else f"opset {opset}"
        raise UnsupportedModel(
            f"{file.path}: a learned gate is added to models of opset {_OLDEST_OPSET} or later "
            f"that keep their weights in the file, got {found}. Export the model again, or search "
            "without learned gates."
        )
    return opset


def _add_head(nodes: Nodes, logits: str, head: ScoreHead) -> str:
    """Add the nodes of a head and return the name of its score [n]."""
    terms = [_weighted(nodes, "probability", nodes.add("Softmax", "softmax", logits, axis=1),
                       head.probability)]  # fmt: skip
    if head.distance:
        falling = nodes.largest("falling", logits, len(head.distance) + 1)
        largest = nodes.add("Slice", "largest", falling, [0], [1], [1])
        others = nodes.add("Slice", "others", falling, [1], [len(head.distance) + 1], [1])
        distance = nodes.add("Sub", "distance", largest, others)
        near = nodes.add("Min", "near", distance, MOST_DISTANCE)
        terms.append(_weighted(nodes, "distances", near, head.distance))
    total = nodes.add("Add", "sum", *terms) if len(terms) == 2 else terms[0]
    biased = nodes.add("Add", "biased", total, head.bias)
    flat = nodes.add("Reshape", "flat", biased, [-1])
    return nodes.add("Sigmoid", "sigmoid", flat)


def _weighted(nodes: Nodes, name: str, tensor: str, weights: tuple[float, ...]) -> str:
    return nodes.add("MatMul", name, tensor, np.array(weights)[:, None])
