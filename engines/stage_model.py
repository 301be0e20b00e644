"""A user's ONNX file as a stage: its image input and logits found, its axes made to fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pydantic
from onnx import TensorProto, helper

from engines.batch import AXIS_NAME, batch_axis, free_batch
from engines.description import describe
from engines.errors import UnsupportedModel
from engines.onnx_file import OnnxFile, read_onnx
from engines.onnx_model import OnnxModel, Tensor
from engines.pruning import drop_unneeded
from runtime.schema import Preprocessing

Size = tuple[int, int]


@dataclass(frozen=True)
class StageRequest:
    """What the user says of one model.

    Attributes
    ----------
    size
        Height and width; None takes those of the model's input.
    colour
        Channel order of the network; None takes grey or RGB by its channels.
    mean, std
        One number per channel, of pixels scaled to [0, 1].
    tensor, logits
        Names of the image input and of the output; None where the model leaves no choice. Logits
        may also be a tensor inside the graph.
    macs
        Multiply-accumulates for a sample, where they cannot be counted.
    """

    name: str
    path: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: Size | None = None
    colour: str | None = None
    resize: str = "stretch"
    tensor: str | None = None
    logits: str | None = None
    macs: int | None = None


@dataclass
class StageModel:
    """A model that fits by its description; nothing was run yet.

    Attributes
    ----------
    proto
        The model with the changes made to it.
    changes
        What they are, for the user; empty if the file is good as it is.
    """

    request: StageRequest
    file: OnnxFile
    proto: onnx.ModelProto
    tensor: str
    logits: str
    preprocessing: Preprocessing
    macs: int
    changes: list[str]

    def declare_logits(self, classes: int) -> None:
        """Write the shape of the logits into the model, if it is not there."""
        info = next(item for item in self.proto.graph.output if item.name == self.logits)
        declared = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if declared != [0, classes]:
            shape = (AXIS_NAME, classes)
            info.CopyFrom(helper.make_tensor_value_info(self.logits, TensorProto.FLOAT, shape))
            self.changes.append(f"output {self.logits} declared as [{AXIS_NAME}, {classes}]")


def read_stage(request: StageRequest) -> StageModel:
    """Read a model and make it fit a cascade, as far as its description tells.

    Raises
    ------
    UnsupportedModel
        When the file is damaged, or has not one image input ``f32 [n, 1 or 3, height, width]``, or
        no logits, or a node that fixes the batch.
    """
    file = read_onnx(request.path)
    described = describe(file, size=request.size)
    try:
        image = _image_input(described, request.tensor)
        preprocessing = _preprocessing(image, request)
        proto = onnx.ModelProto()
        proto.CopyFrom(file.proto)
        logits = _logits(described, proto, request.logits)
        changes = [*_select(proto, logits), *_fix_image(proto, image, preprocessing)]
        if not batch_axis(proto).is_dynamic:
            proto = _freed(proto, image.name)
            changes.append("batch made dynamic")
        macs = request.macs or _macs(described)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{request.path}: {error}") from None
    return StageModel(
        request, file, proto, image.name, logits, preprocessing, macs=macs, changes=changes
    )


def _freed(proto: onnx.ModelProto, image: str) -> onnx.ModelProto:
    try:
        return free_batch(proto)
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"{error}. The batch of a cascade changes; export the model with a dynamic one "
            f"(torch.onnx.export: dynamic_axes={{{image!r}: {{0: 'n'}}}}, or dynamic_shapes)."
        ) from None


def _image_input(model: OnnxModel, name: str | None) -> Tensor:
    found = [item for item in model.inputs if name in (None, item.name)]
    names = ", ".join(item.name for item in model.inputs)
    if name is not None and not found:
        raise UnsupportedModel(f"no input {name!r}; it has {names}. Name one with --input.")
    if len(model.inputs) > 1:
        raise UnsupportedModel(
            f"expected one input, the images; it has {names}. Export the model with images alone."
        )
    return found[0]


def _preprocessing(image: Tensor, request: StageRequest) -> Preprocessing:
    shape = image.shape
    if image.dtype != "float32" or shape is None or len(shape) != 4:
        raise UnsupportedModel(
            f"input {image}: expected float32 [n, channels, height, width]. Export it so."
        )
    if shape[1] not in (1, 3) and shape[3] in (1, 3):
        raise UnsupportedModel(
            f"input {image}: the channels stand last; expected [n, channels, height, width]. "
            "Export it with channels first (tf2onnx: --inputs-as-nchw)."
        )
    channels = shape[1] if isinstance(shape[1], int) else len(request.mean)
    colour = request.colour or {1: "grey", 3: "rgb"}.get(channels)
    if colour is None or channels != (1 if colour == "grey" else 3):
        raise UnsupportedModel(
            f"input {image}: {channels} channel(s); expected 1 for grey, 3 for rgb or bgr"
            f"{f', and --colour says {colour}' if request.colour else ''}."
        )
    return _checked(
        size=_size(image, request.size),
        colour=colour,
        resize=request.resize,
        mean=request.mean,
        std=request.std,
    )


def _checked(**fields: Any) -> Preprocessing:
    too_large = [value for value in (*fields["mean"], *fields["std"]) if abs(value) > 4]
    if too_large:
        raise UnsupportedModel(
            f"--mean, --std: {too_large[0]:g} looks like one for pixels up to 255; expected those "
            f"of pixels scaled to [0, 1]: {too_large[0] / 255:.4g}."
        )
    try:
        return Preprocessing(**fields)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = problem["loc"][0] if problem["loc"] else "mean"
        reason = problem["msg"].removeprefix("Value error, ")
        raise UnsupportedModel(f"--{option}: {reason}.") from None


def _size(image: Tensor, wanted: Size | None) -> Size:
    """Return height and width, from the model where it fixes them."""
    sizes = []
    for axis, name in enumerate(("height", "width")):
        declared = (image.shape or ())[2 + axis]
        given = wanted[axis] if wanted else None
        if not isinstance(declared, int):
            if given is None:
                raise UnsupportedModel(f"input {image}: the {name} is open. Pass --size HxW.")
            declared = given
        elif given not in (None, declared):
            raise UnsupportedModel(
                f"input {image}: {name} {declared}, but --size says {given}. "
                "Export the model for that size, or leave --size out."
            )
        sizes.append(declared)
    return sizes[0], sizes[1]


def _logits(model: OnnxModel, proto: onnx.ModelProto, name: str | None) -> str:
    outputs = [item.name for item in model.outputs]
    if name is None:
        if len(outputs) > 1 and "logits" not in outputs:
            raise UnsupportedModel(
                f"which output are the logits? It has {', '.join(outputs)}. Name one with --logits."
            )
        return "logits" if len(outputs) > 1 else outputs[0]
    inside = {output for node in proto.graph.node for output in node.output}
    if name not in inside:
        raise UnsupportedModel(
            f"no output {name!r}; it has {', '.join(outputs)}. "
            "Name one, or a tensor inside, with --logits."
        )
    return name


def _select(proto: onnx.ModelProto, logits: str) -> list[str]:
    """Make a tensor inside the graph its output, and drop what is then not needed."""
    graph = proto.graph
    if logits in [info.name for info in graph.output]:
        return []
    dropped = ", ".join(info.name for info in graph.output)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(logits, TensorProto.FLOAT, None))
    drop_unneeded(graph)
    return [f"output {logits} in place of {dropped}"]


def _fix_image(proto: onnx.ModelProto, image: Tensor, preprocessing: Preprocessing) -> list[str]:
    sizes = (len(preprocessing.mean), *preprocessing.size)
    if image.shape is not None and image.shape[1:] == sizes:
        return []
    info = next(item for item in proto.graph.input if item.name == image.name)
    for dim, size in zip(info.type.tensor_type.shape.dim[1:], sizes, strict=True):
        dim.dim_value = size
    del proto.graph.value_info[:]
    return [f"input {image.name} fixed at {', '.join(map(str, sizes))}"]


def _macs(model: OnnxModel) -> int:
    if not model.macs:
        raise UnsupportedModel(
            f"no multiply-accumulates could be counted ({model.macs_note or 'it has none'}). "
            "Pass --macs NUMBER."
        )
    return model.macs
