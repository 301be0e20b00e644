"""Bugs that are planted in a copy of the kernels, and what must see them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tests.cuda_cpu import build
from tests.cuda_cpu.emulation import KERNELS, EmulationError
from tests.cuda_cpu.standalone import SanitizerReport, StandaloneMachine
from tests.kernels.machine import Machine

Detector = Literal["values", "emulation", "threads", "addresses"]


class PatchError(RuntimeError):
    """A bug cannot be planted."""


class Detection(NamedTuple):
    """How kernels are built, and the error in which a message counts. A crash has another."""

    variant: build.Variant
    error: type[Exception]


DETECTIONS: dict[Detector, Detection] = {
    "values": Detection(build.PLAIN, AssertionError),
    "emulation": Detection(build.PLAIN, EmulationError),
    "threads": Detection(build.THREAD, SanitizerReport),
    "addresses": Detection(build.ADDRESS, SanitizerReport),
}
INSTANCES = re.compile(r"^(GATES?|SCATTER|GATHER|PREPROCESS)\(.*\)\n", re.MULTILINE)


@dataclass(frozen=True)
class Bug:
    """A bug and what catches it.

    Attributes
    ----------
    file, old, new
        The text in one of the sources, and what it becomes.
    instance
        The one kernel that is built of the copy; its macro has the name of the module.
    detector, message, at
        Who must see it, the message as a regular expression, and a text: in the message, ``{at}``
        stands for the file and line where that is.
    run
        What is launched and compared.
    options
        Of the machine.
    """

    name: str
    file: str
    old: str
    new: str
    instance: str
    detector: Detector
    message: str
    run: Callable[[Machine], None]
    at: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def module(self) -> str:
        return self.instance.split("(")[0].lower()

    @property
    def detection(self) -> Detection:
        return DETECTIONS[self.detector]

    def machine(self, folder: Path = KERNELS) -> StandaloneMachine:
        return StandaloneMachine(self.detection.variant, folder=folder, **self.options)

    def plant(self, folder: Path) -> Path:
        """Copy the sources to a folder with the bug in them, and return the module's.

        Raises
        ------
        PatchError
            When the sources are not those that the bug was written for.
        """
        for path in (*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh")):
            shutil.copy(path, folder)
        target = folder / self.file
        text = target.read_text()
        if text.count(self.old) != 1:
            raise PatchError(f"{self.name}: {self.file} has not the text to change, or not once")
        target.write_text(text.replace(self.old, self.new))
        module = folder / f"{self.module}.cu"
        module.write_text(INSTANCES.sub("", module.read_text()) + self.instance + "\n")
        return module

    def expected(self, folder: Path) -> str:
        """Return the message, with the line in the copy."""
        if not self.at:
            return self.message
        lines = (folder / self.file).read_text().splitlines()
        (number,) = (k for k, line in enumerate(lines, 1) if self.at in line)
        return self.message.replace("{at}", rf"{re.escape(self.file)}:{number}\b")
