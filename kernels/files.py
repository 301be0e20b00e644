"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside ``path`` for writing that takes its place only if the block succeeds.

    An ``OSError`` names ``path``, whatever failed.
    """
    with _naming(path):
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with _naming(path):
            with os.fdopen(handle, "wb") as stream:
                yield stream
            os.chmod(partial, 0o644)
            os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, making its folder if need be.

    Raises
    ------
    OSError
        When that is not possible; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(content)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make an error name the file that the user knows, not the one it is first written as."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename).name.startswith(f".{path.name}."):
            error.filename = os.fspath(path)
        raise
