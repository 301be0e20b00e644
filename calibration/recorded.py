"""A bundle with the records of its stages, and certifying its path on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.bounds import Method, smallest_passing_n
from calibration.budget import Attempt, Budget, Outcome, Question
from calibration.certificates import certify_cascade
from calibration.errors import CalibrationError, CertificationRefused
from calibration.provenance import check_unused
from calibration.records import Data, Labels, Record, load_records, refuse_foreign_labels
from calibration.saving import with_saving
from runtime.bundle import Bundle
from runtime.schema import (
    CascadeSpec,
    Coverage,
    CoveredStage,
    Form,
    Score,
    Setting,
    ThresholdPath,
)
from runtime.simulation import Simulation, Weighted


@dataclass(frozen=True)
class Recorded:
    """A bundle with the records of its stages, all of one data set.

    Attributes
    ----------
    forms
        Of the records, which thereby say which setting of the bundle is meant.
    labels
        i32 [n]; None certifies the disagreement with the large model.
    """

    bundle: Bundle
    records: tuple[Record, ...]
    forms: tuple[Form, ...]
    labels: Labels | None

    @property
    def key(self) -> str:
        """Key of the setting in ``cascade.json``."""
        return "/".join(self.forms)

    @property
    def logits(self) -> list[npt.NDArray[np.float32]]:
        """Logits ``f32 [n, K]`` of each stage."""
        return [record.logits for record in self.records]

    @property
    def scores(self) -> tuple[Score, ...]:
        """Score of each gate."""
        return tuple(gate.score for gate in self.bundle.spec.gates)

    @property
    def gate_scores(self) -> list[npt.NDArray[np.float32] | None]:
        """Per gate f32 [n], what a learned gate put out, or None."""
        pairs = zip(self.records, self.scores, strict=False)
        return [record.score if score.name == "learned" else None for record, score in pairs]

    @property
    def combination(self) -> Weighted | None:
        """Index and weight of the stage whose logits the last stage adds to its own."""
        return self.bundle.spec.weighted

    def simulation(self) -> Simulation:
        """Return the cascade's answers on the records, for any thresholds.

        Raises
        ------
        CalibrationError
            When labels or scores do not fit the logits.
        """
        try:
            return Simulation(
                self.logits,
                self.labels,
                scores=self.scores,
                combination=self.combination,
                gate_scores=self.gate_scores,
            )
        except ValueError as error:
            raise CalibrationError(f"{self.bundle.folder}: {error}") from None

    @property
    def setting(self) -> Setting:
        """The thresholds and path of the bundle for these forms."""
        found = self.bundle.spec.settings.get(self.key)
        if found is None:
            raise CalibrationError(
                f"{self.bundle.folder}: cascade.json has no setting for {self.key}; it has "
                f"{', '.join(self.bundle.spec.settings) or 'none'}. Record the stages in those "
                "forms, or forecast thresholds for these from records of the selection split: "
                "python -m calibration.threshold --forecast --write"
            )
        return found

    @property
    def path(self) -> ThresholdPath:
        """The path that was chosen on the selection split."""
        if self.setting.path is None:
            raise CalibrationError(
                f"{self.bundle.folder}: the setting {self.key} has no path to walk. "
                "Choose one on the selection split: python -m calibration.search --help"
            )
        return self.setting.path

    @property
    def data_sha256(self) -> str:
        """Hash of the data that were recorded."""
        return self.records[0].meta.data_sha256


def starting_path(spec: CascadeSpec, forms: Sequence[Form]) -> ThresholdPath:
    """Return a path for forms that nothing need have been chosen for yet.

    It is that of the same forms, else of the all-FP32 cascade, else one with all gates alike.
    """
    for setting in _related_settings(spec, forms):
        if setting.path:
            return setting.path
    return ThresholdPath(offsets=(0.0,) * len(spec.gates))


def starting_setting(spec: CascadeSpec, forms: Sequence[Form]) -> Setting:
    """Return thresholds and path for such forms, without certificate.

    Where the bundle has no thresholds for them or for the all-FP32 cascade, everything escalates.
    """
    related = _related_settings(spec, forms)
    thresholds = related[0].thresholds if related else (1.0,) * len(spec.gates)
    return Setting(thresholds=thresholds, path=starting_path(spec, forms))


def _related_settings(spec: CascadeSpec, forms: Sequence[Form]) -> list[Setting]:
    keys = ("/".join(forms), "/".join(["fp32"] * len(spec.stages)))
    return [spec.settings[key] for key in keys if key in spec.settings]


def load_recorded(bundle: Bundle, folder: Path, *, label_free: bool = False) -> Recorded:
    """Read the records of a bundle's stages.

    Raises
    ------
    CalibrationError
        When they are not of the bundle's models, or lack the score of a learned gate, or labels
        are none of its classes.
    """
    records = load_records(folder, bundle.spec.stages)
    classes = records[0].logits.shape[1]
    if classes != len(bundle.spec.labels):
        raise CalibrationError(
            f"{folder}: expected logits of {len(bundle.spec.labels)} classes, got {classes}."
        )
    for gate, record in zip(bundle.spec.gates, records, strict=False):
        if gate.score.name == "learned" and record.score is None:
            raise CalibrationError(
                f"{folder}: the record of {record.meta.model} lacks the score of its learned gate. "
                "Record the bundle again: python -m calibration.record --help"
            )
    if not label_free:
        refuse_foreign_labels(folder, records[-1])
    forms = tuple(record.meta.form for record in records)
    return Recorded(bundle, tuple(records), forms, None if label_free else records[0].labels)


def coverage(recorded: Recorded, data: Data, *, allow_unknown: bool) -> Coverage:
    """Return what a certificate from these records covers, once the data proved to be unused.

    Raises
    ------
    CalibrationError
        When ``data`` is not what was recorded, or was used before; see `check_unused`.
    """
    if data.sha256 != recorded.data_sha256:
        raise CalibrationError(
            f"{data.name}: the records are of other data (expected sha256 "
            f"{recorded.data_sha256[:12]}..., got {data.sha256[:12]}...). "
            "Pass the --data that was recorded, or record again."
        )
    provenance = check_unused(
        data.images, recorded.bundle, recorded.forms, allow_unknown=allow_unknown
    )
    return Coverage(
        data_sha256=data.sha256,
        stages=tuple(_covered(record) for record in recorded.records),
        provenance=provenance,
    )


@dataclass(frozen=True)
class Claim:
    """What is to be certified: at most ``epsilon``, but for a chance of ``delta``."""

    epsilon: float
    delta: float
    method: Method

    def __post_init__(self) -> None:
        """Refuse what is no claim."""
        for name, value in (("epsilon", self.epsilon), ("delta", self.delta)):
            if not 0 < value < 1:
                raise CalibrationError(f"{name}: expected a number between 0 and 1, got {value}.")


def certify_recorded(
    recorded: Recorded, claim: Claim, covers: Coverage, *, budget: Budget | None
) -> Outcome:
    """Certify a bundle's path on its records, paying from the budget first.

    Where there are too few samples for any certificate nothing is paid: their number says so.

    The saving follows from what the certificate counts, and is bounded anew also where that is a
    stored one.

    Raises
    ------
    CalibrationError
        When the budget is spent or unreadable, or path and records do not fit together. A refused
        certification is an outcome, not an error.
    """
    _check_fits(recorded)
    if _too_few(recorded, claim):
        return _certify(recorded, claim, covers)
    question = Question(
        quantity="disagreement" if recorded.labels is None else "accuracy_drop",
        stages=covers.stages,
        scores=recorded.scores,
        combination=recorded.bundle.spec.combination,
        path=recorded.path,
        epsilon=claim.epsilon,
        method=claim.method,
    )
    attempt = Attempt(covers.data_sha256, question.sha256, claim.delta)
    outcome = budget.open(attempt) if budget else None
    if outcome is None:
        outcome = _certify(recorded, claim, covers)
        if budget:
            budget.settle(attempt, outcome)
    if outcome.certificate is None:
        return outcome
    certificate = outcome.certificate.model_copy(update={"covers": covers})
    return Outcome(certificate=with_saving(certificate, recorded.bundle.spec))


def _too_few(recorded: Recorded, claim: Claim) -> bool:
    """Tell whether the first point cannot pass, without a look at the samples."""
    first = recorded.path.vectors()[0]
    if recorded.bundle.spec.combination is not None or (first < 1).any():
        return False  # what is lost there is for the samples to say
    enough = smallest_passing_n(epsilon=claim.epsilon, delta=claim.delta, method=claim.method)
    return len(recorded.logits[0]) < enough


def _covered(record: Record) -> CoveredStage:
    meta = record.meta
    return CoveredStage(
        name=meta.model,
        model_sha256=meta.model_sha256,
        engine=meta.engine,
        form=meta.form,
        preprocessing_sha256=meta.preprocessing_sha256,
    )


def _check_fits(recorded: Recorded) -> None:
    """Raise whatever a certification of bad arguments would, before it is paid for."""
    simulation = recorded.simulation()
    try:
        width = recorded.path.vectors().shape[1]
    except ValueError as error:
        raise CalibrationError(f"{recorded.bundle.folder}: {error}") from None
    if width != simulation.gates:
        raise CalibrationError(
            f"{recorded.bundle.folder}: the path of {recorded.key} has {width} thresholds per "
            f"point, expected {simulation.gates}, one per gate."
        )


def _certify(recorded: Recorded, claim: Claim, covers: Coverage) -> Outcome:
    try:
        certificate = certify_cascade(
            recorded.logits,
            recorded.labels,
            recorded.path,
            epsilon=claim.epsilon,
            delta=claim.delta,
            scores=recorded.scores,
            method=claim.method,
            combination=recorded.combination,
            gate_scores=recorded.gate_scores,
        )
    except CertificationRefused as refusal:
        return Outcome(refused=str(refusal))
    # The bundle's own words for what was certified by number.
    named = {"covers": covers, "combination": recorded.bundle.spec.combination}
    named_certificate = certificate.model_copy(update=named)
    return Outcome(certificate=with_saving(named_certificate, recorded.bundle.spec))
