"""Names in a plot of accuracy against cost stand where they hide nothing."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from calibration.front import Single
from calibration.report_figures import Point, Trade
from calibration.report_labels import name_front

FRONT = [Single("tiny", 1e6, 0.80), Single("large", 1e8, 0.90)]


def shifts(*hidden: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Return the shift in points of each name, if something is drawn at (cost, accuracy)."""
    axes = Figure(figsize=(5.2, 3.7)).add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(0.1, 1000)
    axes.set_ylim(70, 100)
    curve = np.array([(1e9, 0.99), *hidden])
    name_front(axes, Trade("macs", FRONT, FRONT, curve, {}, Point(1e7, 0.9), []), 1e-6, color="k")
    return {text.get_text(): text.get_position() for text in axes.texts}


def test_a_name_stands_below_its_model_where_that_is_free() -> None:
    assert shifts() == {"tiny": (4, -11), "large": (4, -11)}


def test_a_name_makes_way_for_the_curve() -> None:
    below_right, above_left = (1.2e6, 0.79), (0.8e6, 0.813)
    assert shifts(below_right)["tiny"] == (-5, 4)
    assert shifts(below_right, above_left)["tiny"] == (4, 4)


def test_where_there_is_no_room_there_is_no_name() -> None:
    around = [(cost, accuracy) for cost in (0.8e6, 1.2e6) for accuracy in (0.79, 0.813)]
    assert set(shifts(*around)) == {"large"}
