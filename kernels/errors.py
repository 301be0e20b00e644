"""Errors of kernels.

What fails at run time is a `KernelError`; a wrong argument is a `ValueError`::

    KernelError             (RuntimeError)
      CompilerMissingError  no NVRTC for this device and driver
      CompileError          NVRTC refused a source
"""

from __future__ import annotations


class KernelError(RuntimeError):
    """Base of what can fail when kernels are compiled, loaded or launched."""


class CompilerMissingError(KernelError):
    """No NVRTC was found that suits the device and its driver; names the package to install."""


class CompileError(KernelError):
    """NVRTC refused a source; carries its log and the architecture."""
