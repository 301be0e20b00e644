"""How much a certified cascade saves at least, from the counts its certificate keeps."""

from __future__ import annotations

from collections.abc import Sequence

from calibration.bounds import nested_upper
from runtime.schema import CascadeSpec, Certificate, Saving

SAVING_DELTA = 0.05
"""Chance that the bound on a saving is wrong, apart from the certificate's own delta."""


def saved_share(macs: Sequence[int], rates: Sequence[float], *, large: int | None = None) -> float:
    """Return the share of the large model's MACs that a cascade saves per sample.

    Parameters
    ----------
    macs
        Of each stage, the large model's last.
    rates
        Share of all samples that each gate sends on.
    large
        Of the large model alone, where the last stage is a part of it; None is the last stage's.
    """
    first, *later = macs
    used = first + sum(rate * cost for rate, cost in zip(rates, later, strict=True))
    return 1 - used / (large or macs[-1])


def bounded_saving(
    certificate: Certificate,
    macs: Sequence[int],
    *,
    large: int | None = None,
    delta: float = SAVING_DELTA,
    share: int = 1,
) -> Saving:
    """Return a lower bound on the MACs that the certified thresholds save.

    The samples chose the thresholds, so the bound holds along the whole path at once: each gate's
    rate is bounded by `nested_upper` at its part of delta. It needs no more of the samples than how
    many each gate sent on, and no labels.

    Parameters
    ----------
    macs, large
        As of `saved_share`.
    share
        How many cascades the same samples had to choose from: each is bounded at ``delta / share``.

    Raises
    ------
    ValueError
        When macs and the certificate's gates do not fit, or delta is outside (0, 1).
    """
    rates, n = certificate.escalation_rates, certificate.n
    if len(macs) != len(rates) + 1:
        raise ValueError(f"macs: expected {len(rates) + 1}, one per stage, got {len(macs)}")
    alpha = delta / share / len(rates)
    upper = [nested_upper(round(rate * n), n, alpha) for rate in rates]
    return Saving(lower_bound=saved_share(macs, upper, large=large), delta=delta)


def with_saving(certificate: Certificate, spec: CascadeSpec, *, share: int = 1) -> Certificate:
    """Return a certificate of a bundle's cascade with the bound on what it saves."""
    macs, large = [stage.macs for stage in spec.stages], spec.stages[-1].macs_alone
    saving = bounded_saving(certificate, macs, large=large, share=share)
    return certificate.model_copy(update={"saving": saving})
