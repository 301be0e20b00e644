"""Gears: the threshold vectors under one certificate, the one in force, and its choice by load.

Gear 0 is the certified point, the cheapest. Each further gear is an earlier point of the certified
path: it sends more samples on, and loses no more than the same epsilon. The highest sends all of
them to the last stage, with which every such path begins. A gear may depend on load,
never on the content of the images that it answers: an average over gears that were chosen without
seeing a sample keeps the promise that each of them keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle
from runtime.certification import Certification, certification, escalates_all
from runtime.errors import BundleError, InputError
from runtime.schema import CascadeSpec, Form, Setting, Threshold

Vector = tuple[Threshold, ...]


class InForce(NamedTuple):
    """What a batch is answered by.

    Attributes
    ----------
    thresholds
        One per gate, plain numbers.
    values
        The same as devices take them: float, or f32 [K] by predicted class.
    gear
        Which gear they are; None for thresholds of the caller.
    """

    thresholds: Vector
    values: tuple[float | npt.NDArray[np.float32], ...]
    gear: int | None
    certification: Certification


class Gearbox:
    """The thresholds in force of one cascade. Not for several threads at once.

    Parameters
    ----------
    forms
        That run, one per stage.
    engine
        Name of the engine that runs them.

    Raises
    ------
    BundleError
        When the bundle has no thresholds for these forms, or gears without an order.

    Attributes
    ----------
    gears
        Threshold vectors, the cheapest first.
    lowest
        The lowest gear that no drift alarm has ruled out.
    now
        What is in force.
    """

    def __init__(self, bundle: Bundle, forms: tuple[Form, ...], *, engine: str) -> None:
        self._spec, self._forms, self._engine = bundle.spec, forms, engine
        self._drifted = False
        try:
            self.gears = in_order(_setting(bundle.spec, forms))
        except BundleError as error:
            raise BundleError(f"{bundle.folder}: {error}") from None
        self.lowest = 0
        self.now = self._in_force(self.gears[0])

    def take(self, thresholds: Sequence[Threshold]) -> None:
        """Take any thresholds.

        Raises
        ------
        InputError
            When they do not fit the cascade; the former ones stay.
        """
        self.now = self._in_force(thresholds)

    def shift(self, gear: int) -> int:
        """Take a gear, or the lowest that is not ruled out; return which.

        Raises
        ------
        InputError
            When there is no such gear.
        """
        if not 0 <= gear < len(self.gears):
            raise InputError(
                f"gear: expected 0 to {len(self.gears) - 1}, got {gear}. Gear 0 is the certified "
                "point; further gears are written with a certificate: "
                "python -m calibration.threshold --help"
            )
        self.now = self._in_force(self.gears[max(gear, self.lowest)])
        return max(gear, self.lowest)

    def rule_out(self, gear: int) -> int:
        """Rule out a gear and all below it, after a drift alarm; return the lowest that is left.

        The highest gear is never ruled out. From now on nothing is called certified.
        """
        self._drifted = True
        self.lowest = max(self.lowest, min(gear + 1, len(self.gears) - 1))
        if self.now.gear is None:
            self.take(self.now.thresholds)
        else:
            self.shift(self.now.gear)
        return self.lowest

    def _in_force(self, thresholds: Sequence[Threshold]) -> InForce:
        arrays = _checked(thresholds, self._spec)
        plain = tuple(np.asarray(value).tolist() for value in thresholds)
        found = certification(
            self._spec,
            self._forms,
            engine=self._engine,
            thresholds=plain,
            drifted=self._drifted,
        )
        values = tuple(float(array) if array.ndim == 0 else array for array in arrays)
        gear = self.gears.index(plain) if plain in self.gears else None
        return InForce(plain, values, gear, found)


def in_order(setting: Setting) -> tuple[Vector, ...]:
    """Return the thresholds of a setting, its gears above them, and the one that sends all on.

    Raises
    ------
    BundleError
        When of two gears neither is above the other.
    """
    gears = sorted(setting.gears, key=lambda gear: sum(float(np.mean(t)) for t in gear))
    vectors = (setting.thresholds, *gears)
    if not escalates_all(vectors[-1]):
        vectors = (*vectors, (1.0,) * len(setting.thresholds))
    for lower, upper in pairwise(vectors):
        steps = [np.subtract(above, below) for below, above in zip(lower, upper, strict=True)]
        if any((step < 0).any() for step in steps) or not any(step.any() for step in steps):
            raise BundleError(
                f"gears: of {list(lower)} and {list(upper)} neither is above the "
                "other. Certify again: python -m calibration.threshold --help"
            )
    return vectors


class LoadGovernor:
    """Chooses gears by load: the certified one under load, a higher one where there is time.

    Asked once per batch, it goes to gear 0 at once when batches are waiting or the answers came
    with little of their time left, and one gear up after ``patience`` batches in a row that left
    much of it. Between the two the gear stays, so that it does not swing.

    Only waiting and time enter. Times depend on how many samples past batches sent on; a gear is
    therefore always chosen before the batch that it answers.

    Parameters
    ----------
    gears
        How many there are.
    little, much
        Shares of the time that a batch has.
    patience
        Batches with much time left before the next gear is tried.

    Raises
    ------
    InputError
        When there is no gear, or the numbers do not fit together.

    Examples
    --------
    ::

        governor = LoadGovernor(len(cascade.gears))
        for frames in camera:
            begin = perf_counter()
            results = cascade.run(frames)
            slack = 1 - (perf_counter() - begin) / deadline
            cascade.shift(governor.decide(slack=slack, waiting=camera.waiting()))
    """

    def __init__(
        self, gears: int, *, little: float = 0.1, much: float = 0.5, patience: int = 16
    ) -> None:
        if gears < 1 or patience < 1 or not 0 <= little < much <= 1:
            raise InputError(
                "LoadGovernor: expected gears and patience of at least 1 and "
                f"0 <= little < much <= 1, got {gears}, {patience}, {little} and {much}."
            )
        self._gears, self._little, self._much, self._patience = gears, little, much, patience
        self._calm = 0
        self.gear = 0

    def decide(self, *, slack: float, waiting: int = 0) -> int:
        """Return the gear for the next batch.

        Parameters
        ----------
        slack
            Share of its time that the last batch left: 1 if it took none, 0 or less if it was late.
        waiting
            Batches that have arrived and not begun.
        """
        if waiting > 0 or slack < self._little:
            self.gear, self._calm = 0, 0
        elif slack < self._much:
            self._calm = 0
        else:
            self._calm += 1
            if self._calm == self._patience:
                self.gear, self._calm = min(self.gear + 1, self._gears - 1), 0
        return self.gear


def _setting(spec: CascadeSpec, forms: tuple[Form, ...]) -> Setting:
    found = spec.settings.get("/".join(forms))
    if found is None:
        raise BundleError(
            f"cascade.json has no thresholds for {'/'.join(forms)}; "
            f"it has {', '.join(spec.settings) or 'none'}. "
            "Choose them: python -m calibration.search --help"
        )
    return found


def _checked(thresholds: Sequence[Threshold], spec: CascadeSpec) -> list[npt.NDArray[np.float32]]:
    gates, classes = len(spec.gates), len(spec.labels)
    if len(thresholds) != gates:
        raise InputError(f"thresholds: expected {gates}, one per gate, got {len(thresholds)}.")
    arrays = [np.asarray(value, np.float32) for value in thresholds]
    for array in arrays:
        if array.shape not in ((), (classes,)) or not ((array >= 0) & (array <= 1)).all():
            raise InputError(
                "thresholds: expected numbers in [0, 1], one or one per class "
                f"({classes}), got {array.tolist()}."
            )
    return arrays
