"""Errors of calibration whose message is written for the user.

::

    TinysaverError
      CalibrationError          data, records or files do not fit    (RuntimeError)
        CertificationRefused    the data do not support the claim
"""

from __future__ import annotations

from runtime.errors import TinysaverError


class CalibrationError(TinysaverError, RuntimeError):
    """Data, records, provenance or a budget do not fit together, or cannot be read or written."""


class CertificationRefused(CalibrationError):
    """The data do not support the claim that was to be certified."""
