"""The part of ``cascade.json`` that says what was tested and what is promised of it.

See `runtime.schema`, which has all of it, and docs/certificates.md.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from runtime.fields import Form, Schema, Sha256, Threshold, UnitInterval


class Score(Schema):
    """How sure a stage is, from its logits (or from its own output ``score f32 [n]``), in [0, 1].

    ``max_softmax`` and ``entropy`` and ``margin`` use ``temperature``; ``p_norm`` uses ``p``.
    """

    name: Literal["max_softmax", "margin", "entropy", "p_norm", "learned"] = "max_softmax"
    temperature: float = Field(default=1.0, gt=0)
    p: float | None = Field(default=None, ge=1)
    output: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Score:
        if (self.name == "p_norm") != (self.p is not None):
            raise ValueError("p is given for the score p_norm, and only for it")
        if (self.name == "learned") != (self.output is not None):
            raise ValueError("output names the score tensor of a learned gate, and only of one")
        return self


class Combination(Schema):
    """The last stage answers from ``logits + weight * logits of stage``.

    Attributes
    ----------
    stage
        An earlier stage.
    """

    stage: str
    weight: float = Field(gt=0)


class ThresholdPath(Schema):
    """The sequence of threshold vectors that a certificate walked, from "escalate all" down.

    Point 0 is all ones. The ``points`` after it have ``t_i = sigmoid(u + offsets[i])`` with ``u``
    evenly spaced from ``start`` to ``stop``, both included, rounded to float32. A path of another
    kind is written out in ``explicit``.

    Attributes
    ----------
    class_offsets
        Per gate, K numbers that are added to ``u + offsets[i]`` by predicted class.
    """

    offsets: tuple[float, ...] = (0.0,)
    class_offsets: tuple[tuple[float, ...], ...] | None = None
    start: float = 9.0
    stop: float = -2.2
    points: int = Field(default=500, ge=1)
    explicit: tuple[tuple[UnitInterval, ...], ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> ThresholdPath:
        if self.class_offsets is None:
            return self
        if self.explicit is not None:
            raise ValueError("class_offsets: an explicit path has one threshold per gate")
        widths = [len(numbers) for numbers in self.class_offsets]
        if len(widths) != len(self.offsets) or len(set(widths)) != 1:
            raise ValueError(
                f"class_offsets: expected one number per class for each of {len(self.offsets)} "
                f"gate(s), got rows of {widths}"
            )
        return self

    def vectors(self) -> npt.NDArray[np.float32]:
        """Return every threshold vector, as devices compare them.

        An ``explicit`` path is taken as written. Any other has a point 0 of ones before its
        ``points``.

        Returns
        -------
        ndarray
            f32 [points, gates]; with ``class_offsets`` f32 [points, gates, K].

        Raises
        ------
        ValueError
            When the path is empty or ragged, or a threshold rises along it.
        """
        values = self._logistic() if self.explicit is None else _rectangle(self.explicit)
        rises = np.argwhere(np.diff(values, axis=0) > 0)
        if len(rises):
            point, gate = rises[0][:2]
            raise ValueError(f"path: threshold {gate} rises from point {point} to {point + 1}")
        return values

    def _logistic(self) -> npt.NDArray[np.float32]:
        u = np.linspace(self.start, self.stop, self.points)[:, None] + np.asarray(self.offsets)
        if self.class_offsets is not None:
            u = u[:, :, None] + np.asarray(self.class_offsets)
        # The clip only keeps exp from overflowing: float32 is 0 or 1 long before it.
        lower = 1 / (1 + np.exp(-np.clip(u, -700, 700)))
        return np.concatenate([np.ones((1, *lower.shape[1:])), lower]).astype(np.float32)


class CoveredStage(Schema):
    """What a certificate says of one stage: exactly which computation was certified."""

    name: str
    model_sha256: Sha256
    engine: str
    form: Form
    preprocessing_sha256: Sha256


class Coverage(Schema):
    """What a certificate was computed on.

    Attributes
    ----------
    data_sha256
        Of the images and labels that certified.
    provenance
        ``checked``: no sample had been used for training, selection or ranges.
        ``unchecked``: the user told us to go on without knowing.
    """

    data_sha256: Sha256
    stages: tuple[CoveredStage, ...]
    provenance: Literal["checked", "unchecked"]


class Saving(Schema):
    """How much less a cascade costs than the large model alone, at least.

    It holds with probability at least ``1 - delta`` over the certifying sample, apart from the
    certificate's own delta.

    Attributes
    ----------
    lower_bound
        Share of the large model's cost that is saved; negative where the bound saves nothing.
    """

    quantity: Literal["macs"] = "macs"
    lower_bound: float = Field(le=1)
    delta: float = Field(gt=0, lt=1)
    method: Literal["binomial_martingale"] = "binomial_martingale"


class Disagreement(Schema):
    """How often an earlier stage answers otherwise than the last one would have, at one gear.

    It is what a drift guard compares with, see `runtime.drift`; no bound on what is lost.

    Attributes
    ----------
    thresholds
        The gear; the certified point is one as well.
    data
        Name of the split: that which certified, or else the selection split.
    count, n
        Samples answered so, of all.
    upper_bound
        Of the share. With probability at least ``1 - delta``, the bounds of all points of the path
        hold at once.
    """

    thresholds: tuple[Threshold, ...]
    data: str
    count: int = Field(ge=0)
    n: int = Field(ge=1)
    upper_bound: UnitInterval
    delta: float = Field(gt=0, lt=1)


class Certificate(Schema):
    """A statement that holds with probability at least ``1 - delta`` over the certifying sample.

    Attributes
    ----------
    quantity
        What is at most ``epsilon``: the drop in accuracy against the large model alone, or, where
        there were no labels, the share of answers that differ from the large model's.
    thresholds
        The last point of the path that passed.
    n, harm, help
        Samples; among them those where the large model alone is right and the cascade wrong (or,
        without labels, differs), and the reverse.
    order_seed
        Seed of the sample order, from the hash of the certified logits and labels.
    escalation_rates
        Share of all samples each gate sends on, on the certifying sample.
    combination
        How the last stage answered. The drop is always that against the large model alone.
    saving
        None in certificates of before there was a bound.
    """

    quantity: Literal["accuracy_drop", "disagreement"]
    epsilon: float = Field(gt=0, lt=1)
    delta: float = Field(gt=0, lt=1)
    method: Literal["wsr", "clopper_pearson", "harm_only"]
    n: int = Field(ge=1)
    harm: int = Field(ge=0)
    help: int = Field(ge=0)
    thresholds: tuple[Threshold, ...]
    scores: tuple[Score, ...]
    combination: Combination | None = None
    path: ThresholdPath
    passed: int = Field(ge=0)
    order_seed: int = Field(ge=0)
    escalation_rates: tuple[UnitInterval, ...]
    saving: Saving | None = None
    covers: Coverage | None = None

    @property
    def threshold(self) -> float:
        """The threshold of a two-stage cascade."""
        if len(self.thresholds) != 1:
            raise ValueError(f"this cascade has {len(self.thresholds)} thresholds, not one")
        (threshold,) = self.thresholds
        if isinstance(threshold, list):
            raise ValueError(f"this cascade has {len(threshold)} thresholds, one per class")
        return threshold


def _rectangle(points: tuple[tuple[float, ...], ...]) -> npt.NDArray[np.float32]:
    widths = {len(point) for point in points}
    if len(widths) != 1:
        raise ValueError(f"path: expected points of one length, got lengths {sorted(widths)}")
    return np.asarray(points, np.float32)
