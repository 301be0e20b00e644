"""What a test has happen while the double of TensorRT builds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """What happens in this run.

    Attributes
    ----------
    starts
        False: the builder cannot be made, as without a driver.
    error
        The build fails with this in the log.
    warning
        The build logs this, twice.
    ends_by
        A signal that ends the process in the middle of the build.
    seconds
        How long the build takes.
    dla_cores
        What the machine has.
    """

    starts: bool = True
    error: str | None = None
    warning: str | None = None
    ends_by: str | None = None
    seconds: float = 0.0
    dla_cores: int = 0

    @classmethod
    def from_environment(cls) -> Scenario:
        """Read it from the variable TENSORRT_DOUBLE."""
        return cls(**json.loads(os.environ.get("TENSORRT_DOUBLE", "{}")))
