"""Errors whose message is written for the user: what happened, expected against got, what to do.

::

    TinysaverError
      BundleError       a bundle or a model file of it cannot be used     (RuntimeError)
      InputError        frames or arguments do not fit the cascade        (ValueError)
      ClosedError       a closed cascade was used                         (RuntimeError)
      PlanError         a plan is missing, damaged or for another machine (RuntimeError)
      TensorRTError     TensorRT cannot start, load a plan or run it      (RuntimeError)
      DeviceError       a GPU or its driver cannot be used, or has failed (RuntimeError)
        DeviceMemoryError   its memory ran out
        GraphError          what should run cannot be a CUDA graph
"""

from __future__ import annotations


class TinysaverError(Exception):
    """Base of all errors that a user can act on; a program prints the message and exits with 1."""


class BundleError(TinysaverError, RuntimeError):
    """A bundle, or a model file in it, is missing, damaged or does not fit together."""


class InputError(TinysaverError, ValueError):
    """Frames or arguments do not fit the cascade."""


class ClosedError(TinysaverError, RuntimeError):
    """A cascade was used after ``close()``."""


class PlanError(TinysaverError, RuntimeError):
    """A TensorRT plan is missing, damaged, or was built for something else."""


class TensorRTError(TinysaverError, RuntimeError):
    """TensorRT cannot be started, or cannot load or run a plan."""


class DeviceError(TinysaverError, RuntimeError):
    """A GPU or its driver cannot be used, or has failed."""


class DeviceMemoryError(DeviceError):
    """The memory of a GPU, or pinned memory of its host, ran out."""


class GraphError(DeviceError):
    """Work cannot be captured as a CUDA graph; the message is one line."""
