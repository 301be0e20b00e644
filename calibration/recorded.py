"""A bundle with the records of its stages: certify its path, or compare its decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from calibration.bounds import Method
from calibration.budget import Attempt, Budget, Outcome, Question
from calibration.certificates import certify_cascade
from calibration.errors import CalibrationError, CertificationRefused
from calibration.npz import unwritable
from calibration.provenance import check_unused
from calibration.records import Data, Labels, Record, load_records
from runtime.bundle import Bundle, save_spec
from runtime.schema import (
    CascadeSpec,
    Certificate,
    Coverage,
    CoveredStage,
    Form,
    Score,
    Setting,
    Threshold,
    ThresholdPath,
)
from runtime.simulation import Simulation, cascade_answers


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
        When they are not of the bundle's models, or a gate cannot be computed from logits.
    """
    records = load_records(folder, bundle.spec.stages)
    classes = records[0].logits.shape[1]
    if classes != len(bundle.spec.labels):
        raise CalibrationError(
            f"{folder}: expected logits of {len(bundle.spec.labels)} classes, got {classes}."
        )
    if any(gate.score.name == "learned" for gate in bundle.spec.gates):
        raise CalibrationError(
            f"{bundle.folder}: a learned gate reads a score tensor, which records do not hold."
        )
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

    Raises
    ------
    CalibrationError
        When the budget is spent or unreadable, or path and records do not fit together. A refused
        certification is an outcome, not an error.
    """
    _check_fits(recorded)
    question = Question(
        quantity="disagreement" if recorded.labels is None else "accuracy_drop",
        stages=covers.stages,
        scores=recorded.scores,
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
    return Outcome(certificate=outcome.certificate.model_copy(update={"covers": covers}))


def write_certificate(recorded: Recorded, certificate: Certificate) -> CascadeSpec:
    """Write thresholds and certificate to the bundle's ``cascade.json``.

    Gears are dropped: they were above the former thresholds, not necessarily above these.

    Raises
    ------
    CalibrationError
        When it cannot be written.
    """
    return _write_setting(
        recorded,
        Setting(thresholds=certificate.thresholds, path=certificate.path, certificate=certificate),
    )


def write_forecast(recorded: Recorded, thresholds: Sequence[float]) -> CascadeSpec:
    """Write thresholds that were forecast to the bundle's ``cascade.json``, without certificate.

    Raises
    ------
    CalibrationError
        When these forms are certified already, or it cannot be written.
    """
    former = recorded.bundle.spec.settings.get(recorded.key)
    if former is not None and former.certificate is not None:
        raise CalibrationError(
            f"{recorded.bundle.folder}: the thresholds of {recorded.key} are certified; a forecast "
            "does not replace them. Certify again: python -m calibration.threshold --help"
        )
    path = starting_path(recorded.bundle.spec, recorded.forms)
    return _write_setting(recorded, Setting(thresholds=tuple(thresholds), path=path))


def _write_setting(recorded: Recorded, setting: Setting) -> CascadeSpec:
    spec = recorded.bundle.spec
    changed = spec.model_copy(update={"settings": {**spec.settings, recorded.key: setting}})
    try:
        save_spec(recorded.bundle.folder, changed)
    except OSError as error:
        raise unwritable(recorded.bundle.folder / "cascade.json", error) from None
    return changed


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
        When the records are of different data, or a threshold depends on the class.
    """
    if first.data_sha256 != second.data_sha256:
        raise CalibrationError(
            f"--recheck: expected records of the same data (sha256 {first.data_sha256[:12]}...), "
            f"got {second.data_sha256[:12]}..."
        )
    thresholds = _single_numbers(first.setting.thresholds)
    whole = [cascade_answers(item.logits, thresholds, first.scores) for item in (first, second)]
    alone = []
    for gate, (threshold, score) in enumerate(zip(thresholds, first.scores, strict=True)):
        logits = [item.logits[gate] for item in (first, second)]
        kept = [cascade_answers([z, z], [threshold], [score]).stage for z in logits]
        alone.append(float((kept[0] != kept[1]).mean()))
    return Recheck(
        n=len(whole[0].label),
        gates=tuple(alone),
        stage=float((whole[0].stage != whole[1].stage).mean()),
        label=float((whole[0].label != whole[1].label).mean()),
    )


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
    try:
        simulation = Simulation(recorded.logits, recorded.labels, scores=recorded.scores)
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
        )
    except CertificationRefused as refusal:
        return Outcome(refused=str(refusal))
    return Outcome(certificate=certificate.model_copy(update={"covers": covers}))


def _single_numbers(thresholds: Sequence[Threshold]) -> list[float]:
    if any(isinstance(threshold, list) for threshold in thresholds):
        raise CalibrationError("--recheck: expected one threshold per gate, got one per class.")
    return [cast("float", threshold) for threshold in thresholds]
