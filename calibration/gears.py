"""Gears: earlier points of a certified path, to which a cascade may shift under load or doubt.

The walk stops at the first point that fails, so with probability at least 1 - delta every point it
passed keeps epsilon, not only the last: each may be taken, whatever chooses among them. Here that
is the share of samples that goes on, on the selection split; without its records, the place on the
path.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.schema import Certificate, Threshold
from runtime.simulation import Simulation

GEARS = 4

Gears = tuple[tuple[Threshold, ...], ...]


def gears(
    certificate: Certificate, selection: Simulation | None = None, *, most: int = GEARS
) -> Gears:
    """Return up to ``most`` points between "escalate all" and the certified one, cheapest last.

    They divide what lies between the two evenly: the samples sent on, summed over the gates, where
    there are selection records; else the points of the path.

    Parameters
    ----------
    selection
        The same cascade on the selection split.

    Raises
    ------
    ValueError
        When ``selection`` has other gates or classes than the path.
    """
    vectors = certificate.path.vectors()[: certificate.passed + 1]
    place: npt.NDArray[np.float64] = np.arange(len(vectors), dtype=np.float64)
    if selection is not None:
        place = np.array([-sum(selection.escalation_rates(point)) for point in vectors])
    wanted = np.linspace(place[0], place[-1], most + 2)[1:-1]
    chosen = sorted({int(np.abs(place - value).argmin()) for value in wanted})
    found: list[npt.NDArray[np.float32]] = []
    for point in vectors[chosen]:
        repeats = any(np.array_equal(point, other) for other in (vectors[-1], *found))
        if not repeats and (point < 1).any():
            found.append(point)
    return tuple(tuple(point.tolist()) for point in found)
