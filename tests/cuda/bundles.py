"""Small bundles of random models, with sizes, colours and tensors that the demo does not have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.score_head import OUTPUT, ScoreHead, with_score

CLASSES = 7
FEATURES = 5
_TYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}

Shape = tuple[int, ...]


class Part(NamedTuple):
    """A stage.

    Attributes
    ----------
    size
        Height and width of its network's picture.
    reads
        Tensors of earlier stages, ``"<stage>/features"``, besides frames.
    score
        It has a score f32 [n, 1] of its own.
    """

    name: str
    size: tuple[int, int]
    resize: str = "stretch"
    colour: str = "rgb"
    reads: Sequence[str] = ()
    frames: bool = True
    score: bool = False
    dtype: type = np.float32


def write_bundle(
    folder: Path,
    parts: Sequence[Part],
    input_: Mapping[str, Any],
    *,
    thresholds: Sequence[float | Sequence[float]],
    scores: Sequence[Mapping[str, Any]] | None = None,
    combination: Mapping[str, Any] | None = None,
) -> Path:
    """Write a bundle and its models, and return the folder."""
    folder.mkdir(parents=True)
    stages = [write_stage(folder, number, part) for number, part in enumerate(parts)]
    content = {
        "format": "tinysaver.cascade/1",
        "name": "random",
        "input": input_,
        "labels": [f"class {k}" for k in range(CLASSES)],
        "stages": stages,
        "gates": [{"score": score} for score in scores] if scores else [{}] * (len(parts) - 1),
        "combination": combination,
        "settings": {"/".join(["fp32"] * len(parts)): {"thresholds": list(thresholds)}},
    }
    (folder / "cascade.json").write_text(json.dumps(content))
    return folder


NV12 = {"shape": [36, 32, 1], "colour": "nv12", "matrix": "bt709", "range": "limited"}
BGR = {"shape": [20, 28, 3], "colour": "bgr"}


def three_stages(folder: Path) -> Path:
    """Write a bundle for NV12 frames; the large stage reads frames and the first stage's tensor."""
    parts = (
        Part("small", (8, 8), "letterbox"),
        Part("middle", (12, 20), "stretch", "bgr", reads=["small/features"]),
        Part("large", (16, 10), "centre_crop", reads=["small/features", "middle/features"]),
    )
    return write_bundle(folder, parts, NV12, thresholds=[0.6, 0.7])


def four_stages(folder: Path) -> Path:
    """Write a bundle in which a tensor skips a stage, and the last stage reads no frames."""
    parts = (
        Part("a", (7, 9), "letterbox", "grey"),
        Part("b", (9, 7), "centre_crop"),
        Part("c", (5, 6), "stretch", reads=["a/features"]),
        Part("d", (1, 1), reads=["b/features", "c/features"], frames=False),
    )
    scores = [{"temperature": 1.5}, {"name": "margin"}, {"name": "entropy"}]
    return write_bundle(folder, parts, BGR, thresholds=[0.5, 0.4, 0.3], scores=scores)


def combined(folder: Path, stage: str, weight: float, *, dtype: type = np.float32) -> Path:
    """Write a bundle of four stages, of which the last adds the logits of another to its own."""
    parts = (
        Part("a", (7, 9), "letterbox", "grey", dtype=dtype),
        Part("b", (9, 7), "centre_crop", dtype=dtype),
        Part("c", (5, 6), "stretch", reads=["a/features"], dtype=dtype),
        Part("d", (8, 6), dtype=dtype),
    )
    combination = {"stage": stage, "weight": weight}
    thresholds = [0.93, 0.95, 0.8]
    return write_bundle(folder, parts, BGR, thresholds=thresholds, combination=combination)


HEAD = ScoreHead((0.4, 0.1, 0.0, -0.2), tuple(np.linspace(-1, 1, CLASSES)), -0.3)


def everything(folder: Path) -> Path:
    """Write a bundle with a learned gate, thresholds by class, gears, and a combination."""
    parts = (Part("saver", (6, 8)), Part("middle", (8, 6)), Part("large", (9, 9)))
    write_bundle(
        folder,
        parts,
        BGR,
        thresholds=[np.linspace(0.55, 0.75, CLASSES).tolist(), [0.8] * CLASSES],
        scores=[{"name": "learned", "output": OUTPUT}, {"temperature": 1.4}],
        combination={"stage": "middle", "weight": 0.8},
    )
    content = json.loads((folder / "cascade.json").read_text())
    model = with_score(folder / "saver.onnx", "logits", HEAD)
    (folder / "saver.onnx").write_bytes(model)
    content["stages"][0]["forms"]["fp32"]["sha256"] = hashlib.sha256(model).hexdigest()
    setting = content["settings"]["fp32/fp32/fp32"]
    for step in (0.05, 0.1):
        setting.setdefault("gears", []).append(
            [[min(1.0, t + step) for t in gate] for gate in setting["thresholds"]]
        )
    (folder / "cascade.json").write_text(json.dumps(content))
    return folder


