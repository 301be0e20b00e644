"""Energy of this machine, where a sensor counts it: Intel and AMD processors, Jetson boards.

What a sensor counts is the package or the board, idle power and other programs included.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Protocol

from calibration.errors import CalibrationError

PERIOD = 0.005
"""Seconds between two samples of a sensor that only knows power."""


class Meter(Protocol):
    """Counts energy. Owns what it reads with; close it."""

    name: str

    def joules(self) -> float:
        """Return the energy since the meter was opened."""

    def close(self) -> None:
        """Stop counting."""


class CounterMeter:
    """Sums counters of the kernel's powercap interface (RAPL), one per processor package."""

    def __init__(self, zones: Sequence[Path]) -> None:
        self.name = "RAPL " + ", ".join(sorted(_text(zone / "name") for zone in zones))
        self._zones = [zone / "energy_uj" for zone in zones]
        self._ranges = [int(_text(zone / "max_energy_range_uj")) for zone in zones]
        self._last = [int(_text(zone)) for zone in self._zones]
        self._microjoules = 0

    def joules(self) -> float:
        """Return the energy since the meter was opened; ask more often than a counter wraps."""
        now = [int(_text(zone)) for zone in self._zones]
        for before, after, most in zip(self._last, now, self._ranges, strict=True):
            self._microjoules += after - before + (most if after < before else 0)
        self._last = now
        return self._microjoules / 1e6

    def close(self) -> None:
        """Nothing to stop."""


class PowerMeter:
    """Integrates a sensor of power, such as the INA3221 of a Jetson, in a thread of its own.

    Parameters
    ----------
    voltage, current
        Files with millivolts and milliamperes.
    """

    def __init__(self, name: str, voltage: Path, current: Path) -> None:
        self.name = name
        self._files = (voltage, current)
        self._joules, self._last = 0.0, perf_counter()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._watts()  # fails here, not in the thread
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """Return the energy since the meter was opened."""
        self._add()
        return self._joules

    def close(self) -> None:
        """Stop the thread."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(PERIOD):
            self._add()

    def _add(self) -> None:
        with self._lock:
            now = perf_counter()
            self._joules += self._watts() * (now - self._last)
            self._last = now

    def _watts(self) -> float:
        millivolts, milliamperes = (float(_text(file)) for file in self._files)
        return millivolts * milliamperes / 1e6


def open_meter(system: Path = Path("/sys")) -> Meter:
    """Return a meter of this machine.

    Raises
    ------
    CalibrationError
        When there is no sensor, or it must not be read; the message says which, and what to do.
    """
    powercap = system / "class" / "powercap"
    zones = sorted(zone.parent for zone in powercap.glob("intel-rapl:*/energy_uj"))
    packages = [zone for zone in zones if zone.name.count(":") == 1]
    try:
        if packages:
            return CounterMeter(packages)
        for label in sorted((system / "class" / "hwmon").glob("hwmon*/in*_label")):
            if _text(label) in ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0"):
                number = label.name[len("in") : -len("_label")]
                files = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
                return PowerMeter(f"INA3221 {_text(label)}", *files)
    except PermissionError as error:
        raise CalibrationError(
            f"--cost joules: the power sensor {error.filename} may be read by root alone. "
            f"Let this user read it (sudo chmod a+r {error.filename}), or pass --cost time or macs."
        ) from None
    raise CalibrationError(
        f"--cost joules: this machine shows no power sensor (looked for RAPL in {powercap} and for "
        f"a Jetson's INA3221 in {system / 'class' / 'hwmon'}; virtual machines usually have none). "
        "Pass --cost time or macs."
    )


def _text(path: Path) -> str:
    return path.read_text("ascii").strip()
