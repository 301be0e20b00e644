"""How far a training is, on standard error."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import Progress

from savers.distil import Epoch


def epochs_shown(progress: Progress, name: str, total: int) -> Callable[[Epoch], None]:
    """Return what reports each epoch of a training: a bar, or a line where there is no terminal."""
    task = progress.add_task(name, total=total)

    def report(epoch: Epoch) -> None:
        reached = f"loss {epoch.loss:.3f}"
        if epoch.accuracy is not None:
            reached = f"{100 * epoch.accuracy:.2f} %"
        text = f"{name} {reached}"
        progress.update(task, completed=epoch.number, description=text)
        if not progress.console.is_terminal:
            progress.console.print(f"{text}, epoch {epoch.number} of {total}")

    return report
