"""What was reproduced, as Markdown for docs/tinysaver.md and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from calibration.costs import Costs
from calibration.front import Single, cheapest_reaching
from calibration.report_words import COST_NAMES, amount, percent, points, standing_words
from calibration.reproduction import HALF_A_POINT, TEST, Line
from calibration.reproduction_study import Ranked, Study
from calibration.scores import PLAIN, words
from runtime.measurement import paired_interval
from runtime.schema import Score, Threshold


def markdown(studies: Sequence[Study], costs: Sequence[Costs], *, device: str | None) -> str:
    """Return all studies as Markdown.

    Parameters
    ----------
    costs
        Multiply-accumulates, and times if they were measured.
    device
        That was timed.
    """
    parts = [part for study in studies for part in _study(study, costs)]
    parts += [_front(studies[0])] if studies else []
    if device:
        parts.append(
            f"Times: inference sessions alone, on {device}; the first stage at full batches, later "
            "ones at as many images as reach them, single models at their best batch."
        )
    return "\n\n".join(parts) + "\n"


def _study(study: Study, costs: Sequence[Costs]) -> Iterator[str]:
    yield (
        f"### `{study.large}`: {study.macs / 1e6:.3g} million MACs, "
        f"{percent(study.accuracy)} of {study.n:,} test images"
    )
    yield _lines(study, costs)
    yield " ".join([*_transfer(study), *_oracle(study, costs)])
    yield _scores(study)
    yield " ".join(_choices(study))
    yield " ".join(map(standing_words, study.standings))


def _lines(study: Study, costs: Sequence[Costs]) -> str:
    heads = ["thresholds by", "chosen on", "cascade", "MACs saved"]
    heads += ["times as fast"] if len(costs) > 1 else []
    rows = []
    for line in study.lines:
        saved = percent(line.saved(costs[0]), 1) + _bound(line, study)
        faster = [_faster(line, one) for one in costs[1:]]
        shown = (_way(line, study), _origin(line, study), _cascade(line), saved, *faster)
        rows.append([*shown, _drop(line, study.n)])
    single = _as_accurate(study)
    if single:
        gap = 100 * (study.accuracy - single.accuracy)
        faster = [f"{one.alone(study.large) / one.alone(single.name):.1f}x" for one in costs[1:]]
        saved = percent(1 - single.cost / study.macs, 1)
        name = "cheapest single model as accurate as ours"
        rows.append([name, "-", single.name, saved, *faster, f"{gap:.2f}"])
    return _table([*heads, "drop on test, points"], rows)


def _way(line: Line, study: Study) -> str:
    lost = "" if line.drop is None else f"at most {points(line.drop)}"
    certificate = study.certificate
    confidence = percent(1 - certificate.delta) if certificate else ""
    return {
        "oracle": f"the paper's sweep, {lost}",
        "sweep": f"the paper's sweep, {lost}",
        "first violation": "the paper's first violation",
        "certified": f"**ours, certified**: {lost} with {confidence} confidence",
        "forecast": f"ours, forecast, not certified: {lost}",
    }[line.way]


def _origin(line: Line, study: Study) -> str:
    if line.chosen_on == TEST:
        return "**test itself**"
    certificate = study.certificate
    if line.way == "certified" and certificate:
        return f"{line.chosen_on}, then {certificate.n:,} others"
    return line.chosen_on


def _bound(line: Line, study: Study) -> str:
    saving = study.certificate.saving if study.certificate else None
    if saving is None or line.way != "certified":
        return ""
    return f" (certified: at least {percent(saving.lower_bound, 1)})"


def _cascade(line: Line) -> str:
    scores = line.scores or (PLAIN,) * len(line.thresholds)
    gates = [_stage(*gate) for gate in zip(line.names, line.thresholds, scores, strict=False)]
    added = line.combination
    last = f" + {added.weight:g} {added.stage}" if added else ""
    return " → ".join([*gates, line.names[-1] + last])


def _stage(name: str, threshold: Threshold, score: Score) -> str:
    by = "" if score == PLAIN else f" {words(score)}"
    if isinstance(threshold, list):
        return f"{name} ({min(threshold):.3f} to {max(threshold):.3f}{by})"
    return f"{name} ({threshold:.3f}{by})"


def _drop(line: Line, n: int) -> str:
    drop = 100 * (line.harm - line.help) / n
    if line.chosen_on == TEST:
        return f"{drop:.2f}"
    low, high = paired_interval(line.harm, line.help, n)
    return f"{drop:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def _faster(line: Line, costs: Costs) -> str:
    return f"{1 / (1 - line.saved(costs)):.1f}x" if line.is_counted(costs) else ""


def _transfer(study: Study) -> Iterator[str]:
    carried = [line for line in study.lines if line.way == "sweep"]
    if carried:
        found = " and ".join(
            f"{100 * (line.harm - line.help) / study.n:.2f} where it was chosen on {line.chosen_on}"
            for line in carried
        )
        allowed = carried[0].drop or 0.0
        yield f"The sweep that was to lose {100 * allowed:g} points loses {found}."


def _oracle(study: Study, costs: Sequence[Costs]) -> Iterator[str]:
    theirs = next(
        line for line in study.lines if line.way == "oracle" and line.drop == HALF_A_POINT
    )
    best = study.oracle
    if best.names == theirs.names:
        yield "No other saver would save more at half a point, even chosen on the test split."
    else:
        yield (
            f"Delta C's saver is not the one that saves most by the paper's own protocol: at half "
            f"a point {best.names[0]} saves {percent(best.saved(costs[0]), 1)}, {theirs.names[0]} "
            f"{percent(theirs.saved(costs[0]), 1)}."
        )


def _scores(study: Study) -> str:
    splits = list(study.scores)
    by_saver = {split: {s.saver: s for s in scores} for split, scores in study.scores.items()}
    costs = {pair.names[0]: pair.cost for pair in study.pairs}
    rows = []
    for score in study.scores[splits[-1]]:
        name = score.saver
        shown = [
            _marked(
                f"{s.delta_c:.3f} ({s.exit_ratio:.3f} at {s.threshold:.3f})",
                best=s == study.scores[split][0],
            )
            for split in splits
            for s in [by_saver[split][name]]
        ]
        cost = amount(study.unit, costs[name]) if name in costs else ""
        cost = _marked(cost, best=bool(costs) and name == next(iter(costs)))
        rows.append([name, f"{score.delta_c + score.exit_ratio:.3f}", *shown, cost])
    heads = ["saver", "s/B", *(f"delta C (r at t): {split}" for split in splits)]
    return _table([*heads, "our expected cost"], rows)


def _marked(text: str, *, best: bool) -> str:
    return f"**{text}**" if best and text else text


def _choices(study: Study) -> Iterator[str]:
    first = {split: scores[0].saver for split, scores in study.scores.items()}
    yield f"Delta C takes {_listed([f'{name} on {split}' for split, name in first.items()])}."
    kind = COST_NAMES[study.unit]
    if not study.pairs:
        yield "By our forecast no saver can be certified here."
        return
    ours, theirs = study.pairs[0], first.get("selection", first[TEST])
    if ours.names[0] == theirs:
        yield f"By {kind} at the certified point we would take the same, {theirs}."
    else:
        cost = next((pair.cost for pair in study.pairs if pair.names[0] == theirs), None)
        against = f" against {amount(study.unit, cost)} with {theirs}" if cost else ""
        yield (
            f"By {kind} at the certified point we take another, {ours.names[0]}: "
            f"{amount(study.unit, ours.cost)} an image expected{against}."
        )
    yield from _longer(study, ours)


def _longer(study: Study, pair: Ranked) -> Iterator[str]:
    best = study.best
    if best is None:
        yield f"No cascade is expected to cost less than {study.large} alone."
    elif len(best.names) > 2:
        yield (
            f"The best of all lengths is {' → '.join(best.names)}: "
            f"{amount(study.unit, best.cost)}, {percent(1 - best.cost / pair.cost, 0)} less."
        )


def _front(study: Study) -> str:
    steps = [f"{s.name} {percent(s.accuracy)} at {s.cost / 1e6:.3g} M" for s in study.front]
    return f"The static front of single models on the test split: {', '.join(steps)} MACs."


def _as_accurate(study: Study) -> Single | None:
    ours = study.lines[-1]
    if ours.way not in ("certified", "forecast"):
        return None
    accuracy = study.accuracy - (ours.harm - ours.help) / study.n
    return cheapest_reaching(study.front, accuracy - 1e-12)


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + items[-1]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
