"""Answers of three models of rising quality and cost, ``a`` to ``c``, to the same samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibration.chains import Pool
from calibration.costs import MacCosts
from calibration.recorded import Claim
from calibration.screen import Screen

CLAIM = Claim(0.02, 0.0125, "wsr")
MACS = {"a": 1, "b": 10, "c": 100}


def pool(n: int = 997) -> Pool:
    rng = np.random.default_rng(11)
    labels = rng.integers(0, 4, n).astype(np.int32)
    truth = np.eye(4)[labels]
    logits = {
        name: (truth * 4 + rng.normal(size=(n, 4)) * noise).astype(np.float32)
        for name, noise in {"a": 2.5, "b": 1.8, "c": 1.2}.items()
    }
    return Pool(logits, labels, "c")


def screen(**changes: Any) -> Screen:
    return Screen(pool(), MacCosts(MACS), CLAIM, 4000, **changes)
