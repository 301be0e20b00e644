"""The doubles in this process: libcuda, below the real pycuda and cuda-bindings, and TensorRT.

From then on the process has a GPU, as far as anyone can tell; so it must be one of its own.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING

from tests.cuda_double.driver import Driver
from tests.cuda_double.kernels import Kernels
from tests.cuda_double.pycuda_build import pycuda_folder
from tests.cuda_double.shim import shim
from tests.tensorrt_double import executing
from tests.tensorrt_double.double import Record
from tests.tensorrt_double.wheels import bindings

if TYPE_CHECKING:
    from runtime.plans import Library

TENSORRT = "10.13.3.9"
"""The version that most tests run on."""


@functools.cache
def kernels() -> Kernels:
    """Return the kernels, built for the emulation."""
    return Kernels()


@functools.cache
def install(tensorrt: str = TENSORRT, library: Library = "tensorrt") -> None:
    """Make ``import pycuda.driver`` and ``import tensorrt`` find the doubles; once a process.

    Parameters
    ----------
    tensorrt
        Which version; TensorRT-RTX is the one that is installed.
    """
    shim()
    sys.path.insert(0, str(pycuda_folder()))
    real = _bindings(tensorrt) if library == "tensorrt" else importlib.import_module(library)
    sys.modules[library] = executing.make_module(real, _driver, record=Record(keep=False))


def _driver() -> Driver:
    driver = shim().driver
    assert driver is not None
    return driver


def _bindings(version: str) -> ModuleType:
    folder = bindings(version)
    for library in sorted((folder / "libraries").iterdir()):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old bindings use names that NumPy deprecates
        import tensorrt_bindings
    return tensorrt_bindings
