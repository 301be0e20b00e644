"""What is seen of a build: a line that moves on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import io
import sys
import types

import pytest

from engines import build_progress
from engines.build_messages import PhaseFinished, PhaseStarted, StepDone
from engines.build_progress import Display


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that a test sets: ``clock[0]``."""
    now = [100.0]
    own = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(build_progress, "time", own)
    return now


def test_without_a_terminal_a_line_comes_every_ten_seconds(clock, capsys):
    with Display("saver.fp16") as display:
        for second in range(1, 26):
            clock[0] = 100.0 + second
            if second == 15:
                display.progress(PhaseStarted(phase="Timing tactics", steps=3))
            display.heartbeat()
    assert capsys.readouterr().err.splitlines() == [
        "plan saver.fp16: building, 10 s",
        "plan saver.fp16: building, 20 s, Timing tactics",
    ]


def test_a_short_build_says_nothing_more(clock, capsys):
    with Display("saver.fp16") as display:
        display.progress(PhaseStarted(phase="a", steps=1))
        display.heartbeat()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_the_innermost_phase_and_its_steps(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Display("saver.fp16") as display:
        shown = display._bars.tasks[0]
        display.progress(PhaseStarted(phase="Building engine", steps=6))
        display.progress(StepDone(phase="Building engine", step=1))
        assert (shown.description, shown.completed, shown.total) == (
            "plan saver.fp16: Building engine",
            2,
            6,
        )
        display.progress(PhaseStarted(phase="Timing tactics", steps=3))
        display.progress(StepDone(phase="Timing tactics", step=0))
        display.progress(StepDone(phase="Building engine", step=2))
        assert (shown.description, shown.completed, shown.total) == (
            "plan saver.fp16: Timing tactics",
            1,
            3,
        )
        display.progress(PhaseFinished(phase="Timing tactics"))
        display.progress(StepDone(phase="Building engine", step=3))
        assert (shown.description, shown.completed) == ("plan saver.fp16: Building engine", 4)
        display.heartbeat()
    assert "building," not in terminal.getvalue()
