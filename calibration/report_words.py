"""What the plots of a report mean for its bundle, in short sentences computed from its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from calibration.front import cheapest_reaching
from calibration.records import Labels
from calibration.report_figures import Changed, Confidence, Flow, Ranking, Trade
from calibration.scores import words as score_words
from calibration.standing import GOAL, Standing
from runtime.certification import Certification
from runtime.schema import CascadeSpec, Certificate, Setting, Threshold

COST_NAMES = {
    "macs": "multiply-accumulates",
    "time": "measured time",
    "joules": "energy",
    "wall clock": "the wall clock",
}
RARE = 0.01
"""Share of draws below which a single model is not worth naming."""
CLOSE = 0.01
"""Relative difference of areas below which two scores are called equally good."""
MEANING = {
    "certified": "It covers exactly the cascade of this report.",
    "transferred": "It was computed with another engine: here it is carried over, not proven.",
    "overridden": "The thresholds in force are not the certified ones, so it does not cover them.",
}


def percent(value: float, digits: int = 2) -> str:
    """Return a fraction in percent."""
    return f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """Return a difference of accuracies in percentage points, exactly as claimed."""
    return f"{100 * value:.3g} points"


def amount(unit: str, cost: float) -> str:
    """Return a cost per image with its unit."""
    if unit == "macs":
        return f"{cost / 1e6:.3g} M MACs"
    return f"{1e6 * cost:.3g} µs" if cost < 1e-3 else f"{1e3 * cost:.3g} ms"


def standing_words(found: Standing) -> str:
    """Say what a cascade costs beside the cheapest single model as accurate."""
    kind = f"By {COST_NAMES[found.unit]}"
    if found.single is None:
        text = f"{kind} no single model is as accurate at any cost"
    else:
        text = (
            f"{kind} the cascade costs {percent(found.share, 1)} of {found.single}, the cheapest "
            f"single model as accurate ({amount(found.unit, found.cost)} against "
            f"{amount(found.unit, found.single_cost)})"
        )
    low, high = found.interval
    limit = percent(GOAL, 0)
    verdict = {
        "yes": f"at most {limit}: yes",
        "not beyond chance": f"at most {limit} on these images, but not beyond chance",
        "no": f"at most {limit}: no",
    }[found.verdict]
    return (
        f"{text}; 95 % interval {percent(low, 1)} to {percent(high, 1)}{_drawn(found)}; {verdict}."
    )


def _drawn(found: Standing) -> str:
    """Return which single models the draws of the interval compared with, if several."""
    often = {name: share for name, share in found.drawn.items() if share >= RARE}
    if len(often) < 2:
        return ""
    named = sorted(often, key=lambda name: -often[name])
    shares = ", ".join(f"{name} in {percent(often[name], 0)}" for name in named)
    return f", the cheapest being {shares} of the draws"


def share_words(found: Standing) -> str:
    """Say how far chance decides what a cascade costs beside single models."""
    if not found.drawn:
        return "No draw of as many images makes a single model as accurate."
    low, high = found.interval
    likely = max(found.drawn, key=lambda name: found.drawn[name])
    often = f", which is {likely} in {percent(found.drawn[likely], 0)} of the draws"
    return (
        f"Over images drawn anew the cascade costs {percent(low, 1)} to {percent(high, 1)} of the "
        f"cheapest single model as accurate (95 %, paired bootstrap){often}."
    )


def split_note(name: str, n: int) -> str:
    """Return what may be read from numbers of a split."""
    what = f"Every plot is of the {name} split: {n:,} images."
    if name == "test":
        return f"{what} Reporting only: nothing may be chosen from this page."
    if name == "selection":
        return (
            f"{what} Thresholds and models were chosen on this split, so its numbers lean to the "
            "hopeful side; only the certificate promises anything."
        )
    return f"{what} What is chosen from this page must be certified on other images."


def trade_words(trade: Trade, large: str) -> Iterator[str]:
    """Say what the cascade costs beside single models."""
    alone = next((one for one in trade.singles if one.name == large), None)
    here = trade.here
    sentence = (
        f"At its thresholds the cascade is right on {percent(here.accuracy)} of the images for "
        f"{amount(trade.unit, here.cost)} each"
    )
    if alone:
        sentence += (
            f"; {large} alone is right on {percent(alone.accuracy)} for "
            f"{amount(trade.unit, alone.cost)}, {alone.cost / here.cost:.1f} times as much"
        )
    yield sentence + "."
    single = cheapest_reaching(trade.front, here.accuracy)
    if single is None:
        yield "No single model of the pool is as accurate."
    elif single.cost > here.cost:
        yield (
            f"The cheapest single model that is as accurate is {single.name}, at "
            f"{single.cost / here.cost:.1f} times its cost."
        )
    else:
        yield (
            f"{single.name} alone is as accurate and costs no more "
            f"({amount(trade.unit, single.cost)}): here the cascade does not pay."
        )
    beaten = [one.name for one in trade.singles if one not in trade.front]
    if beaten:
        yield f"Off the front, since a model as cheap is as accurate: {', '.join(beaten)}."


def flow_words(flows: Sequence[Flow]) -> Iterator[str]:
    """Say what each gate sends on, and what the answers of each stage are worth."""
    n, large = flows[0].reached, flows[-1].name
    for flow, after in pairwise(flows):
        yield (
            f"The gate after {flow.name} sends on {after.reached:,} of {flow.reached:,} images, "
            f"{percent(after.reached / n, 1)} of all."
        )
        if flow.answered:
            gap = (flow.right - flow.large_right) / flow.answered
            side = "more" if gap > 0 else "fewer"
            against = f"{abs(flow.right - flow.large_right):,} {side} than" if gap else "as many as"
            yield (
                f"Of the {flow.answered:,} that {flow.name} keeps it gets {flow.right:,} right, "
                f"{against} {large} would."
            )


def ranking_words(ranking: Ranking) -> Iterator[str]:
    """Say which score puts errors last best."""
    areas = {name: curve.aurc for name, curve in ranking.scores.items()}
    best = min(areas, key=lambda name: areas[name])
    used = areas[ranking.used]
    if best == ranking.used:
        yield f"The gate's own score, {best}, orders these images best."
    elif used <= areas[best] * (1 + CLOSE):
        yield f"The gate's score, {ranking.used}, is as good as any: within 1 % of {best}."
    else:
        gain = 1 - areas[best] / used
        yield (
            f"{best} orders these images better than the gate's {ranking.used}: "
            f"{percent(gain, 1)} less area."
        )
    half = int(np.searchsorted(ranking.scores[ranking.used].coverage, 0.5))
    risk = ranking.scores[ranking.used].risk
    yield (
        f"Kept, the surest half would lose {percent(float(risk[half]))}, all of them "
        f"{percent(risk[-1])}."
    )


def confidence_words(facts: Confidence) -> str:
    """Say how far a stage's confidence can be believed."""
    total = facts.right + facts.wrong
    claimed = float(np.nansum(facts.mean * total) / total.sum())
    accuracy = float(facts.right.sum() / total.sum())
    side = "too sure of itself" if claimed > accuracy else "more often right than it says"
    if abs(claimed - accuracy) < 0.005:
        side = "about as sure as it is right"
    return (
        f"{facts.stage} is {side}: {percent(claimed, 1)} mean confidence, "
        f"{percent(accuracy, 1)} right; calibration error {percent(facts.error, 1)}."
    )


