"""Forms that run together, and the thresholds each combination starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration.certificates import Forecast, forecast
from calibration.comparison import Logits
from calibration.errors import CalibrationError, CertificationRefused
from calibration.forms import Made
from calibration.quantisation import MadeForm
from calibration.recorded import Claim, starting_path, starting_setting
from calibration.records import Labels
from runtime.schema import CascadeSpec, Form, Setting

DRAWS = 20
_FALLBACKS: dict[MadeForm, tuple[MadeForm, ...]] = {
    "int8_host": ("int8_host",),
    "int8_trt": ("int8_trt", "fp16"),
    "fp16": ("fp16",),
}
"""What a stage runs in a combination, the best first; FP32 where it has none of them."""

StageMade = Mapping[MadeForm, Made]


@dataclass(frozen=True)
class Combination:
    """One form per stage.

    Attributes
    ----------
    forecast
        What certifying may give; None where thresholds cannot be forecast.
    note
        Why there is no forecast.
    """

    forms: tuple[Form, ...]
    setting: Setting
    forecast: Forecast | None
    note: str = ""

    @property
    def key(self) -> str:
        """Key of the setting in ``cascade.json``."""
        return "/".join(self.forms)


def combinations(made: Sequence[StageMade]) -> list[tuple[Form, ...]]:
    """Return one combination for each form that was made and pays in some stage."""
    found: list[tuple[Form, ...]] = []
    for choices in _FALLBACKS.values():
        forms = tuple(_best(stage, choices) for stage in made)
        if set(forms) != {"fp32"} and forms not in found:
            found.append(forms)
    return found


def choose_thresholds(
    spec: CascadeSpec,
    forms: tuple[Form, ...],
    logits: Sequence[Logits],
    labels: Labels | None,
    claim: Claim,
    *,
    size: int,
) -> Combination:
    """Forecast the thresholds of a combination on the samples that forms were measured on.

    Parameters
    ----------
    logits
        f32 [n, K] of each stage in its form.
    size
        Samples that will certify.
    """
    if any(gate.score.name == "learned" for gate in spec.gates):
        setting = starting_setting(spec, forms)
        return Combination(forms, setting, None, "a learned gate reads no logits")
    path = starting_path(spec, forms)
    try:
        found = forecast(
            logits,
            labels,
            path,
            n=size,
            epsilon=claim.epsilon,
            delta=claim.delta,
            scores=[gate.score for gate in spec.gates],
            method=claim.method,
            draws=DRAWS,
            combination=spec.weighted,
        )
    except CertificationRefused:
        everything = Setting(thresholds=(1.0,) * len(spec.gates), path=path)
        return Combination(forms, everything, None, "nothing can be promised: all is escalated")
    except ValueError as error:
        raise CalibrationError(f"cascade.json: setting of {'/'.join(forms)}: {error}") from None
    median = found.median_thresholds
    return Combination(forms, Setting(thresholds=median, path=path), found)


def _best(stage: StageMade, choices: Sequence[MadeForm]) -> Form:
    for form in choices:
        if form in stage and stage[form].success:
            return form
    return "fp32"
