"""What a GPU is to do of a cascade: the plan of each stage, what the stages of a batch share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kernels import ops
from kernels.frames import NetworkInput
from kernels.launch import DeviceArray
from runtime.errors import BundleError
from runtime.preprocess import network_input
from runtime.schema import Score, Stage
from runtime.tensorrt_engine import Engine


class Combined(NamedTuple):
    """Of whose logits, and by what weight, a last stage adds to its own."""

    stage: int
    weight: float


@dataclass(frozen=True)
class StagePlan:
    """What is the same for all batches of a stage.

    Attributes
    ----------
    buckets
        Its batch sizes, ascending: those of its engine that a batch of this cascade can need.
    rounds
        In how many rounds of the largest bucket a whole batch runs.
    combined
        Of a last stage.
    """

    number: int
    spec: Stage
    engine: Engine
    score: Score
    network: NetworkInput
    buckets: tuple[int, ...]
    rounds: int
    combined: Combined | None = None

    @property
    def largest(self) -> int:
        """The largest bucket."""
        return self.buckets[-1]

    @property
    def rows(self) -> int:
        """Rows of the dense buffers."""
        return self.rounds * self.largest

    def bucket_for(self, rows: int) -> int:
        """Return the smallest bucket that holds ``rows``."""
        return next(size for size in self.buckets if size >= rows)


class Settings(NamedTuple):
    """What a gate reads anew in each batch.

    ``thresholds`` f32 [K], by predicted class; ``temperature`` f32 [1]; ``force`` u8 [batch].
    """

    thresholds: DeviceArray
    temperature: DeviceArray
    force: DeviceArray


class Batch(NamedTuple):
    """What the stages of a batch in flight share.

    Attributes
    ----------
    size
        Most frames.
    valid
        i32 [1], how many there are.
    tables
        Per stage u8 [size, 96]: the frames, as it takes them.
    settings
        Per stage; of a last one only the temperature is read.
    counts
        Per gate i32 [1]: how many rows it sends on.
    label, confidence, stage
        i32, f32, i8 [size].
    weight
        f32 [1], of the logits that a last stage adds to its own.
    padded
        Rounds are filled to the largest bucket, so that they may run without knowing the count.
    """

    size: int
    valid: DeviceArray
    tables: tuple[DeviceArray, ...]
    settings: tuple[Settings, ...]
    counts: tuple[DeviceArray, ...]
    label: DeviceArray
    confidence: DeviceArray
    stage: DeviceArray
    weight: DeviceArray
    padded: bool


def plan_stage(number: int, spec: Stage, engine: Engine, score: Score, *, batch: int) -> StagePlan:
    """Return a stage's plan for batches of up to ``batch`` frames.

    Raises
    ------
    BundleError
        When the first stage has no bucket that holds a batch.
    """
    sizes = tuple(engine.buckets)
    enough = next((index for index, size in enumerate(sizes) if size >= batch), len(sizes) - 1)
    buckets = sizes[: enough + 1]
    if number == 0 and buckets[-1] < batch:
        raise BundleError(
            f"plan {engine.name}: expected a batch of {batch}, its largest is {buckets[-1]}. "
            f"Load the cascade with batch={buckets[-1]}, or build for more: --max-batch {batch}"
        )
    rounds = ops.rounds(batch, buckets)
    return StagePlan(
        number, spec, engine, score, network_input(spec.preprocessing), buckets, rounds
    )
