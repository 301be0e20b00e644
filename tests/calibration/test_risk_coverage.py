"""Risk against coverage, by hand."""

from __future__ import annotations

import numpy as np

from calibration.risk_coverage import ordering


def test_risk_is_the_share_of_errors_among_the_surest() -> None:
    score = np.array([0.2, 0.9, 0.5, 0.7])
    right = np.array([False, True, True, False])
    curve = ordering(score, right)
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 2 / 4])
    np.testing.assert_allclose(curve.aurc, (1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_samples_of_equal_score_share_their_error_whatever_their_order() -> None:
    score = np.array([0.5, 0.5, 0.5, 0.9, 0.1])
    right = np.array([True, False, True, True, False])
    curve = ordering(score, right)
    np.testing.assert_allclose(curve.risk, [0, (1 / 3) / 2, (2 / 3) / 3, 1 / 4, 2 / 5])
    shuffled = np.array([2, 4, 1, 0, 3])
    np.testing.assert_allclose(ordering(score[shuffled], right[shuffled]).risk, curve.risk)
