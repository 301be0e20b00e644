"""How much of what an oracle would accept a certificate accepts, on the demo's selection records.

The 4,000 selection samples are the population. Its oracle knows the true drop at every point and
walks the same path until the drop exceeds epsilon, as gears need; a certificate sees 5,000 samples
drawn from it. ``-s`` prints the figures, also beside an oracle that may skip points above epsilon.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.certificates import certify_path
from calibration.errors import CertificationRefused
from calibration.record import main as record
from calibration.records import load_record
from runtime.bundle import demo_folder
from runtime.schema import ThresholdPath
from runtime.simulation import Simulation

N, DRAWS = 5000, 300
CLAIM = {"epsilon": 0.005, "delta": 0.05, "method": "wsr"}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    pool, data = demo_folder() / "models", demo_folder() / "data" / "selection.npz"
    models = [option for name in ("tiny", "middle", "large") for option in ("--model", name)]
    arguments = ["--pool", str(pool), "--data", str(data), "--out", str(folder), *models]
    record.main(arguments, standalone_mode=False)
    return folder / "selection"


def certified_point(table: np.ndarray, seed: int) -> int:
    columns = np.random.default_rng(seed).integers(0, table.shape[1], N)
    try:
        return certify_path((row[columns] for row in table), **CLAIM)
    except CertificationRefused:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize(("saver", "share"), [("middle", 0.95), ("tiny", 0.85)])
def test_a_certificate_accepts_nearly_what_an_oracle_does(
    records: Path, saver: str, share: float
) -> None:
    stages = [load_record(records / f"{name}.npz") for name in (saver, "large")]
    simulation = Simulation([stage.logits for stage in stages], stages[0].labels)
    vectors = ThresholdPath().vectors()
    table = np.stack([simulation.drops(point) for point in vectors])
    accepted = np.array([1 - simulation.escalation_rates(point)[0] for point in vectors])
    within = table.mean(1) <= CLAIM["epsilon"]
    walking, skipping = accepted[: within.argmin()].max(), accepted[within].max()
    reached = accepted[[certified_point(table, seed) for seed in range(DRAWS)]].mean()
    shares = ", ".join(f"{reached / oracle:.1%} of {oracle:.1%}" for oracle in (walking, skipping))
    print(f"{saver} -> large: accepts {reached:.1%}: {shares}")
    assert reached >= share * walking
