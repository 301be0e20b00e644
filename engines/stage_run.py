"""Whether a stage's model answers each sample alone, whatever the batch: told by running it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from engines.errors import UnsupportedModel
from engines.onnx_file import node_title
from runtime.errors import BundleError
from runtime.session import ORT_ERRORS, HostModel

Float32 = npt.NDArray[np.float32]

SAMPLES = 3
TOLERANCE = 1e-3
"""Largest difference of a logit between batches, as a share of the largest logit: far above what
another order of sums makes, far below what another sample's answer would."""


class StageRunner:
    """Runs one model, in its form on disk, on random images.

    Parameters
    ----------
    path
        Of the file that is run.
    shown
        Of the file that the user gave, for messages.

    Raises
    ------
    UnsupportedModel
        When ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path, *, shown: Path, tensor: str, logits: str) -> None:
        self._shown, self._tensor, self._logits = shown, tensor, logits
        try:
            self._model = HostModel(path, threads=1)
        except BundleError as error:
            raise UnsupportedModel(str(error).replace(str(path), str(shown))) from None

    def run(self, images: Float32) -> Float32:
        """Return logits f32 [n, K] of images f32 [n, c, h, w], as one batch.

        Raises
        ------
        UnsupportedModel
            When ONNX Runtime fails, naming the node, or the output has another type or shape.
        """
        try:
            logits = self._model.run({self._tensor: images})[self._logits]
        except ORT_ERRORS as error:
            raise UnsupportedModel(
                f"{self._shown}: ONNX Runtime cannot run a batch of {len(images)}: "
                f"{_explain(str(error))}"
            ) from None
        if logits.dtype != np.float32 or logits.ndim != 2 or len(logits) != len(images):
            raise UnsupportedModel(
                f"{self._shown}: output {self._logits}: expected float32 "
                f"[{len(images)}, classes], got {logits.dtype} {list(logits.shape)}. "
                "Export the model with one row of logits for each image, or name another output "
                "or a tensor inside with --logits."
            )
        return logits

    def run_each(self, images: Float32, *, batch: int = 1) -> Float32:
        """Return the logits of images that are run one after the other.

        A model for a fixed batch gets each image that many times.
        """
        rows = [self.run(np.repeat(image[None], batch, axis=0))[:1] for image in images]
        return np.concatenate(rows)


def random_images(shape: tuple[int, int, int]) -> Float32:
    """Return `SAMPLES` unlike images f32 [n, c, h, w], the same each time."""
    rng = np.random.default_rng(0)
    number = np.arange(SAMPLES).reshape(-1, 1, 1, 1)
    images = rng.normal(number / 2 - 0.5, 1 + number / 2, (SAMPLES, *shape))
    return images.astype(np.float32)


def check_logits(shown: Path, proto: onnx.ModelProto, name: str, logits: Float32) -> None:
    """Raise when a model gives probabilities, of which a gate would take the softmax once more.

    Raises
    ------
    UnsupportedModel
        Naming the tensor before a Softmax, which is what to take.
    """
    inside = bool((logits >= 0).all() and (logits <= 1).all())
    if not inside or np.abs(logits.sum(axis=1) - 1).max() > TOLERANCE or logits.shape[1] < 2:
        return
    advice = "Export it without its last Softmax."
    for node in proto.graph.node:
        if name in node.output and node.op_type == "Softmax":
            advice = f"Take what goes into {node_title(node)}: --logits {node.input[0]}"
    raise UnsupportedModel(
        f"{shown}: output {name} holds probabilities, but the gate needs logits. {advice}"
    )


def compare(shown: Path, expected: Float32, found: Float32, *, batch: int) -> None:
    """Raise when a batch gives other answers than each of its images did in the user's file.

    Raises
    ------
    UnsupportedModel
        With the largest difference.
    """
    scale = max(float(np.abs(expected).max(initial=0)), 1e-6)
    worst = float(np.abs(found - expected).max(initial=0)) / scale
    if not worst <= TOLERANCE:
        raise UnsupportedModel(
            f"{shown}: a batch of {batch} gives other answers than its images alone (largest "
            f"difference {worst:.2g} of the largest logit): the model mixes the images of a "
            "batch. Export it in evaluation mode, with a dynamic batch."
        )


def _explain(message: str) -> str:
    found = re.search(r"running (\w+) node\. Name:'([^']*)'", message)
    reason = message.splitlines()[0]
    return f"node {found[2]} ({found[1]}): {reason}" if found else reason
