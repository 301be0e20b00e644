"""The plots of a report, drawn once: as SVG whose colours the page decides, and as PNG.

Every colour is one of a few roles. In the SVG each becomes a CSS variable, so that one drawing
serves light and dark; text stays text and takes the page's font.
"""

from __future__ import annotations

import functools
import html
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from calibration.front import Single
from calibration.records import Labels
from calibration.report_figures import Changed, Confidence, Flow, Ranking, Trade
from calibration.report_labels import name_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1d2327", "#68727b", "#dde1e5"
ACCENT, SOFT, PAPER = "#0b7a75", "#a3d0cc", "#fefefd"
ROLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    ACCENT: "accent",
    SOFT: "soft",
    PAPER: "paper",
}
"""CSS variables that stand for the colours in the page."""

WIDTH, NARROW = 5.2, 4.2
"""Inches; the narrow ones stand side by side where there is room."""
CLASSES = 20
"""With bars of their own; of more, those with the most changed samples."""
DASHES = {"max-softmax": "-", "margin": "--", "entropy": ":", "p-norm": "-."}
"""By kind of score; a learned gate has long dashes."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tinysaver",
    "font.size": 9.5,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
}

Arguments = ParamSpec("Arguments")


def _styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Make a function draw in our style, which leaves matplotlib's settings as they were."""

    @functools.wraps(draw)
    def styled(*args: Arguments.args, **options: Arguments.kwargs) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*args, **options)

    return styled


@_styled
def trade_plot(trade: Trade, cascade: str, status: str) -> Figure:
    """Draw accuracy against cost.

    Parameters
    ----------
    cascade
        What the curve is, for people.
    status
        What the thresholds in force are, as ``certified``.
    """
    figure, axes = _canvas(3.7)
    scale, unit = (1e-6, "million MACs") if trade.unit == "macs" else (1e6, "microseconds")
    axes.set_xscale("log")
    _limits(axes, trade)
    for cost, accuracy in (curve.T for curve in trade.pairs.values()):
        axes.plot(cost * scale, 100 * accuracy, color=SOFT, linewidth=1)
    _front(axes, trade.front, scale, right=max(single.cost for single in trade.singles))
    axes.plot(*_percent(trade.cascade.T, scale), color=ACCENT, linewidth=2.2, label=cascade)
    for single in trade.singles:
        axes.plot(single.cost * scale, 100 * single.accuracy, "s", color=MUTED, markersize=4.5)
    name_front(axes, trade, scale, color=MUTED)
    for gear in trade.gears:
        place = gear.cost * scale, 100 * gear.accuracy
        axes.plot(*place, "o", color=PAPER, markeredgecolor=ACCENT, markersize=6)
    here = trade.here.cost * scale, 100 * trade.here.accuracy
    axes.plot(*here, "o", color=ACCENT, markersize=9, zorder=5)
    _note(axes, status, here, (-4, 9), color=ACCENT, ha="right", weight="bold")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"{unit} per image (log scale)")
    axes.set_ylabel("accuracy, %")
    _trade_legend(figure, trade, cascade)
    return figure


@_styled
def flow_plot(flows: Sequence[Flow]) -> Figure:
    """Draw which share of the samples each stage answers."""
    figure, axes = _canvas(1.35)
    n, left, narrow = flows[0].reached, 0.0, []
    for flow, colour in zip(flows, _shades(len(flows)), strict=True):
        share = 100 * flow.answered / n
        axes.barh(0, share, left=left, color=colour, height=0.6, edgecolor=PAPER)
        text = f"{flow.name} {share:.1f} %"
        if share > 2 * len(text):
            inside = INK if colour == SOFT else PAPER
            axes.text(left + share / 2, 0, text, color=inside, ha="center", va="center")
        else:
            narrow.append(text)
        left += share
    axes.text(100, 0.36, ", ".join(narrow), ha="right", va="bottom")
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.4, 0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("share of all images, by the stage that answers, %")
    return figure


