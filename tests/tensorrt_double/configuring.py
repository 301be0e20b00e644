"""How contexts are made, and TensorRT-RTX's cache of what it compiles for them."""

from __future__ import annotations

import json
from typing import Any

from tests.tensorrt_double.building import HostMemory

_CACHE = b"a runtime cache: "


class RuntimeCache:
    """IRuntimeCache: which batches of which models have code."""

    native = "IRuntimeCache"

    def __init__(self) -> None:
        self.entries: set[str] = set()

    def serialize(self) -> HostMemory:
        """Return its content."""
        return HostMemory(_CACHE + json.dumps(sorted(self.entries)).encode())

    def deserialize(self, blob: Any) -> bool:
        """Take content of its own kind."""
        magic, content = bytes(blob)[: len(_CACHE)], bytes(blob)[len(_CACHE) :]
        if magic == _CACHE:
            self.entries = set(json.loads(content))
        return magic == _CACHE


class RuntimeConfig:
    """IRuntimeConfig."""

    native = "IRuntimeConfig"

    def __init__(self) -> None:
        self.strategy: Any = None
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        """Choose where contexts have their memory."""
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        """Return an empty cache."""
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        """Let contexts use a cache."""
        self.cache = cache
        return True
