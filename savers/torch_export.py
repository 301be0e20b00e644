"""PyTorch networks as ONNX files that ONNX Runtime and every TensorRT read."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

OPSET = 17
"""What TensorRT 8.6 reads."""


def to_onnx(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str] = ("logits",),
    *,
    opset: int = OPSET,
) -> bytes:
    """Return a network in evaluation mode as ONNX; batch norm is folded into convolutions.

    Parameters
    ----------
    inputs
        An example of each input by its name, in the order in which the network takes them.
    outputs
        Names of what it returns. The first axis of all tensors is dynamic.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The TorchScript exporter writes opset 17, which the newer one cannot; it says it is old,
        # and tells of padding that it cannot fold.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            content,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: "n"} for name in (*inputs, *outputs)},
            opset_version=opset,
            dynamo=False,
        )
    return content.getvalue()
