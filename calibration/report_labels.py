"""Names of models in a plot of accuracy against cost, where they hide nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from calibration.report_figures import Trade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LETTER, LINE = 0.016, 0.06
"""Of a model's name, as shares of the axes; a little more than they measure."""


def name_front(axes: Axes, trade: Trade, scale: float, *, color: str) -> None:
    """Name the models of the static front beside them; where there is no room, not at all.

    Parameters
    ----------
    scale
        Of costs to what the axes show.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    drawn = to_axes.transform(_drawn(trade) * (scale, 100))
    taken: list[_Box] = []
    # The most accurate first: crowded places are among the cheap ones.
    for single in reversed(trade.front):
        place = single.cost * scale, 100 * single.accuracy
        x, y = to_axes.transform(place)
        for box, shift, side in _label_places(x, y, len(single.name)):
            if not any(box.meets(other) for other in taken) and not box.holds(drawn):
                axes.annotate(
                    single.name, place, xytext=shift, textcoords="offset points",
                    color=color, fontsize=8, ha=side,
                )  # fmt: skip
                taken.append(box)
                break


def _drawn(trade: Trade) -> Any:
    """Return places f64 [n, 2], cost and accuracy, on which a name would hide something."""
    singles = np.array([(single.cost, single.accuracy) for single in trade.singles])
    steps = [
        np.stack([np.geomspace(a.cost, b.cost, 20), np.full(20, a.accuracy)], axis=1)
        for a, b in pairwise(trade.front)
    ]
    return np.concatenate([trade.cascade, singles, *steps])


class _Box(NamedTuple):
    """Of a name, in shares of the axes."""

    left: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        apart = self.right < other.left or other.right < self.left
        return not apart and abs(self.bottom - other.bottom) <= LINE

    def holds(self, points: Any) -> bool:
        x, y = points.T
        # Its model stands at a corner, and the step from there along an edge.
        low, high = self.bottom + LINE / 10, self.bottom + 0.9 * LINE
        inside = (x > self.left) & (x < self.right) & (y > low) & (y < high)
        return bool(inside.any())


def _label_places(
    x: float, y: float, letters: int
) -> Iterator[tuple[_Box, tuple[int, int], Literal["left", "right"]]]:
    """Yield where a name may stand by its model at (x, y), with its shift in points."""
    width = LETTER * letters
    below, above = y - LINE, y + LINE / 4
    yield _Box(x, x + width, below), (4, -11), "left"
    yield _Box(x - width, x, above), (-5, 4), "right"
    yield _Box(x, x + width, above), (4, 4), "left"
    yield _Box(x - width, x, below), (-5, -11), "right"