def changed_words(changed: Changed, large: str) -> Iterator[str]:
    """Say how the cascade's answers differ in worth from the large model's."""
    harmed, helped = len(changed.harmed), len(changed.helped)
    low, high = changed.interval
    yield (
        f"On {harmed:,} images only {large} is right, on {helped:,} only the cascade: a drop of "
        f"{100 * changed.drop:.2f} points on these {changed.n:,} "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f})."
    )


def hardest_class(changed: Changed, truth: Labels, names: Sequence[str]) -> str:
    """Say which class is harmed most."""
    if not len(changed.harmed):
        return "No image is harmed."
    counts = np.bincount(truth[changed.harmed], minlength=len(names))
    worst = int(counts.argmax())
    return f"Most of the harmed are of class {names[worst]}: {counts[worst]} of {counts.sum()}."


def agreement_words(counts: Mapping[str, int], saver: str, large: str) -> str:
    """Say where a saver and the large model are right."""
    n = sum(counts.values())
    return (
        f"Both are right on {percent(counts['both'] / n, 1)}. {large} alone would rescue "
        f"{counts['large']:,} images from {saver}, and spoil {counts['saver']:,}; on "
        f"{counts['neither']:,} neither is right, so sending those on is wasted."
    )


def certificate_words(certification: Certification, names: Sequence[str]) -> Iterator[str]:
    """Say what is promised, from what, and what it covers."""
    certificate = certification.certificate
    if certificate is None:
        yield (
            f"Nothing is promised: {certification.state}. The thresholds in force were chosen, "
            "not certified. Certify them with python -m calibration.threshold."
        )
        return
    yield _promise(certificate, names[-1])
    yield _evidence(certificate, names[-1])
    rates = " and ".join(
        f"{name} sent on {percent(rate, 1)}"
        for name, rate in zip(names, certificate.escalation_rates, strict=False)
    )
    yield f"On those images {rates} of all."
    if certificate.saving:
        yield (
            f"At least {percent(certificate.saving.lower_bound, 1)} of the multiply-accumulates of "
            f"{names[-1]} are saved, with {percent(1 - certificate.saving.delta, 0)} confidence of "
            "its own."
        )
    yield from _covered(certificate)
    yield MEANING.get(
        certification.state, f"For the cascade of this report it does not hold: {certification}."
    )
    yield (
        "It assumes that new images are drawn like the certifying ones. No certificate survives a "
        "change of scene, camera or light."
    )


