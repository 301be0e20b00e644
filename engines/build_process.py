"""A build in a process of its own: its answers, and one clear line however it ends.

TensorRT crashes, exhausts memory and cannot be interrupted; the process that called it must not.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import pydantic

from engines.build_messages import ANSWERS, BuildRequest, Built, Failed, Progress
from engines.errors import EngineError

COMMAND = (sys.executable, "-m", "engines.builder")

_HEARTBEAT_SECONDS = 1.0
_GRACE_SECONDS = 5.0
_CHUNK = 1 << 16
_STATISTICS = Path("/proc/vmstat")


class Watch(Protocol):
    """Follows a build."""

    def progress(self, event: Progress) -> None:
        """Take a step of TensorRT's own progress (none before version 10)."""

    def heartbeat(self) -> None:
        """Take the passing of a second in which the build still ran."""


class Ending(NamedTuple):
    """How the process ended without an answer."""

    status: int
    last_line: str
    out_of_memory: bool


def run_build(request: BuildRequest, watch: Watch, *, command: Sequence[str] = COMMAND) -> Built:
    """Build one plan in a process of its own.

    On any error, and on Ctrl-C, the process is gone when this returns. What lies in
    ``request.output`` is whole only if this returns an answer.

    Parameters
    ----------
    command
        What to start in place of `engines.builder`.

    Raises
    ------
    EngineError
        When the build fails, the process crashes or is killed; says which and what to do.
    """
    killed_before = _out_of_memory_kills()
    with tempfile.TemporaryFile() as printed, _started(command, printed) as process:
        _send(process, request)
        for answer in _answers(process, watch):
            if isinstance(answer, Built):
                return answer
            if isinstance(answer, Failed):
                raise EngineError(answer.message)
            watch.progress(answer)
        status = process.wait()
        out_of_memory = _out_of_memory_kills() > killed_before
        raise EngineError(_explain(request, Ending(status, _last_line(printed), out_of_memory)))


@contextmanager
def _started(command: Sequence[str], printed: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    # In a session of its own: Ctrl-C reaches this process only, which then ends the other.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=printed,
        start_new_session=True,
    )
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that has answered; kill it should it then hang."""
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None and not stream.closed:
            stream.close()


def _send(process: subprocess.Popen[bytes], request: BuildRequest) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(request.model_dump_json().encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it is gone already; how it ended is told below


def _answers(process: subprocess.Popen[bytes], watch: Watch) -> Iterator[Progress | Built | Failed]:
    assert process.stdout is not None
    buffer = b""
    beaten = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_HEARTBEAT_SECONDS):
                chunk = os.read(process.stdout.fileno(), _CHUNK)
                if not chunk:
                    return
                *lines, buffer = (buffer + chunk).split(b"\n")
                yield from map(_parse, lines)
            if time.monotonic() - beaten >= _HEARTBEAT_SECONDS:
                beaten = time.monotonic()
                watch.heartbeat()


def _parse(line: bytes) -> Progress | Built | Failed:
    try:
        return ANSWERS.validate_json(line)
    except pydantic.ValidationError:
        text = line[:200].decode(errors="replace")
        raise EngineError(f"the building process answered {text!r}, which is no answer.") from None


def _explain(request: BuildRequest, ending: Ending) -> str:
    """Say in one line how a build ended that left no answer."""
    said = f" Its last words: {ending.last_line}" if ending.last_line else ""
    if ending.status >= 0:
        return f"{request.name}: the building process ended early, status {ending.status}.{said}"
    name = signal.Signals(-ending.status).name
    if ending.out_of_memory:
        return (
            f"{request.name}: the system ran out of memory and killed the build. Close other "
            "programs, add swap, or lower --workspace or --max-batch."
        )
    if -ending.status == signal.SIGKILL:
        return (
            f"{request.name}: the build was killed ({name}), most often because memory ran out. "
            f"Close other programs, add swap, or lower --workspace or --max-batch.{said}"
        )
    return (
        f"{request.name}: TensorRT crashed ({name}). Try --optimisation-level 2, or another "
        f"release of TensorRT.{said}"
    )


def _out_of_memory_kills() -> int:
    """Return how many processes Linux has killed for want of memory since it started."""
    try:
        found = re.search(r"^oom_kill (\d+)$", _STATISTICS.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def _last_line(printed: IO[bytes]) -> str:
    printed.seek(0, os.SEEK_END)
    printed.seek(max(0, printed.tell() - _CHUNK))
    lines = printed.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""
