"""TinySaver's own score of a saver (arXiv 2403.17726), as its released code computes it.

The scan goes down over thresholds ``t = 1, 0.999, ..., 0.001``. It stops at the first t at which
the saver, on the samples whose confidence exceeds t, is right less often than the large model on
the same samples; if there is none, at the last t. With r the share of those samples, and s and B
the multiply-accumulates of both models::

    delta C = s / B - r        the saver is used only if this is negative; the least is the best

It reads no device, and one unlucky sample at a high threshold stops it: `calibration.saver_search`
is what we choose by, and this is printed beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import reference

Floats = npt.NDArray[np.floating]
Counts = npt.NDArray[np.int64]


class PaperScore(NamedTuple):
    """What the paper's search says of one saver.

    Attributes
    ----------
    threshold, exit_ratio
        Where the scan stopped, and the share of samples whose confidence exceeds it.
    delta_c
        ``s / B - exit_ratio``.
    """

    saver: str
    threshold: float
    exit_ratio: float
    delta_c: float

    @property
    def enabled(self) -> bool:
        """Whether the paper would use the saver."""
        return self.delta_c < 0


def thresholds() -> npt.NDArray[np.float64]:
    """Return the thresholds of the scan, f64 [1000], falling."""
    return np.arange(1, 0, -0.001)


def matched_performance(
    confidence: Floats, saver_right: npt.NDArray[np.bool_], large_right: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the threshold at which the scan stops, and the share of samples above it.

    Parameters
    ----------
    confidence
        f32 or f64 [n], the saver's largest softmax probability.
    saver_right, large_right
        Bool [n].
    """
    scan = thresholds()
    above, lead = kept_above(scan, confidence, saver_right, large_right)
    violated = np.flatnonzero(lead < 0)
    step = int(violated[0]) if len(violated) else len(scan) - 1
    return float(scan[step]), float(above[step] / len(confidence))


def kept_above(
    scan: npt.NDArray[np.float64],
    confidence: Floats,
    saver_right: npt.NDArray[np.bool_],
    large_right: npt.NDArray[np.bool_],
) -> tuple[Counts, Counts]:
    """Return how many samples exceed each threshold, and by how many the saver leads on them.

    Parameters
    ----------
    scan
        f64 [t], falling. Both results are i64 [t].
    """
    # The first step of the scan at which a sample is above the threshold; their number if none.
    first = np.searchsorted(-scan, -confidence.astype(np.float64), side="right")
    gain = saver_right.astype(np.int64) - large_right
    above = np.cumsum(np.bincount(first, minlength=len(scan) + 1))[: len(scan)]
    lead = np.cumsum(np.bincount(first, gain, len(scan) + 1))[: len(scan)]
    return above, lead.astype(np.int64)


def paper_score(
    saver: str,
    logits: Floats,
    large_logits: Floats,
    labels: npt.NDArray[np.integer],
    *,
    cost_ratio: float,
) -> PaperScore:
    """Return the paper's score of one saver.

    Parameters
    ----------
    logits, large_logits
        f32 [n, K].
    cost_ratio
        ``s / B`` in multiply-accumulates.
    """
    facts = reference.softmax(logits)
    # Records of the paper keep confidences as float32.
    confidence = facts.confidence.astype(np.float32)
    large_right = reference.softmax(large_logits).label == labels
    threshold, ratio = matched_performance(confidence, facts.label == labels, large_right)
    return PaperScore(saver, threshold, ratio, cost_ratio - ratio)
