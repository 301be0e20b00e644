"""From a bundle and what is asked for to the single plans to build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.build_messages import BuildRequest, Expected
from engines.errors import EngineError
from engines.plan_store import Wanted
from runtime.bundle import Bundle
from runtime.plans import Flags, Machine, PlanKey, Profile, model_digest
from runtime.schema import CascadeSpec, Form


@dataclass(frozen=True)
class Order:
    """What to build of a bundle.

    Attributes
    ----------
    stages
        Names; empty for all.
    profiles
        For a DLA core each becomes a plan of its own, of one fixed batch.
    """

    forms: tuple[Form, ...]
    stages: tuple[str, ...]
    machine: Machine
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    flags: Flags

    def key(self, model_sha256: str, form: Form, profiles: tuple[Profile, ...]) -> PlanKey:
        """Return the key of one plan."""
        return PlanKey(
            model_sha256=model_sha256,
            form=form,
            machine=self.machine,
            targets=self.targets,
            profiles=profiles,
            flags=self.flags,
        )


@dataclass(frozen=True)
class Job:
    """One plan to find or build."""

    wanted: Wanted
    model: Path
    inputs: tuple[Expected, ...]
    outputs: tuple[Expected, ...]

    def request(self, output: Path, timing_cache: Path | None) -> BuildRequest:
        """Return what the building process is asked."""
        key = self.wanted.key
        return BuildRequest(
            name=self.wanted.name,
            library=key.machine.library,
            model=str(self.model),
            form=key.form,
            inputs=self.inputs,
            outputs=self.outputs,
            profiles=key.profiles,
            flags=key.flags,
            targets=key.targets,
            timing_cache=None if timing_cache is None else str(timing_cache),
            output=str(output),
        )


def jobs(bundle: Bundle, order: Order) -> Iterator[Job]:
    """Return the plans that an order asks for, the models' hashes checked.

    Raises
    ------
    EngineError
        When a stage is not in the bundle.
    BundleError
        When a stage lacks the form, or a file is missing or has other content.
    """
    names = [stage.name for stage in bundle.spec.stages]
    unknown = sorted(set(order.stages) - set(names))
    if unknown:
        raise EngineError(
            f"{bundle.folder}: no stage {', '.join(unknown)}; it has {', '.join(names)}."
        )
    for form in order.forms:
        for index, name in enumerate(names):
            if not order.stages or name in order.stages:
                yield from _stage_jobs(bundle, index, form, order)


def _stage_jobs(bundle: Bundle, index: int, form: Form, order: Order) -> Iterator[Job]:
    model = bundle.model(index, form)
    content = model_digest(bundle, index, form)
    for profiles in _plans(order):
        key = order.key(content, form, profiles)
        yield Job(
            wanted=Wanted(bundle.folder, bundle.spec.stages[index].name, key),
            model=model,
            inputs=expected_inputs(bundle.spec, index),
            outputs=expected_outputs(bundle.spec, index),
        )


def _plans(order: Order) -> list[tuple[Profile, ...]]:
    if order.flags.dla_core is None:
        return [order.profiles]
    return [(Profile(min=p.max, opt=p.max, max=p.max),) for p in order.profiles]


def expected_inputs(spec: CascadeSpec, index: int) -> tuple[Expected, ...]:
    """Return the inputs that the bundle feeds to a stage's network."""
    stage = spec.stages[index]
    preprocessing = stage.preprocessing
    frames = (1 if preprocessing.colour == "grey" else 3, *preprocessing.size)
    return tuple(
        Expected(name=item.tensor, shape=frames if item.source == "frames" else None)
        for item in stage.inputs
    )


def expected_outputs(spec: CascadeSpec, index: int) -> tuple[Expected, ...]:
    """Return what the bundle reads of a stage: logits, learned score, tensors of later stages."""
    stage = spec.stages[index]
    outputs = {stage.logits: Expected(name=stage.logits, shape=(len(spec.labels),))}
    if index < len(spec.gates):
        score = spec.gates[index].score.output
        if score is not None:
            outputs[score] = Expected(name=score, shape=())
    for later in spec.stages[index + 1 :]:
        for item in later.inputs:
            producer, _, name = item.source.partition("/")
            if producer == stage.name:
                outputs.setdefault(name, Expected(name=name))
    return tuple(outputs.values())
