"""What a person sees of a build, on standard error: a line that moves, or a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars

from engines.build_messages import PhaseStarted, Progress, StepDone

_LINE_SECONDS = 10.0


class Display:
    """Follows one build; a context manager. Where standard error is no terminal it writes lines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()
        self._written = self._started
        self._phases: list[tuple[str, int]] = []
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bars.add_task(f"plan {name}", total=None)

    def __enter__(self) -> Display:
        """Show it."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove it."""
        self._bars.stop()

    def progress(self, event: Progress) -> None:
        """Show the innermost phase that TensorRT is in, and its steps."""
        if isinstance(event, PhaseStarted):
            self._phases.append((event.phase, event.steps))
            self._show(0)
        elif isinstance(event, StepDone):
            if self._phases and self._phases[-1][0] == event.phase:
                self._show(event.step + 1)
        else:
            self._phases = [item for item in self._phases if item[0] != event.phase]

    def heartbeat(self) -> None:
        """Write a line, where there is no bar and the last was a while ago."""
        now = time.monotonic()
        if not self._bars.disable or now - self._written < _LINE_SECONDS:
            return
        self._written = now
        phase = f", {self._phases[-1][0]}" if self._phases else ""
        print(
            f"plan {self._name}: building, {now - self._started:.0f} s{phase}",
            file=sys.stderr,
            flush=True,
        )

    def _show(self, done: int) -> None:
        phase, steps = self._phases[-1]
        self._bars.update(
            self._task, description=f"plan {self._name}: {phase}", completed=done, total=steps
        )
