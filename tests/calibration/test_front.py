"""The static front: steps of rising cost and accuracy."""

from __future__ import annotations

from calibration.front import Single, cheapest_reaching, static_front

MODELS = [
    Single("costly", 9.0, 0.95),
    Single("beaten", 5.0, 0.90),
    Single("small", 1.0, 0.80),
    Single("good", 4.0, 0.93),
    Single("as good", 6.0, 0.93),
    Single("same cost, worse", 1.0, 0.70),
]


def test_only_models_that_none_beats_are_steps() -> None:
    assert [single.name for single in static_front(MODELS)] == ["small", "good", "costly"]
    assert static_front([]) == []


def test_an_accuracy_between_two_steps_costs_the_upper_one() -> None:
    front = static_front(MODELS)
    found = [cheapest_reaching(front, accuracy) for accuracy in (0.5, 0.8, 0.81, 0.93, 0.96)]
    assert [single and single.name for single in found] == ["small", "small", "good", "good", None]
