"""What a profiler is told on request: the times of TensorRT's layers, and ranges of NVTX."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

DOMAIN = "tinysaver"
"""Of our ranges, as Nsight Systems shows it."""

_NO_RANGE = nullcontext()


class LayerTime(NamedTuple):
    """What a layer of an engine has used: in how many runs, and how much of the GPU's time."""

    runs: int
    milliseconds: float


class LayerTimes:
    """Times of an engine's layers by name, summed over the runs of all its contexts."""

    def __init__(self) -> None:
        self._sums: dict[str, LayerTime] = {}

    def add(self, layer: str, milliseconds: float) -> None:
        """Add one run of a layer."""
        runs, before = self._sums.get(layer, (0, 0.0))
        self._sums[layer] = LayerTime(runs + 1, before + milliseconds)

    def take(self) -> dict[str, LayerTime]:
        """Return the sums since the last `take`, in the order in which layers ran."""
        taken, self._sums = self._sums, {}
        return taken


def layer_profiler(module: ModuleType, times: LayerTimes) -> Any:
    """Return an ``IProfiler`` of a TensorRT that adds to ``times``.

    While a context has one, TensorRT ends each run before the call that enqueues it returns.
    """

    class Profiler(module.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            # pybind11 needs the base's own constructor.
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, ms)

    return Profiler()


class Ranges:
    """Named ranges of the host's time, which Nsight Systems shows beside the GPU's work.

    They need the package nvtx; without it there are none, and the log says so.

    Parameters
    ----------
    wanted
        Else every range is nothing.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._annotate = _import_nvtx() if wanted else None

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        """Return a range, from entering it to leaving it."""
        return _NO_RANGE if self._annotate is None else self._annotate(name, domain=DOMAIN)


def _import_nvtx() -> Callable[..., AbstractContextManager[Any]] | None:
    try:
        annotate: Callable[..., AbstractContextManager[Any]]
        annotate = importlib.import_module("nvtx").annotate
    except ImportError as error:
        log.warning(
            "No NVTX ranges of batches and stages (%s): pip install nvtx. "
            "TensorRT has ranges of its layers all the same.",
            error,
        )
        return None
    return annotate
