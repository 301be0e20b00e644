"""Thresholds by predicted class: how much more a gate asks of a class that is often mistaken.

A gate that keeps samples by ``1 - confidence`` does as well as it can if their chance of harm is in
proportion to that, with the same factor for every class. Where the factor of a class is r times
that of all classes, its threshold ``sigmoid(u + ln r)`` lets as much harm through as the others do,
since ``1 - sigmoid(u)`` is ``exp(-u)`` near 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STRENGTHS = (0.5, 1.0)
"""Parts of the offsets that are tried, beside none."""
LIKE_ALL = 10.0
"""Harmed samples of the mean of all classes that are mixed into each, so that few tell little."""
LARGEST = 2.0
"""Of an offset, in logits of the threshold."""


def class_offsets(
    confidence: Floats, label: npt.NDArray[np.integer], harmed: npt.NDArray[np.bool_], classes: int
) -> Floats:
    """Return offsets f64 [classes] by predicted class; zeros where there is no harm at all.

    Parameters
    ----------
    confidence, label
        Of a saver, [n].
    harmed
        Bool [n], where the saver is wrong and the large model right.
    """
    harm = np.bincount(label, harmed, classes)
    doubt = np.bincount(label, 1 - confidence, classes)
    if harm.sum() == 0 or doubt.sum() == 0:
        return np.zeros(classes)
    expected = doubt * harm.sum() / doubt.sum()
    factor = (harm + LIKE_ALL) / (expected + LIKE_ALL)
    offsets: Floats = np.clip(np.log(factor), -LARGEST, LARGEST).round(4)
    return offsets
