"""Run a cascade of image classifiers: a small one on every sample, a large one on the rest."""

from runtime.cascade import Cascade, Pending, Results
from runtime.errors import BundleError, ClosedError, InputError, TinysaverError

__all__ = [
    "BundleError",
    "Cascade",
    "ClosedError",
    "InputError",
    "Pending",
    "Results",
    "TinysaverError",
]
