"""Frames to what a stage's network reads: preprocessed frames, or what earlier stages left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle
from runtime.preprocess import Preprocessor
from runtime.schema import StageInput
from runtime.session import HostModel

Tensors = dict[str, npt.NDArray[Any]]
Feed = Callable[[npt.NDArray[np.uint8]], Tensors]


def stage_feed(bundle: Bundle, index: int, *, threads: int) -> Feed:
    """Return a function from frames u8 [n, H, W, C] to a stage's network inputs by name.

    Earlier stages that it reads run in FP32, on all rows.
    """
    stage = bundle.spec.stages[index]
    preprocess = Preprocessor(stage.preprocessing, bundle.spec.input)
    others = {
        name: _stage_outputs(bundle, name, threads=threads) for name in producers(bundle, index)
    }

    def feed(frames: npt.NDArray[np.uint8]) -> Tensors:
        left = {name: outputs(frames) for name, outputs in others.items()}
        return {item.tensor: _read(item, frames, left, preprocess) for item in stage.inputs}

    return feed


def producers(bundle: Bundle, index: int) -> list[str]:
    """Return the names of the earlier stages whose outputs a stage reads, each once."""
    sources = [item.source for item in bundle.spec.stages[index].inputs]
    return list(dict.fromkeys(s.partition("/")[0] for s in sources if s != "frames"))


def upstream(bundle: Bundle, index: int) -> list[int]:
    """Return the indices of all stages that a stage depends on, itself first."""
    names = [stage.name for stage in bundle.spec.stages]
    found = [index]
    for name in producers(bundle, index):
        found += [k for k in upstream(bundle, names.index(name)) if k not in found]
    return found


def _stage_outputs(bundle: Bundle, name: str, *, threads: int) -> Feed:
    index = [stage.name for stage in bundle.spec.stages].index(name)
    model = HostModel(bundle.model(index, "fp32"), threads=threads)
    feed = stage_feed(bundle, index, threads=threads)
    return lambda frames: model.run(feed(frames))


def _read(
    item: StageInput,
    frames: npt.NDArray[np.uint8],
    left: dict[str, Tensors],
    preprocess: Preprocessor,
) -> npt.NDArray[Any]:
    if item.source == "frames":
        return preprocess(frames)
    name, _, tensor = item.source.partition("/")
    return left[name][tensor]
