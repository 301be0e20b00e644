"""The wall clock of a whole cascade beside that of one model, from frames to answers, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from time import perf_counter

import numpy as np
import numpy.typing as npt

from calibration.bootstrap import Interval, intervals
from calibration.report_material import Model
from calibration.standing import Standing
from runtime.cascade import Cascade
from runtime.preprocess import Preprocessor
from runtime.schema import FrameFormat
from runtime.session import HostModel

Frames = npt.NDArray[np.uint8]
Run = Callable[[Frames], object]

TURN = 256
"""Frames of a turn, which both classify."""
SIZES = (8, 32, 256)
"""Batches among which the model alone has its best."""
LEAST_TURNS = 20
RESAMPLINGS = 1000


def model_run(model: Model, frame_format: FrameFormat, *, threads: int) -> Run:
    """Return a function that classifies frames u8 [n, H, W, C] with one model on the CPU."""
    session = HostModel(model.file, threads=threads)
    preprocess = Preprocessor(model.stage.preprocessing, frame_format)
    tensors = [item.tensor for item in model.stage.inputs]

    def run(frames: Frames) -> object:
        inputs = preprocess(frames)
        return session.run(dict.fromkeys(tensors, inputs))[model.stage.logits].argmax(1)

    return run


def clocked(
    cascade: Cascade,
    name: str,
    alone: Run,
    frames: Frames,
    *,
    batch: int,
    seconds: float,
) -> Standing:
    """Return what the cascade takes beside one model, per frame by the wall clock.

    Parameters
    ----------
    name, alone
        The model, which runs at the best of `SIZES`.
    batch
        Frames that enter the cascade together.
    seconds
        To go on for, at least `LEAST_TURNS` turns. The interval is a bootstrap over the turns,
        which hold different frames.
    """
    size = _best_size(alone, frames[:TURN])
    runs = {"cascade": batched(cascade.run, batch), "alone": batched(alone, size)}
    spent = np.array(list(turns(runs, frames, seconds=seconds)))
    shares = spent[:, 0] / spent[:, 1]
    per_frame = np.median(spent, axis=0) / min(TURN, len(frames))
    return Standing(
        "wall clock",
        float(per_frame[0]),
        name,
        float(per_frame[1]),
        float(np.median(shares)),
        _interval(shares),
        {name: 1.0},
    )


def turns(
    runs: Mapping[str, Run], frames: Frames, *, seconds: float
) -> Iterator[tuple[float, ...]]:
    """Yield the seconds of each run for the same frames, turn by turn."""
    for run in runs.values():
        run(frames[:TURN])
    begin = perf_counter()
    starts = range(0, max(1, len(frames) - TURN + 1), TURN)
    for turn in count():
        if turn >= LEAST_TURNS and perf_counter() - begin >= seconds:
            return
        start = starts[turn % len(starts)]
        part = frames[start : start + TURN]
        yield tuple(_seconds(run, part) for run in runs.values())


def batched(run: Run, size: int) -> Run:
    """Return a run that is given its frames in batches."""

    def cut(frames: Frames) -> object:
        return [run(frames[start : start + size]) for start in range(0, len(frames), size)]

    return cut


def _best_size(alone: Run, frames: Frames) -> int:
    """Return the batch size at which a model is fastest, by the least of three turns."""
    taken = {}
    for size in SIZES:
        run = batched(alone, size)
        run(frames)
        taken[size] = min(_seconds(run, frames) for _ in range(3))
    return min(taken, key=lambda size: taken[size])


def _seconds(run: Run, frames: Frames) -> float:
    begin = perf_counter()
    run(frames)
    return perf_counter() - begin


def _interval(shares: npt.NDArray[np.float64]) -> Interval:
    drawn = np.random.default_rng(0).choice(shares, (RESAMPLINGS, len(shares)))
    return intervals(np.median(drawn, axis=1)[:, None])[0]
