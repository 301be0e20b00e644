"""One ONNX Runtime session on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from runtime.errors import BundleError

ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    item
    for item in vars(ort_state).values()
    if isinstance(item, type) and issubclass(item, Exception)
)
"""ONNX Runtime's exceptions share no base of their own."""

Tensors = Mapping[str, npt.NDArray[Any]]
Weights = Mapping[str, ort.OrtValue]
"""Initialisers by name."""

_NO_WEIGHTS: Weights = MappingProxyType({})


def available_threads() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class HostModel:
    """One ONNX Runtime session.

    Parameters
    ----------
    path
        An ONNX file.
    threads
        CPU threads of the session.
    content
        What to load in place of the file's own content.
    weights
        Initialisers that the session reads in place of its own, without a copy. Weights are then
        not packed anew for its kernels, which would be one.

    Raises
    ------
    BundleError
        When the file is missing or ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        content: bytes | None = None,
        weights: Weights = _NO_WEIGHTS,
    ) -> None:
        options = _options(threads)
        self._weights = weights  # ONNX Runtime reads them as long as the session lives.
        if weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
            for name, value in weights.items():
                options.add_initializer(name, value)
        try:
            self.session = ort.InferenceSession(
                content or os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            raise BundleError(
                f"{path}: ONNX Runtime {ort.__version__} cannot load it: {_first_line(error)} "
                "Expected an ONNX model; export it again."
            ) from None
        self.inputs = {item.name: tuple(item.shape) for item in self.session.get_inputs()}
        self.outputs = {item.name: tuple(item.shape) for item in self.session.get_outputs()}
        self.types = {
            item.name: item.type
            for item in (*self.session.get_inputs(), *self.session.get_outputs())
        }

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Return every output for the given inputs."""
        names = list(self.outputs)
        return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle workers of one stage would spin on the cores that the next stage computes on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
