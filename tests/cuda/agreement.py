"""Whether two devices give the same answers, but for what rounding may decide either way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from runtime.cascade import Results

SAMPLES_EITHER_WAY = 0.001
"""Largest share of samples that may be decided otherwise, as docs/design.md says."""


class Difference(NamedTuple):
    """Samples that are answered otherwise: near a threshold, and not."""

    near: int
    wrong: list[int]


def difference(found: Results, expected: Results, thresholds, *, band: float = 1e-5) -> Difference:
    """Compare answers.

    Where one device kept a sample and the other sent it on, the confidence of the one that kept it
    must lie within ``band`` (relative) of the gate's threshold; engines that round differently give
    logits that differ, so the band is wider than the gates' own where they do.
    """
    same = (found.label == expected.label) & (found.stage == expected.stage)
    same &= np.isclose(found.confidence, expected.confidence, rtol=1e-4, atol=1e-5)
    near, wrong = 0, []
    for row in np.flatnonzero(~same):
        kept = min((found, expected), key=lambda results: results.stage[row])
        stage = int(kept.stage[row])
        moved = found.stage[row] != expected.stage[row]
        if moved and abs(kept.confidence[row] / thresholds[stage] - 1) <= band:
            near += 1
        else:
            wrong.append(int(row))
    return Difference(near, wrong)


def check_equal(found: Results, expected: Results, thresholds, *, band: float = 1e-5) -> None:
    """Fail where answers differ by more than rounding."""
    near, wrong = difference(found, expected, thresholds, band=band)
    assert not wrong, f"rows {wrong[:10]} of {len(expected)} are answered otherwise"
    assert near <= SAMPLES_EITHER_WAY * len(expected) + 1, f"{near} rows near a threshold"
