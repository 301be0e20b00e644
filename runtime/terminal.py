"""What all command-line programs share: clean errors and a progress bar."""

from __future__ import annotations

from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.environment import DISTRIBUTION
from runtime.errors import InputError, TinysaverError

# Extra that brings a module which is not among the base dependencies.
EXTRAS = {
    "cv2": "opencv",
    "matplotlib": "plot",
    "onnx": "onnx",
    "pycuda": "cuda",
    "scipy": "train",
    "sklearn": "train",
    "torch": "train",
}


class Command(click.Command):
    """Prints a user's error as one message and exits with 1, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TinysaverError as error:
            raise click.ClickException(str(error)) from None
        except ModuleNotFoundError as error:
            message = missing_package(error, ctx.command_path)
            if message is None:
                raise
            raise click.ClickException(message) from None
        except BrokenPipeError:
            raise  # a reader such as `head` has enough; click ends quietly
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{place}{error.strerror or error}") from None


def missing_package(error: ModuleNotFoundError, program: str) -> str | None:
    """Return what to install for a program whose optional package is missing; None for another."""
    missing = (error.name or "").partition(".")[0]
    if missing not in EXTRAS:
        return None
    return (
        f"{program} needs {missing}, which is not installed. "
        f"Install it: pip install '{DISTRIBUTION}[{EXTRAS[missing]}]'"
    )


def parse_numbers(option: str, text: str, low: float, high: float) -> list[float]:
    """Return the numbers that a command line joins by commas.

    Raises
    ------
    InputError
        When one is no number from ``low`` to ``high``.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values):
        raise InputError(
            f"{option}: expected numbers from {low} to {high}, comma-separated, got {text!r}."
        )
    return values


def progress_bar() -> Progress:
    """Return a progress bar on standard error, so that standard output can be piped."""
    from rich.console import Console

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
