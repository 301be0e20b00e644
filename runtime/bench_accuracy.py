"""The part of the bench that asks how right the answers are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.cascade import Cascade
from runtime.images import Images


@dataclass
class Accuracy:
    """Answers of the cascade and of each stage alone, for the images seen so far.

    Attributes
    ----------
    label, stage
        Of the cascade: i32 [n] and i8 [n].
    logits
        f32 [n, K] of each stage that can run on its own, by name.
    truth
        i32 [n], or None where there are no labels.
    """

    label: npt.NDArray[np.int32]
    stage: npt.NDArray[np.int8]
    logits: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    truth: npt.NDArray[np.int32] | None = None

    @classmethod
    def empty(cls, cascade: Cascade) -> Accuracy:
        """Return an account of no image yet."""
        names = [stage.name for stage in cascade.bundle.spec.stages if stage.reads_frames]
        classes = len(cascade.bundle.spec.labels)
        logits = {name: np.empty((0, classes), np.float32) for name in names}
        return cls(np.empty(0, np.int32), np.empty(0, np.int8), logits)

    def alone(self, name: str) -> npt.NDArray[np.int64]:
        """Return the labels i64 [n] that one stage gives on its own."""
        label: npt.NDArray[np.int64] = self.logits[name].argmax(1)
        return label

    def share_right(self, label: npt.NDArray[np.integer[Any]]) -> float | None:
        """Return the accuracy of labels [n], None where the truth is not known."""
        if self.truth is None or not len(label):
            return None
        return float((label == self.truth).mean())


def measure_accuracy(
    cascade: Cascade,
    images: Images,
    account: Accuracy,
    *,
    force: npt.NDArray[np.uint8] | None = None,
) -> Iterator[int]:
    """Classify all images by the cascade and by each stage alone, filling ``account``.

    Yields the number of images done, so that a caller can show progress and stop early with what
    there is.
    """
    frames = images.frames
    for start in range(0, len(frames), cascade.batch):
        part = slice(start, start + cascade.batch)
        results = cascade.run(frames[part], force=None if force is None else force[:, part])
        every = cascade.executor.stage_logits(frames[part])
        account.label = np.concatenate([account.label, results.label])
        account.stage = np.concatenate([account.stage, results.stage])
        for name, logits in zip(cascade.stage_names, every, strict=True):
            if name in account.logits:
                account.logits[name] = np.concatenate([account.logits[name], logits])
        if images.labels is not None:
            account.truth = images.labels[: len(account.label)]
        yield len(account.label)
