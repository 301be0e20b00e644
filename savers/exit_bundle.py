"""A cascade with exits as a bundle: the saver, then the large model in segments.

The saver's file gets one output more, its last feature map, pooled. Each exit stage is the large
model's blocks up to the exit, with the exit behind them; it leaves its feature map and tokens for
the next, which reads them for the rows that come to it. The last stage is the rest of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import compose

from calibration.npz import Array, write_npz
from calibration.provenance import (
    ProvenanceMeta,
    load_provenance,
    sample_digests,
    save_digests,
    save_provenance,
)
from calibration.recorder import frame_format
from calibration.records import Data
from engines.onnx_file import default_opset
from engines.packing import whole_folder
from engines.segments import add_output, add_pooled
from kernels.files import replacing
from runtime.bundle import Bundle, file_sha256, save_spec
from runtime.host import HostExecutor
from runtime.schema import (
    CascadeSpec,
    Gate,
    Golden,
    ModelFile,
    Provenance,
    Setting,
    Stage,
    StageInput,
)
from savers.exit_choice import REST, exit_name
from savers.exit_features import Backbone, Images, sample_macs
from savers.exits import ExitHead, ExitSequence
from savers.torch_export import to_onnx

GOLDEN_FRAMES = 8
FEATURE, TOKENS, SAVER_LOGITS = "feature", "tokens", "saver_logits"
PROVENANCE = "provenance"
INSIDE = "exit/"
"""Before the names of an exit's own tensors and weights."""


@dataclass(frozen=True)
class Parts:
    """What a cascade with exits is made of.

    Attributes
    ----------
    savers
        One or more; the exits go on from the last.
    positions
        Blocks of the large model after which it exits, ascending.
    """

    savers: Sequence[Backbone]
    large: Backbone
    exits: ExitSequence
    positions: Sequence[int]


@dataclass(frozen=True)
class Facts:
    """What the bundle says of itself, beside its models.

    Attributes
    ----------
    training, selection
        Images that trained the exits, and that chose them.
    trained
        Provenance files of what trained the models.
    """

    name: str
    description: str
    labels: tuple[str, ...]
    setting: Setting
    training: Data
    selection: Data
    trained: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Network:
    """A stage before it lies in a file."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[StageInput, ...]
    logits: str


def write_exit_bundle(out: Path, parts: Parts, facts: Facts) -> CascadeSpec:
    """Make the folder ``out`` a bundle, whole or not at all, without a certificate.

    Raises
    ------
    EngineError
        When ``out`` holds something.
    UnsupportedModel
        When the large model's operators are of a version that exits cannot be written in.
    """
    frames = frame_format(facts.selection)
    with whole_folder(out) as folder:
        (folder / "models").mkdir()
        (folder / PROVENANCE).mkdir()
        stages = tuple(_write(folder, network, parts) for network in networks(parts))
        spec = CascadeSpec(
            format="tinysaver.cascade/1",
            name=facts.name,
            description=facts.description,
            input=frames,
            labels=facts.labels,
            stages=stages,
            gates=(Gate(),) * (len(stages) - 1),
            settings={"/".join(["fp32"] * len(stages)): facts.setting},
            provenance=(_training(folder, facts), _selection(folder, facts.selection)),
        )
        golden = _golden(folder, spec, facts.selection.images[:GOLDEN_FRAMES])
        spec = spec.model_copy(update={"golden": golden})
        save_spec(folder, spec)
    return spec


def networks(parts: Parts) -> list[Network]:
    """Return the stages of a cascade with exits, in their order."""
    found = [_whole(saver) for saver in parts.savers[:-1]]
    found.append(saver_network(parts.savers[-1]))
    after = 0
    for position in parts.positions:
        found.append(exit_network(parts, position, after=after))
        after = position
    return [*found, _rest(parts, after)]


def saver_network(saver: Backbone) -> Network:
    """Return a saver with its last feature map, pooled, as a further output."""
    network, cut = _whole(saver), saver.cuts[-1]
    add_pooled(network.model, cut, FEATURE)
    add_output(network.model, FEATURE, (cut.channels,))
    return network


def exit_network(parts: Parts, position: int, *, after: int) -> Network:
    """Return the blocks from one exit (0: the start) to the next, with that exit behind them."""
    large, exits = parts.large, parts.exits
    model = large.blocks.segment(after, position)
    head = _export(ExitHead(exits, position, after=after), default_opset(model) or 0)
    pooled = [f"pooled{block}" for block in range(after + 1, position + 1)]
    for block, name in zip(range(after, position), pooled, strict=True):
        add_pooled(model, large.cuts[block], name)
        add_output(model, name, (large.cuts[block].channels,))
    merged = _joined(model, head, pooled)
    saver = parts.savers[-1].card
    earlier = f"{exit_name(after)}/{TOKENS}" if after else f"{saver.name}/{FEATURE}"
    return Network(
        name=exit_name(position),
        model=merged,
        inputs=(
            _start(parts, after),
            StageInput(tensor="earlier", source=earlier),
            StageInput(tensor=SAVER_LOGITS, source=f"{saver.name}/{saver.logits}"),
        ),
        logits="logits",
    )


def _whole(backbone: Backbone) -> Network:
    model = onnx.ModelProto()
    model.CopyFrom(backbone.blocks.model)
    card = backbone.card
    return Network(card.name, model, (StageInput(tensor=card.input),), card.logits)


def _rest(parts: Parts, after: int) -> Network:
    model = parts.large.blocks.segment(after, None)
    return Network(REST, model, (_start(parts, after),), parts.large.card.logits)


def _start(parts: Parts, after: int) -> StageInput:
    """Return the input of a segment: the frames, or the map that the stage before it left."""
    if not after:
        return StageInput(tensor=parts.large.card.input)
    tensor = parts.large.cuts[after - 1].tensor
    return StageInput(tensor=tensor, source=f"{exit_name(after)}/{tensor}")


def _export(head: ExitHead, opset: int) -> onnx.ModelProto:
    """Return an exit as ONNX; its inputs are ``earlier``, ``saver_logits`` and pooled maps."""
    exits, after = head.exits, head.after
    earlier = (after + 1, exits.width) if after else (exits.channels[0],)
    pooled = {f"pooled{n}": (exits.channels[n],) for n in range(after + 1, head.position + 1)}
    shapes = {"earlier": earlier, SAVER_LOGITS: (exits.classes,), **pooled}
    inputs = {name: torch.zeros(1, *shape) for name, shape in shapes.items()}
    content = to_onnx(head, inputs, ("logits", TOKENS), opset=opset)
    return onnx.load_model_from_string(content)


def _joined(
    model: onnx.ModelProto, head: onnx.ModelProto, pooled: Sequence[str]
) -> onnx.ModelProto:
    """Return a segment with the exit behind it; the segment's map stays an output."""
    head = compose.add_prefix(head, INSIDE)
    head.ir_version = model.ir_version
    io_map = [(name, f"{INSIDE}{name}") for name in pooled]
    merged = compose.merge_models(
        model,
        head,
        io_map,
        outputs=[model.graph.output[0].name, f"{INSIDE}logits", f"{INSIDE}{TOKENS}"],
    )
    shown = {f"{INSIDE}{name}": name for name in ("earlier", SAVER_LOGITS, "logits", TOKENS)}
    _show(merged.graph, shown)
    return merged


