"""Certifying the best cascades of a ranking, and writing the cheapest one that passes.

K cascades share a claim's delta: each is tested at delta / K, so that the chance that any of their
promises is broken stays below delta, and the cheapest that passed may be taken. What it then
promises holds at delta, not at delta / K, because the certifying data had a say in which it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from calibration.budget import Budget
from calibration.candidates import names_of
from calibration.costs import Costs
from calibration.errors import CertificationRefused
from calibration.ranking import Estimate
from calibration.recorded import Claim, Recorded, certify_recorded, coverage, load_recorded
from calibration.recorder import bundle_source, record_all
from calibration.records import Data
from calibration.saving import with_saving
from calibration.settings import write_certificate
from runtime.bundle import load_bundle
from runtime.schema import Certificate, Form


class Split(NamedTuple):
    """Records of a whole pool on one split, and its data."""

    records: Path
    data: Data

    def recorded(self, folder: Path) -> Recorded:
        """Return a bundle with its records.

        A model with a learned gate is not the pool's, so nobody has recorded it: it is run here.
        """
        bundle = load_bundle(folder)
        if not any(gate.score.name == "learned" for gate in bundle.spec.gates):
            return load_recorded(bundle, self.records)
        forms: list[Form] = ["fp32"] * len(bundle.spec.stages)
        with TemporaryDirectory() as place:
            record_all([bundle_source(bundle, forms, threads=1)], self.data, Path(place))
            return load_recorded(bundle, Path(place))


@dataclass(frozen=True)
class Jury:
    """What certifies: the certifying split, the claim, and who pays.

    Attributes
    ----------
    claim
        For all cascades together.
    """

    split: Split
    claim: Claim
    budget: Budget | None

    def certify(self, folder: Path, *, share: int) -> Certificate | str:
        """Return the certificate of a bundle at ``delta / share``, or why it was refused."""
        recorded = self.split.recorded(folder)
        covers = coverage(recorded, self.split.data, allow_unknown=False)
        claim = dataclasses.replace(self.claim, delta=self.claim.delta / share)
        outcome = certify_recorded(recorded, claim, covers, budget=self.budget)
        if outcome.certificate is None:
            return str(outcome.refused)
        return with_saving(outcome.certificate, recorded.bundle.spec, share=share)


def best_certified(
    estimates: Sequence[Estimate],
    costs: Costs,
    jury: Jury,
    write: Callable[[Path, Estimate], object],
) -> tuple[Estimate, Certificate]:
    """Certify cascades at equal shares of delta and return the cheapest that passes.

    Its certificate says the whole delta, and that of its saving.

    Parameters
    ----------
    write
        Makes a folder the bundle of a cascade.

    Raises
    ------
    CertificationRefused
        When none passes.
    CalibrationError
        When the certifying samples decided something else, or the budget is spent.
    """
    passed, refused = [], []
    for estimate in estimates:
        with TemporaryDirectory(prefix="tinysaver-") as folder:
            write(Path(folder), estimate)
            certificate = jury.certify(Path(folder), share=len(estimates))
        if isinstance(certificate, str):
            refused.append(f"{names_of(estimate.names)}: {certificate}")
            continue
        cost = float(costs.cascade(estimate.names, np.array(certificate.escalation_rates)))
        passed.append((cost, estimate, certificate))
    if not passed:
        raise CertificationRefused("\n".join(refused))
    _, estimate, certificate = min(passed, key=lambda item: item[0])
    return estimate, certificate.model_copy(update={"delta": jury.claim.delta})


def write_certified(
    folder: Path, certificate: Certificate, certifying: Split, selection: Split
) -> None:
    """Put the certificate of a bundle's cascade and its gears into its ``cascade.json``."""
    chosen = selection.recorded(folder)
    write_certificate(certifying.recorded(folder), certificate, selection=chosen)
