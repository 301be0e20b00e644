"""What the building process is asked (one JSON document) and what it answers (JSON Lines)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from runtime.plans import Architecture, Flags, Library, Profile, Tensor
from runtime.schema import Form, Schema


class Expected(Schema):
    """A tensor that the bundle names; ``shape`` is without the batch axis, None if any will do."""

    name: str
    shape: tuple[int, ...] | None = None


class BuildRequest(Schema):
    """One plan to build.

    Attributes
    ----------
    name
        Of the plan, for messages.
    model, output, timing_cache
        Paths. The timing cache need not exist, and is written back.
    inputs, outputs
        What the network must have; further outputs are allowed.
    """

    name: str
    library: Library
    model: str
    form: Form
    inputs: tuple[Expected, ...]
    outputs: tuple[Expected, ...]
    profiles: tuple[Profile, ...]
    flags: Flags
    targets: tuple[Architecture, ...] = ()
    timing_cache: str | None = None
    output: str


class PhaseStarted(Schema):
    """A phase of the build began; phases nest."""

    event: Literal["started"] = "started"
    phase: str
    steps: int


class StepDone(Schema):
    """A step of a phase is done."""

    event: Literal["step"] = "step"
    phase: str
    step: int


class PhaseFinished(Schema):
    """A phase is over, complete or not."""

    event: Literal["finished"] = "finished"
    phase: str


class Built(Schema):
    """The plan lies in ``BuildRequest.output``; the last answer."""

    event: Literal["built"] = "built"
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    seconds: float
    warnings: tuple[str, ...] = ()


class Failed(Schema):
    """There is no plan, and why; the last answer."""

    event: Literal["failed"] = "failed"
    message: str


Progress = PhaseStarted | StepDone | PhaseFinished
Answer = Annotated[Progress | Built | Failed, Field(discriminator="event")]
ANSWERS: TypeAdapter[Progress | Built | Failed] = TypeAdapter(Answer)
"""Reads one line of answers."""
