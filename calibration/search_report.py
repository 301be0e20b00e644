"""What a search found, as tables for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from calibration.candidates import names_of
from calibration.chains import Chain
from calibration.costs import MacCosts
from calibration.front import cheapest_reaching
from calibration.options import Trial
from calibration.ranking import Estimate
from calibration.saver_search import Found, Ranked
from calibration.scores import Choice, words
from calibration.screen import Candidate, Options
from runtime.schema import Combination, Score, Threshold

LABEL = "selection estimates, not certified"
UNITS = {"time": "seconds", "macs": "macs", "joules": "joules"}


def show(console: Console, found: Found) -> None:
    """Print the ranking, the winner, the static front, and the paper's scores."""
    large = found.selection.pool.large
    console.print(
        f"{LABEL.capitalize()}: {len(found.ranking)} cascades against {large} alone, which costs "
        f"{_cost(found, found.alone)} a sample",
        _ranking(found),
        "cost: a sample's, at the forecast certified thresholds; ~ by a normal approximation only. "
        "95 %: paired bootstrap over the selection samples. *: with options, see below.",
        "",
        *_verdict(found),
        "",
        *_options(found),
        "Single models, and the steps of their static front; accuracy on the selection split",
        _front(found),
        "",
        "The paper's score on these records: delta C = s/B - r, in multiply-accumulates",
        _paper(found),
        *(f"Left out: {name}: {reason}." for name, reason in found.left_out.items()),
        sep="\n",
        highlight=False,
    )


def summary(found: Found) -> dict[str, Any]:
    """Return everything that was found, for JSON."""
    return {
        "label": LABEL,
        "unit": UNITS[found.costs.unit],
        "large": {"name": found.selection.pool.large, "cost": found.alone},
        "screened": len(found.ranking),
        "pays": bool(found.paying),
        "ranking": [_described(found, item) for item in found.ranking],
        "front": [single._asdict() for single in found.front],
        "singles": [single._asdict() for single in found.singles],
        "paper": [{**score._asdict(), "enabled": score.enabled} for score in found.paper],
        "left_out": found.left_out,
        "scores": {name: _chosen(choice) for name, choice in found.choices.items()},
        "options_tried": [_tried(trial) for trial in found.trials],
    }


def _described(found: Found, item: Ranked) -> dict[str, Any]:
    facts = {
        "stages": item.names,
        "offsets": item.candidate.offsets,
        **_rule(item.candidate.options),
        "cost": item.cost,
        "interval": item.interval,
        "to_best": item.to_best,
        "saved": 1 - item.cost / found.alone,
        "forecast": None,
    }
    estimate = item.estimate
    if estimate:
        levels = map(str, estimate.forecast.levels)
        facts["forecast"] = {
            "thresholds": estimate.thresholds,
            "escalation_rates": estimate.escalation_rates,
            "accuracy": estimate.accuracy,
            "cost_quantiles": dict(zip(levels, estimate.costs, strict=True)),
            "macs_saved": _macs_saved(found, estimate),
            "refused": estimate.forecast.refused / estimate.forecast.draws,
        }
    return facts


def _rule(options: Options) -> dict[str, Any]:
    return {
        "scores": [_score(score) for score in options.scores],
        "class_strength": options.strength,
        "combination": options.combination and options.combination.model_dump(),
    }


def _score(score: Score) -> dict[str, Any]:
    return score.model_dump(exclude_none=True)


def _chosen(choice: Choice) -> dict[str, Any]:
    return {
        "chosen": _score(choice.score),
        "best": _score(choice.best.score),
        "area": choice.best.area,
        "area_max_softmax": choice.plain,
        "interval": choice.interval,
        "tried": choice.tried,
    }


def _tried(trial: Trial) -> dict[str, Any]:
    return {
        "stages": trial.names,
        "kind": trial.kind,
        **_rule(trial.options),
        "tried": trial.tried,
        "ratio": trial.ratio,
        "interval": trial.interval,
        "promising": trial.promising,
    }


def _ranking(found: Found) -> Table:
    table = _table("cascade", "cost", "95 %", "less", "MACs saved", "to the best")
    for item in found.ranking:
        low, high = item.interval
        table.add_row(
            names_of(item.names) + ("" if _is_plain(item.candidate.options) else " *"),
            ("" if item.estimate else "~ ") + _cost(found, item.cost),
            f"{_number(found, low)}-{_number(found, high)}",
            f"{found.alone / item.cost:.1f}x",
            f"{_macs_saved(found, item.estimate):.1%}" if item.estimate else "",
            "{:.2f}-{:.2f}".format(*item.to_best),
        )
    return table