def other_scores(folder: Path) -> Path:
    """Write a bundle for frames of any size, whose gates use a learned score and a p-norm."""
    parts = (Part("saver", (6, 8), score=True), Part("middle", (8, 6)), Part("large", (9, 9)))
    scores = [{"name": "learned", "output": "score"}, {"name": "p_norm", "p": 3.0}]
    any_size = {"shape": [0, 0, 3], "colour": "rgb"}
    return write_bundle(folder, parts, any_size, thresholds=[0.5, 0.6], scores=scores)


def two_stages(folder: Path, *, dtype: type = np.float32) -> Path:
    """Write a bundle of two tiny stages."""
    parts = (Part("saver", (4, 4), dtype=dtype), Part("large", (6, 6), dtype=dtype))
    return write_bundle(folder, parts, {"shape": [6, 6, 3], "colour": "rgb"}, thresholds=[0.5])


def random_frames(count: int, shape: Sequence[int], *, seed: int = 0) -> np.ndarray:
    """Return frames u8 [count, *shape]: noise of different contrasts about different levels."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(40, 215, (count, 1, 1, 1))
    contrast = rng.uniform(2, 90, (count, 1, 1, 1))
    noise = rng.standard_normal((count, *shape))
    return np.clip(level + contrast * noise, 0, 255).astype(np.uint8)


def write_stage(folder: Path, number: int, part: Part) -> dict[str, Any]:
    """Write a stage's model; return what cascade.json says of it."""
    channels = 1 if part.colour == "grey" else 3
    inputs: dict[str, Shape] = {"input": (channels, *part.size)} if part.frames else {}
    sources = {"input": "frames"} if part.frames else {}
    for source in part.reads:
        name = source.replace("/", "_")
        inputs[name], sources[name] = (FEATURES,), source
    content = _model(inputs, part, seed=number).SerializeToString()
    (folder / f"{part.name}.onnx").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "name": part.name,
        "preprocessing": {
            "size": part.size,
            "colour": part.colour,
            "resize": part.resize,
            "mean": [0.4] * channels,
            "std": [0.25] * channels,
        },
        "inputs": [{"tensor": name, "source": source} for name, source in sources.items()],
        "logits": "logits",
        "macs": 1000 * (number + 1),
        "forms": {"fp32": {"file": f"{part.name}.onnx", "sha256": sha256}},
    }


def _model(inputs: Mapping[str, Shape], part: Part, *, seed: int) -> onnx.ModelProto:
    """Return ``features = tanh(sum of input @ weights)``, ``logits = features @ weights``."""
    rng, dtype = np.random.default_rng(seed), part.dtype
    nodes, weights = [], []
    for name, shape in inputs.items():
        length = int(np.prod(shape))
        values = rng.standard_normal((length, FEATURES)) * 1.5 / np.sqrt(length)
        weights.append(numpy_helper.from_array(values.astype(dtype), f"{name}_weights"))
        nodes.append(helper.make_node("Flatten", [name], [f"{name}_flat"]))
        nodes.append(
            helper.make_node("MatMul", [f"{name}_flat", f"{name}_weights"], [f"{name}_product"])
        )
    nodes.append(helper.make_node("Sum", [f"{name}_product" for name in inputs], ["sum"]))
    nodes.append(helper.make_node("Tanh", ["sum"], ["features"]))
    nodes.append(helper.make_node("MatMul", ["features", "last_weights"], ["logits"]))
    last = (3 * rng.standard_normal((FEATURES, CLASSES))).astype(dtype)
    weights.append(numpy_helper.from_array(last, "last_weights"))
    kind = _TYPES[dtype]
    tensors = [
        helper.make_tensor_value_info(name, kind, ("n", *shape)) for name, shape in inputs.items()
    ]
    outputs = [
        helper.make_tensor_value_info("logits", kind, ("n", CLASSES)),
        helper.make_tensor_value_info("features", kind, ("n", FEATURES)),
    ]
    if part.score:
        nodes.append(helper.make_node("ReduceMean", ["features"], ["mean"], axes=[1]))
        nodes.append(helper.make_node("Sigmoid", ["mean"], ["score"]))
        outputs.append(helper.make_tensor_value_info("score", kind, ("n", 1)))
    graph = helper.make_graph(nodes, "random", tensors, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model