@_styled
def ranking_plot(ranking: Ranking) -> Figure:
    """Draw the share of harmed samples among those that each score is surest of."""
    figure, axes = _canvas(3.3)
    for name, curve in ranking.scores.items():
        chosen = np.unique(np.linspace(0, len(curve.risk) - 1, 200).astype(int))
        used = name == ranking.used
        axes.plot(
            100 * curve.coverage[chosen], 100 * curve.risk[chosen], linestyle=_dashes(name),
            color=ACCENT if used else MUTED, linewidth=2.2 if used else 1.2,
            label=f"{name}{', used' if used else ''}  {100 * curve.aurc:.2f} %",
            zorder=3 if used else 2,
        )  # fmt: skip
    perfect = ranking.perfect
    axes.plot(100 * perfect.coverage, 100 * perfect.risk, color=SOFT, linewidth=1,
              label=f"a perfect order  {100 * perfect.aurc:.2f} %")  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"coverage: surest share of {ranking.n:,} images, %")
    axes.set_ylabel("only the large model right, %")
    axes.legend(loc="upper left", title="score and area under its curve", alignment="left")
    return figure


@_styled
def confidence_plot(facts: Confidence) -> Figure:
    """Draw a reliability diagram above a histogram of confidence."""
    from matplotlib.ticker import PercentFormatter

    figure = _figure(4.0, NARROW)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    upper.plot([0, 1], [0, 1], color=RULE, linewidth=1)
    shown = ~np.isnan(facts.mean)
    sizes = 12 + 160 * (facts.right + facts.wrong)[shown] / (facts.right + facts.wrong).max()
    upper.plot(facts.mean[shown], facts.accuracy[shown], color=ACCENT, linewidth=1)
    upper.scatter(facts.mean[shown], facts.accuracy[shown], s=sizes, color=ACCENT, zorder=3)
    upper.set_ylabel("right, %")
    upper.set_ylim(-0.03, 1.06)
    upper.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    width = np.diff(facts.edges)
    lower.bar(facts.edges[:-1], facts.right, width, align="edge", color=SOFT, label="right",
              edgecolor=PAPER, linewidth=0.5)  # fmt: skip
    lower.bar(facts.edges[:-1], facts.wrong, width, align="edge", color=INK, label="wrong",
              edgecolor=PAPER, linewidth=0.5)  # fmt: skip
    lower.set_yscale("symlog", linthresh=10)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_formatter("{x:,g}")
    lower.set_ylabel("images")
    lower.set_xlabel("confidence, %")
    lower.set_xlim(0, 1)
    lower.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    lower.legend(loc="upper left", ncols=2)
    _threshold(upper, lower, facts.threshold)
    return figure


@_styled
def classes_plot(changed: Changed, truth: Labels, names: Sequence[str]) -> Figure:
    """Draw how many samples of each class the cascade harms and helps, of at most `CLASSES`."""
    from matplotlib.ticker import MaxNLocator

    harmed = np.bincount(truth[changed.harmed], minlength=len(names))
    helped = np.bincount(truth[changed.helped], minlength=len(names))
    shown = np.sort(np.argsort(-(harmed + helped), kind="stable")[:CLASSES])
    figure, axes = _canvas(max(1.6, 0.7 + 0.22 * len(shown)))
    place = np.arange(len(shown))
    axes.barh(place, -harmed[shown], color=INK, height=0.7)
    axes.barh(place, helped[shown], color=ACCENT, height=0.7)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(place, [textwrap.shorten(names[label], 28) for label in shown])
    axes.invert_yaxis()
    most = max(1, harmed.max(), helped.max()) * 1.1
    axes.set_xlim(-most, most)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    axes.set_xlabel("only the large model right   |   only the cascade right, images")
    axes.grid(visible=False, axis="y")
    return figure


