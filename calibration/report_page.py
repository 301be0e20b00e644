"""The page of a report: one HTML text that needs no other file and no network."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from string import Template

from calibration.report_content import Content, Picture, Plot
from calibration.report_gears import gear_cells, gear_rows, gear_words
from calibration.report_pictures import LOSSLESS
from calibration.report_words import amount, percent, split_note

GROUPS = {
    "saver": "Only {saver} is right: sending these on does harm",
    "large": "Only {large} is right: what a gate should send on",
    "neither": "Neither is right: sending these on is wasted",
    "both": "Both are right: what {saver} should keep",
}
READING = {
    "cost": "Further up and further left is better. The dashed steps are what single models reach: "
    "between two of them there is none.",
    "scores": "A gate should keep the images that sending on would not mend. Ordered by a score, "
    "surest first: of how many so far is only the large model right? Lower is better, and the area "
    "under the curve is what scores are chosen by.",
    "confidence": "Above: on the grey line, confidence is the share that is right; larger dots "
    "are more images. Below: how many images there are, on a log scale.",
}
"""How the plots of a section are read, whatever the bundle."""
SECTIONS = {
    "promise": "What is promised",
    "cost": "Accuracy and cost",
    "gates": "What each gate sends on",
    "scores": "Which score knows what to send on",
    "confidence": "How far confidence can be believed",
    "agreement": "Who is right where",
    "harmed": "What the cascade spoils",
    "models": "All models",
}


def page(content: Content) -> str:
    """Return the whole page."""
    resource = importlib.resources.files("calibration") / "report_template.html"
    crisp = max(content.pictures.size) <= LOSSLESS
    return Template(resource.read_text("utf-8")).substitute(
        title=_html(f"{content.name}: {content.chain}"),
        rendering="pixelated" if crisp else "auto",
        body="\n".join(_body(content)),
    )


def _body(content: Content) -> Iterator[str]:
    yield f"<header><h1>{_html(content.chain)}</h1>"
    yield f'<p class="lead">{_html(content.name)}: {_html(content.description)}</p>'
    yield _tiles(content.tiles)
    yield f'<p class="note">{_html(split_note(content.split, content.n))}</p>'
    links = (f'<a href="#{key}">{title}</a>' for key, title in SECTIONS.items())
    yield f"<nav>{' '.join(links)}</nav></header><main>"
    parts = {
        "promise": _promise(content),
        "cost": _costs(content),
        "gates": _gates(content),
        "scores": _plots(content, "scores"),
        "confidence": _plots(content, "confidence", paired=True),
        "agreement": _agreement(content),
        "harmed": _harmed(content),
        "models": _models(content),
    }
    for key, title in SECTIONS.items():
        yield f'<section id="{key}"><h2>{title}</h2>'
        yield from parts[key]
        yield "</section>"
    yield f"</main><footer>{_html(content.origin)}</footer>"


def _tiles(tiles: Iterable[tuple[str, str]]) -> str:
    cells = (f"<div><b>{_html(value)}</b><span>{_html(text)}</span></div>" for value, text in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _promise(content: Content) -> Iterator[str]:
    first, *rest = content.promise
    yield f'<p class="promise">{_html(first)}</p>'
    yield _text(rest)


def _costs(content: Content) -> Iterator[str]:
    yield from _plots(content, "cost")
    state = content.certification.state
    rows = gear_rows(content.material, content.trades, state)
    if len(rows) == 1 and not rows[0].disagreement:
        return
    yield "<h3>Gears</h3>"
    yield _text(gear_words(rows, certified=state == "certified"))
    units = [trade.unit for trade in content.trades]
    heads = ["gear", "thresholds", "sent on", "accuracy", "drift bound"]
    cells = [[row.name, *gear_cells(row), *map(amount, units, row.costs)] for row in rows]
    yield _table([*heads, *("MACs" if unit == "macs" else unit for unit in units)], cells)


def _plots(content: Content, section: str, *, paired: bool = False) -> Iterator[str]:
    plots = [plot for plot in content.plots if plot.section == section]
    yield f'<p class="reading">{_html(READING[section])}</p>' if section in READING else ""
    yield '<div class="pair">' if paired else ""
    for plot in plots:
        yield "<div>" if paired else ""
        yield f"<h3>{_html(plot.title)}</h3>" if len(plots) > 1 else ""
        yield _text(plot.words)
        yield _figure(plot, content)
        yield "</div>" if paired else ""
    yield "</div>" if paired else ""


def _figure(plot: Plot, content: Content) -> str:
    caption = f"{content.split.capitalize()} split, n = {content.n:,}. {plot.caption}".strip()
    return f"<figure>{plot.svg}<figcaption>{_html(caption)}</figcaption></figure>"


def _gates(content: Content) -> Iterator[str]:
    yield from _plots(content, "gates")
    rows = [
        (
            flow.name,
            f"{flow.reached:,}",
            f"{flow.answered:,}",
            percent(flow.answered / content.n, 1),
            _share(flow.right, flow.answered),
            _share(flow.large_right, flow.answered),
        )
        for flow in content.flows
    ]
    heads = ("stage", "reached by", "answers", "of all", "right on them", "large right on them")
    yield _table(heads, rows)


def _agreement(content: Content) -> Iterator[str]:
    yield from _plots(content, "agreement")
    saver, large = content.flows[0].name, content.flows[-1].name
    for key, heading in GROUPS.items():
        found = content.agreement[key]
        title = heading.format(saver=saver, large=large)
        yield f"<h3>{_html(title)} ({found.total:,})</h3>"
        yield _pictures(found.shown)


def _harmed(content: Content) -> Iterator[str]:
    yield from _plots(content, "harmed")
    for name, found in content.harmed.items():
        more = f", {len(found.shown)} of them shown" if len(found.shown) < found.total else ""
        yield f"<h3>{_html(name)}: {found.total:,} harmed{more}</h3>"
        yield _pictures(found.shown)


def _pictures(shown: Sequence[Picture]) -> str:
    items = (
        f'<li><figure><img src="{item.uri}" alt="sample {item.row}, {_html(item.alt)}">'
        f"<figcaption>{_html(item.caption)}</figcaption></figure></li>"
        for item in shown
    )
    return f'<ul class="pictures">{"".join(items)}</ul>' if shown else "<p>There is none.</p>"


def _models(content: Content) -> Iterator[str]:
    timed = any(row.seconds for row in content.models)
    heads = ["model", "role", "form", "MACs", *(["time"] if timed else []), "accuracy", "front"]
    rows = [
        (
            row.name,
            "stage" if row.in_cascade else "pool",
            row.form,
            f"{row.macs / 1e6:.3g} M",
            *([amount("time", row.seconds) if row.seconds else ""] if timed else []),
            percent(row.accuracy),
            ", ".join(row.steps_of) or "beaten",
        )
        for row in content.models
    ]
    yield _text(content.models_words)
    yield _table(heads, rows, marked=[row.in_cascade for row in content.models])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    head = "".join(f'<th scope="col">{_html(text)}</th>' for text in heads)
    body = []
    for index, row in enumerate(rows):
        kind = ' class="stage"' if index < len(marked) and marked[index] else ""
        cells = "".join(f"<td>{_html(text)}</td>" for text in row)
        body.append(f"<tr{kind}>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _text(sentences: Iterable[str]) -> str:
    text = " ".join(sentences)
    return f"<p>{_html(text)}</p>" if text else ""


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "none"


def _html(text: str) -> str:
    """Return text for HTML, its percents never alone at the start of a line."""
    return escape(text).replace(" %", "&nbsp;%")
