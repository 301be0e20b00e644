"""How the doctor's findings are told: on a terminal, in a pipe, as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from runtime.doctor_checks import Finding, Status

FORMAT = "tinysaver.doctor/1"

_MARKS: dict[Status, tuple[str, str, str]] = {
    "ok": ("✓", "+", "green"),
    "absent": ("·", "-", "dim"),
    "warning": ("!", "!", "bold yellow"),
    "problem": ("✗", "x", "bold red"),
}
_NAME_WIDTH = 15
_NARROWEST = 30


class Section(NamedTuple):
    """Findings that belong together."""

    title: str
    findings: Sequence[Finding]


class Verdict(NamedTuple):
    """On what cascades can run here."""

    cpu: bool
    gpu: bool

    def __str__(self) -> str:
        """Return a sentence."""
        devices = [name for name, able in (("the CPU", self.cpu), ("the GPU", self.gpu)) if able]
        if not devices:
            return "No cascade can run here yet."
        return f"Cascades can run here on {' and '.join(devices)}."


def as_json(sections: Sequence[Section], verdict: Verdict) -> dict[str, Any]:
    """Return the findings as plain data, with stable keys."""
    return {
        "format": FORMAT,
        "usable": {"cpu": verdict.cpu, "gpu": verdict.gpu},
        "problems": _count(sections, "problem"),
        "warnings": _count(sections, "warning"),
        "checks": [
            {
                "section": section.title,
                "name": finding.name,
                "status": finding.status,
                "found": finding.found,
                "cause": finding.cause,
                "fix": finding.fix,
                "facts": dict(finding.facts),
            }
            for section in sections
            for finding in section.findings
        ],
    }


def show(console: Console, sections: Sequence[Section], verdict: Verdict) -> None:
    """Print the findings: with colours on a terminal, else a status word first on each line."""
    for section in sections:
        if not section.findings:
            continue
        if console.is_terminal:
            console.print(Text(f"\n{section.title}", style="bold"))
        for finding in section.findings:
            for line in _lines(console, finding):
                # Never wrapped by us, so that a long command can be copied as one line.
                console.print(line, soft_wrap=True)
    if console.is_terminal:
        console.print()
    console.print(Text(_summary(sections, verdict), style="bold"), soft_wrap=True)


def _lines(console: Console, finding: Finding) -> list[Text]:
    if not console.is_terminal:
        return [Text(line) for line in _plain_lines(finding)]
    mark, plain_mark, style = _MARKS[finding.status]
    indent = " " * (4 + _NAME_WIDTH)
    width = max(_NARROWEST, console.width - len(indent))
    first, *rest = textwrap.wrap(finding.found, width) or [""]
    head = Text("  ")
    head.append(plain_mark if console.options.ascii_only else mark, style=style)
    head.append(f" {finding.name:<{_NAME_WIDTH}}", style="dim" if style == "dim" else "")
    head.append(first, style="dim" if style == "dim" else "")
    lines = [head, *(Text(indent + line) for line in rest)]
    if finding.cause:
        lines += [Text(indent + line) for line in textwrap.wrap(finding.cause, width)]
    if finding.fix:
        lines.append(Text.assemble(indent, ("fix: ", "dim"), (finding.fix, "cyan")))
    return lines


def _plain_lines(finding: Finding) -> list[str]:
    lines = [f"{finding.status:<8} {finding.name:<{_NAME_WIDTH}}{finding.found}"]
    indent = " " * (9 + _NAME_WIDTH)
    if finding.cause:
        lines.append(f"{indent}cause: {' '.join(finding.cause.split())}")
    if finding.fix:
        lines.append(f"{indent}fix: {finding.fix}")
    return lines


def _summary(sections: Sequence[Section], verdict: Verdict) -> str:
    counts = [
        f"{count} {word}{'' if count == 1 else 's'}"
        for word in ("problem", "warning")
        if (count := _count(sections, word))
    ]
    return f"{', '.join(counts).capitalize() or 'Nothing is wrong'}. {verdict}"


def _count(sections: Sequence[Section], status: str) -> int:
    return sum(finding.status == status for section in sections for finding in section.findings)
