"""Run a cascade of image classifiers: a small one on every sample, a large one on the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import BundleError, ClosedError, InputError, TinysaverError

if TYPE_CHECKING:
    from runtime.cascade import Cascade, Pending, Results

__all__ = [
    "BundleError",
    "Cascade",
    "ClosedError",
    "InputError",
    "Pending",
    "Results",
    "TinysaverError",
]


def __getattr__(name: str) -> object:
    """Import the cascade when it is first asked for.

    It needs ONNX Runtime, and `runtime.doctor` must start where that is broken.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runtime import cascade

    return getattr(cascade, name)
