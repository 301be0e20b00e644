"""Whether engines have the tensors that their bundle describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import PlanError
from runtime.preprocess import network_input
from runtime.tensorrt_engine import Engine, EngineTensor

_FLOATS = (np.dtype(np.float16), np.dtype(np.float32))


def check_engines(bundle: Bundle, engines: Sequence[Engine]) -> None:
    """Check names, types and shapes of all tensors against ``cascade.json``.

    Raises
    ------
    PlanError
        Naming the plan and the tensor, with what was expected and what was found.
    """
    for number, engine in enumerate(engines):
        _check_names(bundle, number, engine)
        _check_inputs(bundle, number, engines)
        stage = bundle.spec.stages[number]
        _check(engine, stage.logits, (len(bundle.spec.labels),))
        if number < len(bundle.spec.gates):
            _check_score(engine, bundle.spec.gates[number].score.output)
    if bundle.spec.weighted is not None:
        _check_combination(bundle, engines[bundle.spec.weighted[0]], engines[-1])


def _check_combination(bundle: Bundle, earlier: Engine, last: Engine) -> None:
    """Refuse logits of two types, which no kernel adds."""
    combination, stages = bundle.spec.combination, bundle.spec.stages
    assert combination is not None
    logits = next(stage.logits for stage in stages if stage.name == combination.stage)
    found = earlier.tensors[logits].dtype
    expected = last.tensors[stages[-1].logits].dtype
    if found != expected:
        raise PlanError(
            f"plan {earlier.name}: its logits are added to those of plan {last.name}: expected "
            f"{expected} as there, got {found}. Build both from ONNX files whose logits have the "
            "same type: python -m engines.build"
        )


def _check_names(bundle: Bundle, number: int, engine: Engine) -> None:
    wanted = {item.tensor for item in bundle.spec.stages[number].inputs}
    found = {tensor.name for tensor in engine.tensors.values() if tensor.is_input}
    if wanted != found:
        raise PlanError(
            f"plan {engine.name}: inputs: expected {sorted(wanted)}, as cascade.json says, "
            f"got {sorted(found)}. Build it again from this bundle: python -m engines.build"
        )


def _check_inputs(bundle: Bundle, number: int, engines: Sequence[Engine]) -> None:
    stage = bundle.spec.stages[number]
    names = [item.name for item in bundle.spec.stages]
    for item in stage.inputs:
        if item.source == "frames":
            shape: tuple[int, ...] = network_input(stage.preprocessing).shape
            _check(engines[number], item.tensor, shape)
            continue
        producer, _, output = item.source.partition("/")
        source = engines[names.index(producer)].tensors.get(output)
        if source is None or source.is_input:
            raise PlanError(
                f"plan {engines[number].name}: input {item.tensor} reads {item.source}, "
                f"which plan {engines[names.index(producer)].name} does not put out."
            )
        _check(engines[number], item.tensor, source.shape, dtypes=(source.dtype,))


def _check_score(engine: Engine, output: str | None) -> None:
    if output is None:
        return
    found = engine.tensors.get(output)
    shape = found.shape if found and found.shape in ((), (1,)) else (1,)
    _check(engine, output, shape, dtypes=(np.dtype(np.float32),))


def _check(
    engine: Engine,
    name: str,
    shape: tuple[int, ...],
    *,
    dtypes: tuple[np.dtype[Any], ...] = _FLOATS,
) -> None:
    found = engine.tensors.get(name)
    if found is None or found.shape != shape or found.dtype not in dtypes:
        kinds = " or ".join(str(dtype) for dtype in dtypes)
        raise PlanError(
            f"plan {engine.name}: tensor {name}: expected {kinds} {_rows(shape)}, "
            f"got {_describe(found)}. Build it again from this bundle: python -m engines.build"
        )


def _describe(tensor: EngineTensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {_rows(tensor.shape)}"


def _rows(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(["n", *map(str, shape)]) + "]"