def rule_words(spec: CascadeSpec, setting: Setting) -> Iterator[str]:
    """Say what gates read and compare with, and what is combined."""
    for stage, gate, threshold in zip(spec.stages, spec.gates, setting.thresholds, strict=False):
        yield (
            f"The gate after {stage.name} keeps what is above {threshold_words(threshold)} by "
            f"{score_words(gate.score)}."
        )
    if spec.combination:
        yield (
            f"What reaches {spec.stages[-1].name} is answered by its logits and "
            f"{spec.combination.weight:g} times those of {spec.combination.stage}."
        )


def threshold_words(threshold: Threshold) -> str:
    """Return a gate's threshold for people."""
    if isinstance(threshold, list):
        return f"{min(threshold):.4f} to {max(threshold):.4f}, by predicted class,"
    return f"{threshold:.4f}"


def _promise(certificate: Certificate, large: str) -> str:
    what = {
        "accuracy_drop": f"the cascade's accuracy is at most {points(certificate.epsilon)} below "
        f"that of {large} alone",
        "disagreement": f"at most {percent(certificate.epsilon)} of the cascade's answers are "
        f"unlike those of {large} alone",
    }[certificate.quantity]
    return (
        f"With a confidence of {percent(1 - certificate.delta)} (epsilon {certificate.epsilon:g}, "
        f"delta {certificate.delta:g}), {what}."
    )


def _evidence(certificate: Certificate, large: str) -> str:
    drop = (certificate.harm - certificate.help) / certificate.n
    if certificate.quantity == "disagreement":
        return (
            f"It comes from n = {certificate.n:,} unlabelled images, on {certificate.harm:,} of "
            f"which the answers differ."
        )
    return (
        f"It comes from n = {certificate.n:,} labelled images: on {certificate.harm:,} only "
        f"{large} was right (harm), on {certificate.help:,} only the cascade (help), "
        f"a drop of {100 * drop:.2f} points there."
    )


def _covered(certificate: Certificate) -> Iterator[str]:
    covers = certificate.covers
    if covers is None:
        yield "It does not say which models and data it covers."
        return
    stages = ", ".join(
        f"{item.name} ({item.form}, {item.engine}, {item.model_sha256[:8]})"
        for item in covers.stages
    )
    data = covers.data_sha256[:8]
    yield f"It covers these models and their preprocessing: {stages}; certified on data {data}."
    yield (
        "None of those images had trained, selected or calibrated anything: this was checked."
        if covers.provenance == "checked"
        else "Whether those images had trained or selected something was not checked."
    )
