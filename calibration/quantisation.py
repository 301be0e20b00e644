"""What can be chosen of the forms that a model is made into; free of what makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

MadeForm = Literal["int8_host", "int8_trt", "fp16"]
MADE_FORMS: tuple[MadeForm, ...] = get_args(MadeForm)

Method = Literal["min_max", "entropy", "percentile", "mse"]
"""Of finding the range that INT8 spans; see `calibration.ranges`."""
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99


@dataclass(frozen=True)
class Recipe:
    """How forms are made.

    Attributes
    ----------
    percentile
        For the method of that name.
    weight_bits
        Of ``int8_host``; 7 where a CPU's sums of 8-bit products saturate.
    max_drop
        Accuracy that a form may lose against FP32, as a fraction.
    batch
        Images per run when forms are timed.
    """

    method: Method
    percentile: float
    weight_bits: int
    max_drop: float
    batch: int
    threads: int