def _show(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give inputs and outputs of the exit their plain names."""
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(item, item) for item in tensors]
    for info in (*graph.input, *graph.output):
        info.name = names.get(info.name, info.name)


def _write(folder: Path, network: Network, parts: Parts) -> Stage:
    path = folder / "models" / f"{network.name}.onnx"
    onnx.checker.check_model(network.model)
    with replacing(path) as stream:
        stream.write(network.model.SerializeToString())
    cards = {saver.card.name: saver.card for saver in parts.savers}
    card = cards.get(network.name, parts.large.card)
    file = ModelFile(file=f"models/{path.name}", sha256=file_sha256(path))
    return Stage(
        name=network.name,
        preprocessing=card.preprocessing,
        inputs=network.inputs,
        logits=network.logits,
        macs=sample_macs(network.model),
        whole_macs=parts.large.card.macs if network.name == REST else None,
        forms={"fp32": file},
    )


def _training(folder: Path, facts: Facts) -> Provenance:
    """Write what trained the exits or a model, in one file."""
    exits = sample_digests(facts.training.images)
    others = [load_provenance(path).digests for path in dict.fromkeys(facts.trained)]
    description = f"exits: {facts.training.name}, {len(exits)} samples; and what trained the models"
    meta = ProvenanceMeta(purpose="training", description=description)
    entry = save_digests(
        folder / PROVENANCE / "training.npz", np.concatenate([exits, *others]), meta
    )
    return entry.model_copy(update={"file": f"{PROVENANCE}/{entry.file}"})


def _selection(folder: Path, data: Data) -> Provenance:
    description = f"{data.name}, {len(data.images)} samples"
    meta = ProvenanceMeta(purpose="selection", description=description)
    entry = save_provenance(folder / PROVENANCE / "selection.npz", data.images, meta)
    return entry.model_copy(update={"file": f"{PROVENANCE}/{entry.file}"})


def _golden(folder: Path, spec: CascadeSpec, frames: Images) -> Golden:
    executor = HostExecutor(
        Bundle(folder, spec), ["fp32"] * len(spec.stages), batch=len(frames), threads=1
    )
    logits = executor.stage_logits(frames)
    executor.close()
    arrays: dict[str, Array] = {"frames": frames}
    for stage, answer in zip(spec.stages, logits, strict=True):
        arrays[f"logits/{stage.name}/fp32"] = answer
    path = write_npz(folder / "golden.npz", arrays)
    return Golden(file=path.name, sha256=file_sha256(path))