@_styled
def agreement_plot(counts: Mapping[str, int], saver: str, large: str) -> Figure:
    """Draw on how many samples only one of two models, or neither, is right."""
    figure, axes = _canvas(1.7)
    names = {"large": f"only {large}", "saver": f"only {saver}", "neither": "neither"}
    colours = (INK, ACCENT, SOFT)
    values = [counts[key] for key in names]
    axes.barh(range(3), values, color=colours, height=0.7)
    for place, value in enumerate(values):
        _note(axes, f"{value:,}", (value, place), (4, 0), va="center")
    axes.set_yticks(range(3), names.values())
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("images")
    axes.grid(visible=False, axis="y")
    return figure


def as_svg(figure: Figure, name: str, description: str) -> str:
    """Return a drawing as an SVG element for the page.

    Parameters
    ----------
    name
        Unique in the page: identifiers inside begin with it.
    description
        For those who cannot see it.
    """
    import matplotlib as mpl

    stream = io.StringIO()
    figure.patch.set_visible(False)
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    figure.patch.set_visible(True)
    text = stream.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, role in ROLES.items():
        text = text.replace(colour, f"var(--{role})")
    label = html.escape(description, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def as_png(figure: Figure) -> bytes:
    """Return a drawing as the content of a PNG file, in the light colours."""
    import matplotlib as mpl

    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


def _figure(height: float, width: float = WIDTH) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = _figure(height)
    axes = figure.add_subplot()
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    return figure, axes


def _percent(curve: Any, scale: float) -> tuple[Any, Any]:
    cost, accuracy = curve
    return cost * scale, 100 * accuracy


def _note(axes: Axes, text: str, place: Any, shift: tuple[int, int], **style: Any) -> None:
    axes.annotate(text, place, xytext=shift, textcoords="offset points", **style)


def _front(axes: Axes, front: Sequence[Single], scale: float, *, right: float) -> None:
    cost = np.array([*(single.cost for single in front), right * 2]) * scale
    accuracy = 100 * np.array([*(single.accuracy for single in front), front[-1].accuracy])
    axes.step(cost, accuracy, where="post", color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)))


def _limits(axes: Axes, trade: Trade) -> None:
    """Show every single model, and room for their names."""
    scale = 1e-6 if trade.unit == "macs" else 1e6
    costs = [single.cost for single in trade.singles]
    axes.set_xlim(min(costs) * scale / 1.4, max(costs) * scale * 2.2)
    values = [single.accuracy for single in trade.singles] + [trade.here.accuracy]
    margin = 0.08 * max(max(values) - min(values), 0.01)
    axes.set_ylim(100 * (min(values) - 1.5 * margin), 100 * (max(values) + 2 * margin))


def _trade_legend(figure: Figure, trade: Trade, cascade: str) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=ACCENT, linewidth=2.2, label=cascade),
        Line2D([], [], color=MUTED, linestyle=(0, (4, 2)), marker="s", markersize=4,
               label="single models and their static front"),
    ]  # fmt: skip
    if trade.pairs:
        entries.insert(1, Line2D([], [], color=SOFT, label="one saver, then the large one"))
    if trade.gears:
        ring = Line2D([], [], color=PAPER, marker="o", linestyle="", label="gears")
        ring.set_markeredgecolor(ACCENT)
        entries.append(ring)
    figure.legend(handles=entries, loc="outside upper left", ncols=2, fontsize=8.5)


def _threshold(upper: Axes, lower: Axes, threshold: float | None) -> None:
    for axes in (upper, lower):
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        if threshold is not None:
            axes.axvline(threshold, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    if threshold is not None:
        _note(upper, "kept →", (threshold, 0.02), (4, 0), color=MUTED, fontsize=9)


def _dashes(name: str) -> Any:
    return next((line for kind, line in DASHES.items() if name.startswith(kind)), (0, (8, 3)))


def _shades(stages: int) -> list[str]:
    """Return a colour for each stage: the last is ink, those before take turns."""
    return [(SOFT, ACCENT)[index % 2] for index in range(stages - 1)] + [INK]
