"""Errors of engines whose message is written for the user.

::

    TinysaverError
      EngineError           a model, form, plan or engine cannot be made or used    (RuntimeError)
        UnsupportedModel    an ONNX file that cannot be a stage of a cascade
"""

from __future__ import annotations

from runtime.errors import TinysaverError


class EngineError(TinysaverError, RuntimeError):
    """A model, one of its forms, a plan or an engine cannot be read, made or used."""


class UnsupportedModel(EngineError):
    """An ONNX file is damaged, or cannot be a stage of a cascade as it is."""
