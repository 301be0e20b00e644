"""Populations whose true loss is known at every point of a path, and sets drawn from them.

A sample has a level, which says from which point on a gate keeps it, and an outcome: the answer it
then gets harms, helps or changes nothing. So the true drop at each point is a plain sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.schema import ThresholdPath

EPSILON = Fraction(2, 100)
SAMPLES = 1500
WEIGHT = 0.5
"""Of the saver's logits, where they are added to the large model's."""

Array = npt.NDArray[Any]


class Sample(NamedTuple):
    """Levels, the drop below the level and at or above it, and logits that give rise to them."""

    level: Array
    drop: Array
    always: Array
    saver: Array
    large: Array
    labels: Array | None

    def drops_at(self, levels: int) -> Array:
        """Return the drop of each sample where a gate keeps that many levels."""
        return np.where(self.level < levels, self.drop, self.always).astype(np.int8)


@dataclass(frozen=True)
class Population:
    """Per level in thousandths: its share of all samples, and of those the harmed and the helped.

    What is left belongs to a last level, which no gate keeps. Of these, a combination with the
    saver's logits harms and helps the samples of ``flipped``, in thousandths of all.
    """

    share: tuple[int, ...]
    harm: tuple[int, ...]
    help: tuple[int, ...]
    flipped: tuple[int, int] = (0, 0)

    @property
    def grid(self) -> list[float]:
        """1, then one threshold between each two levels of confidence."""
        return [1.0, *(float(self.confidence(level)) - 0.02 for level in range(len(self.share)))]

    @property
    def path(self) -> ThresholdPath:
        """The grid as a path of one gate."""
        return ThresholdPath(explicit=tuple((t,) for t in self.grid))

    def confidence(self, level: Any) -> Array:
        """Return the saver's confidence at levels."""
        return 0.97 - 0.05 * np.asarray(level)

    def levels_kept(self, point: int) -> int:
        """Return how many levels a gate keeps at a point of the grid."""
        return point

    def true_drop(self, point: int) -> Fraction:
        """Return the exact drop at a point."""
        return self._sum(point, sign=-1)

    def true_disagreement(self, point: int) -> Fraction:
        """Return the exact share of other answers than the large model's at a point."""
        return self._sum(point, sign=1)

    def draw(self, seed: int) -> Sample:
        """Draw one set of samples."""
        rng = np.random.default_rng(seed)
        levels = len(self.share)
        kinds = [*self.share, 1000 - sum(self.share) - sum(self.flipped), *self.flipped]
        kind = rng.choice(len(kinds), SAMPLES, p=np.array(kinds) / 1000)
        harm, helped = (np.array([*rates, 0, 0, 0]) / 1000 for rates in (self.harm, self.help))
        place = rng.random(SAMPLES)
        drop = (place < harm[kind]).astype(np.int8) - (place >= 1 - helped[kind])
        always = (kind == levels + 1).astype(np.int8) - (kind == levels + 2)
        return self._with_logits(np.minimum(kind, levels), drop.astype(np.int8), always)

    def _sum(self, point: int, *, sign: int) -> Fraction:
        kept = self.levels_kept(point)
        levels = zip(self.share[:kept], self.harm[:kept], self.help[:kept], strict=True)
        changed = sum((Fraction(s * (a + sign * b), 10**6) for s, a, b in levels), Fraction(0))
        return changed + Fraction(self.flipped[0] + sign * self.flipped[1], 1000)

    def _with_logits(self, level: Array, drop: Array, always: Array) -> Sample:
        """The saver answers 0, the large model 1 where they differ; the truth says who is right.

        A large model that is not sure of its 1 answers 0 once the saver's logits are added.
        """
        saver = self._saver(level)
        large = np.zeros_like(saver)
        changed = (drop + always != 0).astype(int)
        large[np.arange(len(level)), changed] = np.where(always != 0, 0.1, 3.0)
        return Sample(level, drop, always, saver, large, (drop + always == 1).astype(np.int32))

    def _saver(self, level: Array) -> Array:
        sure = self.confidence(level)[:, None]
        return np.log(np.where([[True, False, False]], sure, (1 - sure) / 2)).astype(np.float32)


@dataclass(frozen=True)
class Tied(Population):
    """Nearly all samples have the confidence 1/2 to the last bit, which is a threshold twice."""

    @property
    def grid(self) -> list[float]:
        """Points that are repeated, too."""
        return [1.0, 0.5, 0.5, 0.4, 0.4]

    def levels_kept(self, point: int) -> int:
        """Return 0 at the tie itself, where the gate is strict."""
        return int(point > 2)

    def _saver(self, level: Array) -> Array:
        tied = np.array([0.0, -np.inf, 0.0], np.float32)
        return np.where((level == 0)[:, None], tied, np.float32(0))


