"""Power sensors, on a made-up /sys."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from calibration.energy import CounterMeter, PowerMeter, open_meter
from calibration.errors import CalibrationError


def package(system: Path, number: int, microjoules: int) -> Path:
    zone = system / "class" / "powercap" / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"package-{number}\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone


def board(system: Path, watts: float) -> Path:
    sensor = system / "class" / "hwmon" / "hwmon3"
    sensor.mkdir(parents=True)
    for number, label in ((1, "VDD_CPU_GPU_CV"), (2, "VDD_IN")):
        (sensor / f"in{number}_label").write_text(f"{label}\n")
        (sensor / f"in{number}_input").write_text("5000\n")
        (sensor / f"curr{number}_input").write_text(f"{round(200 * watts * (number - 1))}\n")
    return sensor


def test_counters_of_all_packages_are_summed_across_a_wrap(tmp_path: Path) -> None:
    zones = [package(tmp_path, 0, 900_000), package(tmp_path, 1, 10)]
    core = tmp_path / "class" / "powercap" / "intel-rapl:0:0"
    core.mkdir()
    (core / "energy_uj").write_text("77")  # part of its package: not to be counted again
    meter = open_meter(tmp_path)
    assert isinstance(meter, CounterMeter)
    assert meter.name == "RAPL package-0, package-1"
    assert meter.joules() == 0
    (zones[0] / "energy_uj").write_text("100000")
    (zones[1] / "energy_uj").write_text("300010")
    assert meter.joules() == pytest.approx(0.5)
    (zones[0] / "energy_uj").write_text("200000")
    assert meter.joules() == pytest.approx(0.6)
    meter.close()


def test_power_of_a_board_is_integrated(tmp_path: Path) -> None:
    board(tmp_path, watts=12.0)
    begin = time.perf_counter()
    meter = open_meter(tmp_path)
    try:
        assert isinstance(meter, PowerMeter) and meter.name == "INA3221 VDD_IN"
        time.sleep(0.05)
        before = time.perf_counter()
        joules = meter.joules()
        assert 12 * 0.05 * 0.9 <= joules <= 12 * (time.perf_counter() - begin)
        assert joules >= 12 * (before - begin) * 0.5
    finally:
        meter.close()


def test_a_machine_without_a_sensor_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no power sensor .*powercap.* Pass --cost time"):
        open_meter(tmp_path)


def test_a_sensor_for_root_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = package(tmp_path, 0, 1)
    read = Path.read_text

    def refuse(self: Path, *args: str) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CalibrationError, match=f"{zone}/energy_uj may be read by root alone"):
        open_meter(tmp_path)
