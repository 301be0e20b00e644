"""How often an earlier stage answers otherwise than the last one would have, from records.

This is what a drift guard compares with. No labels are needed, and no accuracy follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calibration.bounds import clopper_pearson_upper
from calibration.recorded import Recorded
from runtime.certification import escalates_all
from runtime.gears import in_order
from runtime.schema import Disagreement, Setting, Threshold
from runtime.simulation import Simulation

DISAGREEMENT_DELTA = 0.05
"""Chance that a bound is wrong, of all points of a path together."""


def unlike(simulation: Simulation, thresholds: Sequence[Threshold]) -> npt.NDArray[np.bool_]:
    """Return which samples [n] an earlier stage answers, and otherwise than the last one would."""
    last = simulation.answers((1.0,) * simulation.gates)
    found: npt.NDArray[np.bool_] = simulation.answers(thresholds).label != last.label
    return found


def disagreements(
    recorded: Recorded, setting: Setting, *, delta: float = DISAGREEMENT_DELTA
) -> tuple[Disagreement, ...]:
    """Return the disagreement at the thresholds of a setting and at each gear, cheapest first.

    The same samples may have chosen a point of the path, so each bound is that of Clopper and
    Pearson at delta over the number of points: then all hold at once, chosen or not.

    Parameters
    ----------
    recorded
        Records of the setting's forms: of the certifying samples, or of the selection split.

    Raises
    ------
    CalibrationError
        When records and bundle do not fit.
    """
    simulation, data = recorded.simulation(), recorded.records[0].meta.data
    gears = [gear for gear in in_order(setting) if not escalates_all(gear)]
    points = len(gears) if setting.path is None else len(setting.path.vectors())
    counts = [int(unlike(simulation, gear).sum()) for gear in gears]
    return tuple(
        Disagreement(
            thresholds=gear,
            data=data,
            count=count,
            n=simulation.n,
            upper_bound=clopper_pearson_upper(count, simulation.n, delta / points),
            delta=delta,
        )
        for gear, count in zip(gears, counts, strict=True)
    )
