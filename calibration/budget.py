"""The lifetime budget of a certificate split: how often its data may be looked at.

Each certification breaks its promise with probability at most its ``delta``. As long as the deltas
of all that are ever run on one data set sum to at most `LIFETIME_DELTA`, that also bounds the
probability that any of them does (union bound).

The budget file has one JSON object per line: first the intent, with ``result`` null, written before
anything is computed, so that a crash does not give a free look; then the same with the result. A
refused certification has looked too, and costs the same.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

from pydantic import Field

from calibration.errors import CalibrationError
from calibration.npz import parse_json, unwritable
from runtime.schema import (
    Certificate,
    Combination,
    CoveredStage,
    Schema,
    Score,
    Sha256,
    ThresholdPath,
    digest,
)

LIFETIME_DELTA = 0.05
FILE_NAME = "certifications.jsonl"


class Question(Schema):
    """Everything, but data and delta, that decides how a certification ends."""

    quantity: Literal["accuracy_drop", "disagreement"]
    stages: tuple[CoveredStage, ...]
    scores: tuple[Score, ...]
    combination: Combination | None = None
    path: ThresholdPath
    epsilon: float
    method: str

    @property
    def sha256(self) -> str:
        """Hash of all fields; identical questions are one question.

        What a question may say since it was first asked counts only where it is said, so that the
        questions of before keep their hash.
        """
        return digest(self, later=("combination", "class_offsets"))


class Outcome(Schema):
    """How a certification ended: with a certificate, or with the text of the refusal."""

    certificate: Certificate | None = None
    refused: str | None = None


class Entry(Schema):
    """One line of the budget file; ``cascade`` is the hash of a `Question`."""

    format: Literal["tinysaver.certifications/1"] = "tinysaver.certifications/1"
    data_sha256: Sha256
    cascade: Sha256
    delta: float = Field(gt=0, lt=1)
    result: Outcome | None = None


class Attempt(NamedTuple):
    """A certification about to be run."""

    data_sha256: str
    cascade: str
    delta: float


class Budget:
    """A budget file; it need not exist yet.

    Parameters
    ----------
    total
        What the deltas of all certifications may sum to.
    """

    def __init__(self, path: Path, *, total: float = LIFETIME_DELTA) -> None:
        self._path = path
        self._total = total

    def spent(self) -> float:
        """Return the sum of the deltas of all certifications so far.

        Raises
        ------
        CalibrationError
            When the file cannot be read.
        """
        return _spent(self._read(self._path.read_text("utf-8")) if self._path.exists() else [])

    def open(self, attempt: Attempt) -> Outcome | None:
        """Pay for a certification, and return its stored outcome if it was already run.

        One that was paid for and did not come to its end may be run again: it can only end in the
        same way.

        Raises
        ------
        CalibrationError
            When the budget is spent, belongs to other data, or the file cannot be read or written.
        """
        with self._locked() as stream:
            entries = self._read(stream.read())
            same = [entry for entry in entries if _attempt(entry) == attempt]
            if same:
                return same[-1].result
            self._check(entries, attempt)
            self._append(stream, Entry(**attempt._asdict()))
            return None

    def settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """Store how a certification ended.

        Raises
        ------
        CalibrationError
            When the file cannot be written.
        """
        with self._locked() as stream:
            self._append(stream, Entry(**attempt._asdict(), result=outcome))

    def _check(self, entries: list[Entry], attempt: Attempt) -> None:
        if entries and entries[0].data_sha256 != attempt.data_sha256:
            raise CalibrationError(
                f"{self._path}: this budget belongs to other data (expected sha256 "
                f"{entries[0].data_sha256[:12]}..., got {attempt.data_sha256[:12]}...). "
                "New data have a budget of their own: pass --budget FILE with a new file."
            )
        spent = _spent(entries)
        if spent + attempt.delta > self._total + 1e-12:
            raise CalibrationError(
                f"{self._path}: the budget of these data is spent: {spent:g} of {self._total:g} "
                f"used, this run asks for delta {attempt.delta:g}. Use --forecast on the selection "
                "split, or certify on new data with a budget of their own."
            )

    def _read(self, text: str) -> list[Entry]:
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            raise CalibrationError(
                f"{self._path}: line {len(lines)} is cut off, so what was spent is not known. "
                "Restore the file from version control."
            )
        return [self._entry(number, line) for number, line in enumerate(lines, 1)]

    def _entry(self, number: int, line: str) -> Entry:
        try:
            return parse_json(self._path, line, Entry)
        except CalibrationError as error:
            raise CalibrationError(
                f"line {number} of {error} What was spent is not known: "
                "restore the file from version control."
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[IO[str]]:
        try:
            with self._path.open("a+", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.seek(0)
                yield stream
        except UnicodeDecodeError:
            raise CalibrationError(
                f"{self._path}: not text. Restore the file from version control."
            ) from None
        except OSError as error:
            raise unwritable(self._path, error) from None

    @staticmethod
    def _append(stream: IO[str], entry: Entry) -> None:
        stream.write(json.dumps(entry.model_dump(mode="json")) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _attempt(entry: Entry) -> Attempt:
    return Attempt(entry.data_sha256, entry.cascade, entry.delta)


def _spent(entries: list[Entry]) -> float:
    return math.fsum({_attempt(entry): entry.delta for entry in entries}.values())
