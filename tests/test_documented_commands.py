"""Commands in the documents name verbs, options and choices that exist; nothing is run."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from runtime.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {name: verb.module for name, verb in VERBS.items()}

_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:tinysaver|python -m|scripts/bench) [^`]+)`")
_CALL = re.compile(
    r"(?:^|[\s;])(?:\S*/)?(?:tinysaver (?P<verb>[a-z]+)|python3? -m (?P<module>[a-z_.]+)"
    r"|(?P<script>scripts/bench))(?P<rest>(?:[ ].*)?)$"
)


class Command(NamedTuple):
    module: str
    words: list[str]


def commands(text: str) -> Iterator[Command]:
    """Yield the commands of a document that call our programs."""
    lines = [line for block in _BLOCK.findall(text) for line in joined(block)]
    for line in [*lines, *_INLINE.findall(_BLOCK.sub("", text).replace("\n", " "))]:
        found = _CALL.search(re.split(r"\s[|>&#]|;\s|\s\.\.\.", line)[0].rstrip())
        if found is None:
            continue
        verb, module = found["verb"], found["module"]
        name = MODULES.get(verb, verb) if verb else module or "runtime.bench"
        if verb or name in MODULES.values():
            yield Command(name, shlex.split(found["rest"]))


def joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def problem(command: Command) -> str | None:
    """Return what is wrong with a command; without torch, those of savers are taken as they are."""
    if command.module.startswith("savers.") and importlib.util.find_spec("torch") is None:
        return None
    program = importlib.import_module(command.module).main
    context = click.Context(program, info_name=command.module)
    try:
        values, _, _ = program.make_parser(context).parse_args(list(command.words))
        for parameter in program.params:
            value = values.get(parameter.name)
            if isinstance(parameter.type, click.Choice) and value and "$" not in value:
                parameter.type_cast_value(context, value)
    except click.UsageError as error:
        return f"{command.module} {' '.join(command.words)}: {error.format_message()}"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documented_commands_can_be_parsed(document: Path) -> None:
    found = commands(document.read_text(encoding="utf-8"))
    assert [text for text in map(problem, found) if text] == []


def test_commands_are_found_in_loops_pipes_and_sentences() -> None:
    text = (
        "```\nfor m in a b; do\n  env/bin/tinysaver bench --device cuda --mode $m > x\ndone\n"
        "scripts/bench  # a comment\npython -m runtime.run a \\\n  b | head\npython -m pip list\n"
        "```\nSee `tinysaver\nverify --layers x`, or `tinysaver`.\n"
    )
    assert list(commands(text)) == [
        Command("runtime.bench", ["--device", "cuda", "--mode", "$m"]),
        Command("runtime.bench", []),
        Command("runtime.run", ["a", "b"]),
        Command("runtime.verify", ["--layers", "x"]),
    ]


@pytest.mark.parametrize("words", [["--devise", "cuda"], ["--mode", "fast"], ["--json"]])
def test_what_does_not_exist_is_seen(words: list[str]) -> None:
    assert problem(Command("runtime.bench", words))
