"""Networks of shared depth as ONNX: unrolled to several numbers of steps, over one weights file.

The files of all numbers of steps name the same tensors in the same file, which the CPU device then
maps once (`runtime.shared_weights`). TensorRT reads the file for each engine that it builds, and
each engine has a copy of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from calibration.provenance import ProvenanceMeta, save_provenance
from engines.packing import BundleRequest, Written, write_bundle
from engines.stage_model import StageRequest
from kernels.files import replacing
from runtime.bundle import save_spec
from runtime.schema import FrameFormat, Preprocessing
from savers.dataset import Split
from savers.depth_network import SharedDepth
from savers.torch_export import to_onnx
from savers.views import Level, levels

WEIGHTS = "weights.bin"
_ALIGNMENT = 64
"""Bytes: what vector loads want of an address."""


class _WeightsFile:
    """Tensors one after the other, each content once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._offsets: dict[bytes, int] = {}

    def place(self, content: bytes) -> int:
        """Return the offset of a content, which is added if it is new."""
        if content not in self._offsets:
            self.content += bytes(-len(self.content) % _ALIGNMENT)
            self._offsets[content] = len(self.content)
            self.content += content
        return self._offsets[content]


def export_steps(network: SharedDepth, example: Tensor, steps: Iterable[int], folder: Path) -> None:
    """Write ``steps-<N>.onnx`` for each number of steps, and the weights of all in `WEIGHTS`.

    Parameters
    ----------
    example
        One input, ``[1, ...]``; the exported graphs take any batch.

    Raises
    ------
    InputError
        When a number of steps is not a whole number from 1 on.
    """
    weights = _WeightsFile()
    models = {}
    for count in steps:
        model = onnx.load_from_string(to_onnx(network.at(count), {"input": example}))
        for tensor in model.graph.initializer:
            _move_out(tensor, weights)
        models[f"steps-{count}.onnx"] = model.SerializeToString()
    for name, content in {WEIGHTS: bytes(weights.content), **models}.items():
        with replacing(folder / name) as stream:
            stream.write(content)


def _move_out(tensor: TensorProto, weights: _WeightsFile) -> None:
    if tensor.data_type != TensorProto.FLOAT or not tensor.dims:
        return  # numbers that shapes are made of stay where every reader finds them
    content = onnx.numpy_helper.to_array(tensor).tobytes()
    place = {"location": WEIGHTS, "offset": weights.place(content), "length": len(content)}
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


@dataclass(frozen=True)
class Pictures:
    """What a cascade of shared depth classifies.

    Attributes
    ----------
    train
        What it was trained on: its samples are the bundle's provenance.
    mean, std
        Of pixels scaled to [0, 1].
    """

    name: str
    train: Split
    labels: tuple[str, ...]
    mean: Level
    std: Level

    @property
    def preprocessing(self) -> Preprocessing:
        """From a picture to the network's input."""
        side = self.train.images.shape[1]
        mean, std = levels(self.mean), levels(self.std)
        return Preprocessing(size=(side, side), colour="grey", mean=mean, std=std)


def write_cascade(
    network: SharedDepth, pictures: Pictures, steps: Sequence[int], out: Path
) -> Written:
    """Make ``out`` a bundle whose stages are one network with ascending numbers of steps.

    Raises
    ------
    EngineError
        When ``out`` holds something.
    InputError
        When a number of steps is not a whole number from 1 on.
    """
    shape = pictures.train.images.shape[1:]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as place:
        folder = Path(place)
        export_steps(network, torch.zeros(1, 1, *shape[:2]), steps, folder)
        written = write_bundle(
            out,
            BundleRequest(
                name=f"{pictures.name}-shared-depth",
                description=f"One block of shared weights, {_listed(steps)} steps, {pictures.name}",
                stages=tuple(_request(folder, pictures, count) for count in steps),
                frames=FrameFormat(shape=shape, colour="grey"),
                labels=pictures.labels,
            ),
        )
    meta = ProvenanceMeta(purpose="training", description=f"training images of {pictures.name}")
    entry = save_provenance(out / "training.npz", pictures.train.images, meta)
    spec = written.spec.model_copy(update={"provenance": (entry,)})
    save_spec(out, spec)
    return Written(out, spec, written.changes)


def _request(folder: Path, pictures: Pictures, steps: int) -> StageRequest:
    given = pictures.preprocessing
    return StageRequest(
        name=f"steps-{steps}",
        path=folder / f"steps-{steps}.onnx",
        mean=given.mean,
        std=given.std,
        colour=given.colour,
    )


def _listed(steps: Sequence[int]) -> str:
    return " and ".join(map(str, steps))
