"""The cubin of a module for a device: shipped with the release, cached on disk, or compiled now."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from kernels import nvrtc
from kernels.files import write_whole
from kernels.nvrtc import OPTIONS, Target
from kernels.prebuilt import SHIPPED, find_prebuilt
from kernels.sources import Source, load_source

_DIGEST = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


class Places(NamedTuple):
    """Where cubins are looked for.

    Attributes
    ----------
    shipped
        Folder of a release's cubins; see `kernels.prebuilt`.
    cache
        Folder of those compiled here; None keeps none.
    """

    shipped: Path = SHIPPED
    cache: Path | None = None

    @classmethod
    def of_user(cls) -> Places:
        """Return the release's folder and ``tinysaver/cubins`` in the user's cache folder."""
        return cls(cache=user_cache())


def user_cache() -> Path | None:
    """Return the folder for cubins in the user's cache, or None where there is no home."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "tinysaver" / "cubins"


def load_cubin(
    module: str,
    target: Target,
    *,
    places: Places | None = None,
    options: tuple[str, ...] = OPTIONS,
) -> bytes:
    """Return the cubin of a module such as ``gate`` for a device.

    Takes the release's where it was built from these sources; else one compiled here before, with
    the same options and NVRTC; else compiles, which takes seconds, and keeps the result. A cached
    file that is damaged is compiled again.

    Parameters
    ----------
    target
        Architecture of the device and CUDA version of its driver.
    places
        By default `Places.of_user`.

    Raises
    ------
    ValueError
        When there is no such module.
    CompilerMissingError
        When it must be compiled and no NVRTC suits; names the package to install.
    CompileError
        When NVRTC refuses; has its log and the architecture.
    """
    places = Places.of_user() if places is None else places
    source = load_source(module)
    shipped = find_prebuilt(places.shipped, source, target, options)
    if shipped is not None:
        return shipped
    compiler = nvrtc.find(target)
    path = places.cache and places.cache / _name(source, target, options, compiler.version)
    cached = _read(path) if path else None
    if cached is not None:
        return cached
    cubin = compiler.compile(source, target.architecture, options).cubin
    if path:
        _keep(path, cubin)
    return cubin


def _name(
    source: Source, target: Target, options: tuple[str, ...], version: tuple[int, int]
) -> str:
    """Return a file name that differs wherever the cubin may."""
    key = json.dumps([source.sha256, target.architecture, options, version])
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{Path(source.name).stem}-{target.architecture}-{digest[:32]}.cubin"


def _read(path: Path) -> bytes | None:
    """Return a cubin that `_keep` has written, or None where it is missing or damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("%s: cannot be read, so it is compiled again: %s", path, error)
        return None
    digest, cubin = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(cubin).digest() != digest:
        _log.warning("%s: damaged, so it is compiled again", path)
        return None
    return cubin


def _keep(path: Path, cubin: bytes) -> None:
    """Write the sha256 of a cubin and the cubin; a cache that cannot be written is no error."""
    try:
        write_whole(path, hashlib.sha256(cubin).digest() + cubin)
    except OSError as error:
        _log.warning("%s: cannot be written, so each start compiles: %s", path, error)
