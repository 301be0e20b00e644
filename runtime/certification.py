"""Whether a loaded cascade is the one that a certificate speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.schema import CascadeSpec, Certificate, CoveredStage, Form, Setting, Threshold

State = Literal[
    "certified",
    "transferred",
    "not certified for this form",
    "not certified",
    "overridden",
    "drift alarm",
]


@dataclass(frozen=True)
class Certification:
    """What can be said of a running cascade's accuracy.

    Attributes
    ----------
    state
        ``certified``: exactly the certified computation. ``transferred``: another engine, same
        forms. ``overridden``: the caller set other thresholds. ``drift alarm``: it would be one of
        the first two, but these images may not be like those that certified.
    certificate
        The certificate of the bundle for these forms, if any, whatever the state.
    """

    state: State
    certificate: Certificate | None = None

    def __str__(self) -> str:
        """Return one line, as the bench prints it."""
        if self.certificate is None:
            return self.state
        certificate = self.certificate
        what = {
            "accuracy_drop": f"accuracy drop <= {100 * certificate.epsilon:g} points",
            "disagreement": f"answers unlike the large model's <= {100 * certificate.epsilon:g} %",
        }[certificate.quantity]
        confidence = f"{100 * (1 - certificate.delta):g} % confidence"
        link = {
            "certified": ":",
            "transferred": ":",
            "drift alarm": ": the certificate may not hold for these images; it says:",
        }.get(self.state, "; the bundle's certificate says:")
        return f"{self.state}{link} {what} with {confidence}, from {certificate.n:,} samples"


def certification(
    spec: CascadeSpec,
    forms: tuple[Form, ...],
    *,
    engine: str,
    thresholds: tuple[object, ...],
    drifted: bool = False,
) -> Certification:
    """Compare a cascade as it runs with the bundle's certificate.

    Parameters
    ----------
    forms
        One per stage.
    engine
        Name of the engine that runs the stages.
    thresholds
        The ones in force.
    drifted
        A drift alarm was raised.
    """
    setting = spec.settings.get("/".join(forms))
    certificate = setting.certificate if setting else None
    if setting is None or certificate is None or certificate.covers is None:
        elsewhere = any(_covers_something(item) for item in spec.settings.values())
        return Certification("not certified for this form" if elsewhere else "not certified")
    if thresholds not in _certified_thresholds(setting, certificate):
        return Certification("overridden", certificate)
    certified = (certificate.scores, certificate.combination)
    if certified != (tuple(gate.score for gate in spec.gates), spec.combination):
        return Certification("not certified", certificate)
    state = _compare(spec, forms, engine, certificate.covers.stages)
    if drifted and state in ("certified", "transferred"):
        state = "drift alarm"
    return Certification(state, certificate)


def escalates_all(thresholds: Sequence[Threshold]) -> bool:
    """Return whether thresholds send every sample to the last stage."""
    return all(np.min(threshold) == 1 for threshold in thresholds)


def _covers_something(setting: Setting) -> bool:
    return setting.certificate is not None and setting.certificate.covers is not None


def _certified_thresholds(
    setting: Setting, certificate: Certificate
) -> tuple[tuple[object, ...], ...]:
    # A gear off the path was never tested, even if it escalates more than the certified point.
    tested = list(map(tuple, certificate.path.vectors()[: certificate.passed + 1].tolist()))
    highest = ((1.0,) * len(setting.thresholds),) if escalates_all(tested[0]) else ()
    gears = (gear for gear in setting.gears if gear in tested)
    return (certificate.thresholds, *gears, *highest)


def _compare(
    spec: CascadeSpec, forms: tuple[Form, ...], engine: str, covered: tuple[CoveredStage, ...]
) -> State:
    if len(covered) != len(spec.stages):
        return "not certified"
    for stage, form, certified in zip(spec.stages, forms, covered, strict=True):
        same = (
            stage.forms[form].digest == certified.model_sha256
            and stage.preprocessing.sha256 == certified.preprocessing_sha256
        )
        if not same:
            return "not certified"
        if form != certified.form:
            return "not certified for this form"
    return "certified" if all(item.engine == engine for item in covered) else "transferred"
