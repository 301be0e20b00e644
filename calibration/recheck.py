"""Whether a bundle decides alike on two sets of records of the same samples."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.errors import CalibrationError
from calibration.recorded import Recorded
from runtime.simulation import cascade_answers


@dataclass(frozen=True)
class Recheck:
    """How the decisions of a cascade differ between two sets of records of the same samples.

    Attributes
    ----------
    gates
        Share of the samples on which each gate, asked about all of them, decides otherwise.
    stage, label
        Share of the samples that another stage answers, or that get another answer.
    """

    n: int
    gates: tuple[float, ...]
    stage: float
    label: float


def recheck(first: Recorded, second: Recorded) -> Recheck:
    """Compare the decisions at the thresholds of the first setting.

    Raises
    ------
    CalibrationError
        When the records are of different data.
    """
    if first.data_sha256 != second.data_sha256:
        raise CalibrationError(
            f"--recheck: expected records of the same data (sha256 {first.data_sha256[:12]}...), "
            f"got {second.data_sha256[:12]}..."
        )
    thresholds = first.setting.thresholds
    whole = [item.simulation().answers(thresholds) for item in (first, second)]
    gates = range(len(thresholds))
    return Recheck(
        n=len(whole[0].label),
        gates=tuple(_changed(first, second, gate) for gate in gates),
        stage=float((whole[0].stage != whole[1].stage).mean()),
        label=float((whole[0].label != whole[1].label).mean()),
    )


def _changed(first: Recorded, second: Recorded, gate: int) -> float:
    """Return the share of samples that a gate, asked about all of them, decides otherwise."""
    kept = [
        cascade_answers(
            [item.logits[gate]] * 2,
            [first.setting.thresholds[gate]],
            [first.scores[gate]],
            gate_scores=[item.gate_scores[gate]],
        ).stage
        for item in (first, second)
    ]
    return float((kept[0] != kept[1]).mean())
