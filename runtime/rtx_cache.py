"""What TensorRT-RTX compiles when an engine first runs, kept for the next start.

Its plans hold no code for a GPU; that is made on the device, which takes long. The files lie in
the user's cache folder, one for each plan and GPU.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from kernels.cubins import user_cache
from kernels.files import write_whole

log = logging.getLogger(__name__)


class RuntimeCache:
    """The compiled kernels of one engine, whose contexts are made with `config`.

    Parameters
    ----------
    engine
        TensorRT-RTX's ``ICudaEngine``.
    strategy
        Its ``ExecutionContextAllocationStrategy`` of the contexts.
    path
        None keeps nothing.

    Attributes
    ----------
    config
        An ``IRuntimeConfig``.
    """

    def __init__(self, engine: Any, strategy: Any, path: Path | None) -> None:
        self._path = path
        self.config: Any = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(strategy)
        self._cache: Any = self.config.create_runtime_cache()
        self._kept = _read(path)
        if self._kept and not self._cache.deserialize(self._kept):
            log.warning("%s: TensorRT-RTX does not take it; it is made anew", path)
            self._kept = b""
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled so far, if it is more than was read; a full disk is no error."""
        content = bytes(self._cache.serialize())
        if self._path is None or content == self._kept:
            return
        try:
            write_whole(self._path, content)
        except OSError as error:
            log.warning("%s: cannot be written, so each start compiles: %s", self._path, error)
        else:
            self._kept = content

    def close(self) -> None:
        """Free it, after the contexts; a second call does nothing."""
        self.config = self._cache = None


def cache_path(plan_sha256: str, gpu: str) -> Path | None:
    """Return where a plan's cache for a GPU is kept; None where there is no home."""
    cache = user_cache()
    key = hashlib.sha256(f"{plan_sha256} {gpu}".encode()).hexdigest()[:16]
    return None if cache is None else cache.parent / "rtx" / f"{key}.cache"


def _read(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path else b""
    except OSError:
        return b""