@dataclass(frozen=True)
class ByClass:
    """A population whose saver answers 0 or 1, with thresholds that fall sooner for class 1.

    Per class and level, in thousandths: share, harm and help as of `Population`.
    """

    share: tuple[tuple[int, ...], ...]
    harm: tuple[tuple[int, ...], ...]
    help: tuple[tuple[int, ...], ...]

    path = ThresholdPath(start=3.0, stop=-0.5, points=8, class_offsets=((0.0, -0.8, 0.0),))
    confidence = np.array([0.94, 0.86, 0.75, 0.6])

    def kept(self, point: int) -> Array:
        """Return which level of which class a gate keeps, bool [classes, levels]."""
        return self.confidence > self.path.vectors()[point, 0, :2, None]

    def true_drop(self, point: int) -> Fraction:
        """Return the exact drop at a point."""
        net = np.array(self.share) * (np.array(self.harm) - np.array(self.help))
        return Fraction(int(net[self.kept(point)].sum()), 10**6)

    def draw(self, seed: int) -> Sample:
        """Draw one set of samples; the last kind is a class 0 that no gate is sure of."""
        rng = np.random.default_rng(seed)
        shares = np.array(self.share).ravel()
        kinds = np.append(shares, 1000 - shares.sum()) / 1000
        kind = rng.choice(len(kinds), SAMPLES, p=kinds)
        harm, helped = (np.append(np.ravel(r), 0) / 1000 for r in (self.harm, self.help))
        place = rng.random(SAMPLES)
        drop = (place < harm[kind]).astype(np.int8) - (place >= 1 - helped[kind])
        return self._with_logits(kind, drop.astype(np.int8))

    def _with_logits(self, kind: Array, drop: Array) -> Sample:
        """The large model answers 2 where it differs from the saver."""
        levels = len(self.confidence)
        rows = np.arange(len(kind))
        answer = np.where(kind < 2 * levels, kind // levels, 0)
        sure = np.where(kind < 2 * levels, self.confidence[kind % levels], 0.36)
        saver = np.repeat(np.log((1 - sure) / 2)[:, None], 3, 1).astype(np.float32)
        saver[rows, answer] = np.log(sure)
        large = np.zeros_like(saver)
        large[rows, np.where(drop != 0, 2, answer)] = 3
        labels = np.where(drop == 1, 2, answer).astype(np.int32)
        return Sample(kind, drop, np.zeros_like(drop), saver, large, labels)


POPULATIONS = {
    # The true drop is just over epsilon at the first step and stays there.
    "just_over": Population(
        share=(50, 50, 50, 50, 50, 50), harm=(401, 0, 0, 0, 0, 0), help=(0, 0, 0, 0, 0, 0)
    ),
    # The same with help, so that the order of samples and the bound of the help rate matter.
    "just_over_with_help": Population(share=(500,), harm=(241,), help=(200,)),
    # One step is safe, the next far from it.
    "cliff": Population(share=(300, 400), harm=(10, 250), help=(0, 0)),
    # Just over epsilon all along; each step adds harm and as much help: each looks at new noise.
    "new_noise": Population(
        share=(60, 30, 60, 120, 240, 480),
        harm=(340, 500, 500, 500, 500, 500),
        help=(0, 500, 500, 500, 500, 500),
    ),
    # Just over epsilon, well below it, far above it, and below it again.
    "non_monotone": Population(
        share=(100, 200, 200, 200), harm=(201, 0, 130, 0), help=(0, 80, 0, 100)
    ),
    "ties": Tied(share=(950,), harm=(22,), help=(0,)),
}
COMBINED = {
    # A combination that loses just over epsilon before any gate keeps a sample.
    "at_the_first_point": Population(share=(300,), harm=(0,), help=(100,), flipped=(41, 20)),
    # One that loses less, and gates that then lose the rest.
    "at_the_second_point": Population(
        share=(500, 200), harm=(31, 0), help=(0, 50), flipped=(15, 10)
    ),
}
BY_CLASS = ByClass(
    share=((100, 100, 100, 50), (100, 100, 100, 50)),
    harm=((0, 0, 100, 0), (0, 201, 0, 200)),
    help=((0, 100, 0, 0), (0, 0, 0, 0)),
)
