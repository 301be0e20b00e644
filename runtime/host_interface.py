"""Whether the models of a cascade have the tensors that its description says, on the CPU device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import BundleError
from runtime.schema import Stage
from runtime.session import HostModel

if TYPE_CHECKING:
    from runtime.host import HostStage


def check_interface(
    path: Path, model: HostModel, spec: Stage, image: tuple[int, int, int], classes: int
) -> None:
    """Raise when a model's tensors are not those that ``cascade.json`` describes.

    Parameters
    ----------
    image
        Channels, height and width after preprocessing.

    Raises
    ------
    BundleError
        Naming the file and the tensor.
    """
    wanted = {item.tensor: item.source for item in spec.inputs}
    if set(wanted) != set(model.inputs):
        raise BundleError(
            f"{path}: inputs: expected {sorted(wanted)} as cascade.json says, "
            f"the model has {sorted(model.inputs)}."
        )
    for name, source in wanted.items():
        shape = ("n", *image) if source == "frames" else ("n", *model.inputs[name][1:])
        _check_tensor(path, model, name, model.inputs[name], shape)
    if spec.logits not in model.outputs:
        raise BundleError(
            f"{path}: outputs: expected {spec.logits!r} as cascade.json says, "
            f"the model has {sorted(model.outputs)}."
        )
    _check_tensor(path, model, spec.logits, model.outputs[spec.logits], ("n", classes))


def _check_tensor(
    path: Path, model: HostModel, name: str, found: tuple[Any, ...], expected: tuple[Any, ...]
) -> None:
    kind = model.types[name]
    fits = (
        len(found) == len(expected) and not isinstance(found[0], int) and found[1:] == expected[1:]
    )
    if not fits or kind != "tensor(float)":
        raise BundleError(
            f"{path}: tensor {name}: expected tensor(float) {_shape(expected)} with a dynamic "
            f"batch, got {kind} {_shape(found)}. "
            "Export the model for this bundle, or mend cascade.json."
        )


def check_sources(stages: list[HostStage]) -> None:
    """Raise when a stage or gate reads a tensor that an earlier stage does not leave, or not so.

    Raises
    ------
    BundleError
        Naming the file, the tensor and its source.
    """
    outputs = {stage.spec.name: stage.outputs for stage in stages}
    for stage in stages:
        for item in stage.spec.inputs:
            name, _, tensor = item.source.partition("/")
            if item.source == "frames":
                continue
            source = outputs[name].get(tensor)
            if source is None or source.shape != stage.inputs[item.tensor].shape:
                found = "no such output" if source is None else _shape(source.shape)
                raise BundleError(
                    f"{stage.path}: input {item.tensor} reads {item.source}: expected "
                    f"{_shape(stage.inputs[item.tensor].shape)}, got {found}."
                )
        if stage.score_tensor:
            _check_score(stage, stage.score_tensor)


def _check_score(stage: HostStage, tensor: str) -> None:
    found = stage.model.outputs.get(tensor)
    if tensor not in stage.outputs or found is None or found[1:] not in ((), (1,)):
        raise BundleError(
            f"{stage.path}: the gate reads output {tensor!r}: expected [n] or [n, 1], "
            f"got {'no such output' if found is None else _shape(found)}. "
            "Export the model with its score, or mend cascade.json."
        )


def _shape(shape: tuple[Any, ...]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
