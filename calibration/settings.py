"""Writing thresholds, certificates and gears to a bundle's ``cascade.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibration.disagreement import disagreements
from calibration.errors import CalibrationError
from calibration.gears import Gears, gears
from calibration.npz import unwritable
from calibration.recorded import Recorded, starting_path
from calibration.records import refuse_held_out
from calibration.saving import with_saving
from runtime.bundle import Bundle, save_spec
from runtime.schema import CascadeSpec, Certificate, Setting, Threshold


def write_certificate(
    recorded: Recorded, certificate: Certificate, *, selection: Recorded | None = None
) -> CascadeSpec:
    """Write thresholds, certificate and gears to the bundle's ``cascade.json``.

    With them goes what a drift guard compares with, from the same records.

    Parameters
    ----------
    selection
        The bundle with records of the selection split, to space the gears by what they send on.

    Raises
    ------
    CalibrationError
        When it cannot be written, or ``selection`` does not fit.
    """
    setting = Setting(
        thresholds=certificate.thresholds,
        path=certificate.path,
        certificate=certificate,
        gears=_gears(certificate, selection),
    )
    return _write(recorded.bundle, {recorded.key: _watched(setting, recorded)})


def write_gears(bundle: Bundle, selection: Recorded | None = None) -> CascadeSpec:
    """Give certificates that a bundle has already their gears, and the bound on their saving.

    Both follow from what the certificate says, so that its samples are not looked at again.

    Parameters
    ----------
    selection
        As of `write_certificate`; then only the setting of its forms is changed, and what a drift
        guard compares with is measured on it.

    Raises
    ------
    CalibrationError
        When there is no certificate, it cannot be written, or ``selection`` does not fit.
    """
    settings = bundle.spec.settings
    keys = list(settings) if selection is None else [selection.key]
    found = {key: s for key, s in settings.items() if key in keys and s.certificate is not None}
    if not found:
        raise CalibrationError(
            f"{bundle.folder}: no certificate for {', '.join(keys)}, so no gears. "
            "Certify first: python -m calibration.threshold --help"
        )
    return _write(bundle, {key: _geared(bundle, s, selection) for key, s in found.items()})


def write_forecast(recorded: Recorded, thresholds: Sequence[Threshold]) -> CascadeSpec:
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
    setting = Setting(thresholds=tuple(thresholds), path=path)
    return _write(recorded.bundle, {recorded.key: setting})


def _geared(bundle: Bundle, setting: Setting, selection: Recorded | None) -> Setting:
    certificate = setting.certificate
    assert certificate is not None
    if certificate.saving is None:
        certificate = with_saving(certificate, bundle.spec)
    chosen = _gears(certificate, selection)
    geared = setting.model_copy(update={"certificate": certificate, "gears": chosen})
    if selection is not None:
        return _watched(geared, selection)
    points = (certificate.thresholds, *chosen)
    kept = tuple(item for item in setting.disagreements if item.thresholds in points)
    return geared.model_copy(update={"disagreements": kept})


def _watched(setting: Setting, recorded: Recorded) -> Setting:
    return setting.model_copy(update={"disagreements": disagreements(recorded, setting)})


def _gears(certificate: Certificate, selection: Recorded | None) -> Gears:
    if selection is None:
        return gears(certificate)
    refuse_held_out(selection.records[0], use="Spacing gears")
    try:
        return gears(certificate, selection.simulation())
    except ValueError as error:
        raise CalibrationError(f"{selection.bundle.folder}: {error}") from None


def _write(bundle: Bundle, settings: Mapping[str, Setting]) -> CascadeSpec:
    changed = bundle.spec.model_copy(update={"settings": {**bundle.spec.settings, **settings}})
    try:
        save_spec(bundle.folder, changed)
    except OSError as error:
        raise unwritable(bundle.folder / "cascade.json", error) from None
    return changed