def _verdict(found: Found) -> Iterator[str]:
    large = found.selection.pool.large
    if not found.paying:
        tried = len(found.ranking)
        why = (
            f"of {tried} cascades none is expected to cost less than {large} alone"
            if tried
            else f"there is no cascade to compare with {large} alone"
        )
        yield (
            f"No saver pays here: {why}. Use it alone, or add cheaper or more accurate savers to "
            "the pool."
        )
        return
    best = found.paying[0]
    yield (
        f"Best: {names_of(best.names)}, thresholds "
        + " / ".join(map(_threshold, best.thresholds))
        + ", sends on "
        + " / ".join(f"{rate:.1%}" for rate in best.escalation_rates)
        + f"; accuracy {best.accuracy:.2%}, {large} {found.selection.pool.accuracy(large):.2%}."
    )
    single = cheapest_reaching(found.front, best.accuracy)
    if single:
        yield (
            f"The cheapest single model as accurate, {single.name}, costs "
            f"{single.cost / best.cost:.1f} times as much."
        )
    yield from _against_the_paper(found, best)


def _against_the_paper(found: Found, best: Estimate) -> Iterator[str]:
    pairs = [item.names[0] for item in found.ranking if len(item.names) == 2]
    enabled = [score.saver for score in found.paper if score.enabled]
    if not pairs or not found.paper:
        return
    theirs = enabled[0] if enabled else "none"
    verdict = "the same" if pairs[0] == theirs else f"another, {theirs}"
    yield f"As the only saver we would take {pairs[0]}; the paper's delta C takes {verdict}."


def _options(found: Found) -> Iterator[str | Table]:
    """Yield what the best cascade does beside the plain rule, and what was tried on it."""
    if found.paying:
        best = found.paying[0]
        yield f"Its gates read: {_rule_words(best.candidate)}. Tried on it, by the screen:"
        for trial in found.trials:
            if trial.names == best.names:
                yield _trial_words(trial)
        yield ""
    if found.choices:
        yield (
            "The score of least area under the curve of harm against coverage (in 1/10,000); "
            "~ is not beyond chance less than max-softmax, which then stays"
        )
        yield _scores(found)
        yield ""


def _scores(found: Found) -> Table:
    table = _table("saver", "score", "area", "max-softmax", "less, 95 %")
    for name, choice in found.choices.items():
        numbers = (choice.best.area, choice.plain, *choice.interval)
        area, plain, low, high = (f"{10_000 * number:.1f}" for number in numbers)
        shown = words(choice.best.score) + ("" if choice.score == choice.best.score else " ~")
        table.add_row(name, shown, area, plain, f"{low} to {high}")
    return table


def _rule_words(candidate: Candidate) -> str:
    options = candidate.options
    text = " / ".join(words(score) for score in options.scores)
    if options.strength:
        text += f", thresholds by class (strength {options.strength:g})"
    if options.combination:
        text += f", {_combination_words(options.combination)}"
    return text


def _trial_words(trial: Trial) -> str:
    options = trial.options
    what = {
        "scores": " / ".join(words(score) for score in options.scores),
        "classes": f"thresholds by class (strength {options.strength:g})",
        "combination": options.combination and _combination_words(options.combination),
    }[trial.kind]
    worth = "worth a forecast" if trial.promising else "not beyond chance"
    low, high = trial.interval
    return (
        f"  {what}: {trial.ratio:.2f} of the cost ({low:.2f}-{high:.2f}), the best of "
        f"{trial.tried}, {worth}"
    )


def _combination_words(combination: Combination) -> str:
    return f"{combination.weight:g} of {combination.stage}'s logits added to the large model's"


def _is_plain(options: Options) -> bool:
    return options.plain_scores and not options.strength and options.combination is None


def _threshold(threshold: Threshold) -> str:
    if isinstance(threshold, list):
        return f"{min(threshold):.3f} to {max(threshold):.3f} by class"
    return f"{threshold:.3f}"


def _front(found: Found) -> Table:
    table = _table("model", "cost", "accuracy", "")
    on_front = {single.name for single in found.front}
    for single in found.singles:
        step = "step" if single.name in on_front else "beaten"
        table.add_row(single.name, _cost(found, single.cost), f"{single.accuracy:.2%}", step)
    return table


def _paper(found: Found) -> Table:
    table = _table("saver", "delta C", "r", "at threshold", "used")
    for score in found.paper:
        used = "yes" if score.enabled else "no"
        cells = f"{score.delta_c:.3f}", f"{score.exit_ratio:.3f}", f"{score.threshold:.3f}"
        table.add_row(score.saver, *cells, used)
    return table


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _macs_saved(found: Found, estimate: Estimate) -> float:
    cards, large = found.selection.cards, found.selection.pool.large
    macs = MacCosts({name: card.macs for name, card in cards.items()})
    names: Chain = estimate.names
    return 1 - float(macs.cascade(names, np.array(estimate.escalation_rates))) / macs.alone(large)


def _cost(found: Found, cost: float) -> str:
    unit = {"time": "us", "macs": "M", "joules": "uJ"}[found.costs.unit]
    return f"{_number(found, cost)} {unit}"


def _number(found: Found, cost: float) -> str:
    return f"{cost / 1e6:.2f}" if found.costs.unit == "macs" else f"{1e6 * cost:.1f}"
