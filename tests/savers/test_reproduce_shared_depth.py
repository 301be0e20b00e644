"""The experiment on shared depth: it runs from end to end, and its bars read the right figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

pytestmark = pytest.mark.slow


def planted(accuracies):
    """Return right answers of 2 seeds over 200 images, in the given shares, the first ones."""
    first = np.arange(200) < 200 * np.asarray(list(accuracies.values()))[:, None]
    return dict(zip(accuracies, np.stack([first, first], axis=1), strict=True))


@pytest.fixture
def accuracies():
    from savers.depth_design import TRAININGS
    from savers.reproduce_shared_depth import STEPS, Asked

    asked = [
        Asked(training, scaled, steps)
        for training in TRAININGS
        for scaled in (True, False)
        for steps in STEPS
    ]
    return dict.fromkeys(asked, 0.9)


def test_bars_compare_what_they_say(accuracies):
    from savers.reproduce_shared_depth import Asked, verdicts

    found = {
        Asked("step-randomised", True, 4): 0.87,
        Asked("step-randomised", False, 4): 0.80,
        Asked("plain", True, 4): 0.70,
        Asked("small-step", True, 4): 0.85,
        Asked("small-step", False, 4): 0.86,
    }
    values = [verdict.estimate.value for verdict in verdicts(planted(accuracies | found))]
    np.testing.assert_allclose(values, [-3, 15, -1, 7], atol=1e-9)


def test_bars_are_those_that_were_fixed(accuracies):
    from savers.reproduce_shared_depth import verdicts

    bars = [verdict.bar.text() for verdict in verdicts(planted(accuracies))]
    assert bars == [">= -1 points", ">= 3 points", ">= 0 points", ">= 0 points"]


def test_the_experiment_runs_from_end_to_end():
    from savers.depth_design import TRAININGS
    from savers.reproduce import main
    from savers.reproduce_shared_depth import STEPS

    done = CliRunner().invoke(main, ["shared-depth", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert len(found["verdicts"]) == 4
    accuracies, orders = found["figures"]
    rows = {row["training"]: row for row in accuracies["rows"]}
    assert {*rows} >= {*TRAININGS, "dedicated", "small-step, unscaled", "kMACs"}
    # With all its steps, a network is the same scaled and unscaled, and the plain one dedicated.
    most = f"N={STEPS[0]}"
    assert rows["small-step"][most] == rows["small-step, unscaled"][most]
    assert rows["plain"][most] == rows["dedicated"][most]
    (small,) = (row for row in orders["rows"] if row["training"] == "small-step")
    assert all(1.6 <= small[ends] <= 2.4 for ends in ("N=6 to 12", "N=12 to 24"))
