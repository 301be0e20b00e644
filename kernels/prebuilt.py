"""Cubins that a release ships, so that a device needs no compiler.

``scripts/build_kernels`` makes them from the sources beside them, for every architecture of each
CUDA major: a driver takes no cubin of a newer one. The manifest holds the hash of the sources and
of each cubin, so that one is used only for exactly the sources it was built from.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple

import pydantic

from kernels.files import write_whole
from kernels.nvrtc import OPTIONS, Nvrtc, Target
from kernels.sources import FOLDER, Source, load_source

SHIPPED = FOLDER / "prebuilt"
MANIFEST_NAME = "manifest.json"
FORMAT: Final = "tinysaver.cubins/1"

ARCHITECTURES = {
    12: ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120"),
    13: (
        *("sm_75", "sm_80", "sm_86", "sm_87", "sm_89"),
        *("sm_90", "sm_100", "sm_110", "sm_120", "sm_121"),
    ),
}
"""What is built and budgeted, by CUDA major."""

_log = logging.getLogger(__name__)


class Schema(pydantic.BaseModel):
    """Unknown fields are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Entry(Schema):
    """One cubin of a release.

    Attributes
    ----------
    source_sha256
        `kernels.sources.Source.sha256` of what it was built from.
    nvrtc
        Version that built it: ``13.0``.
    file
        Its path, relative to the manifest.
    """

    module: str
    architecture: str
    nvrtc: str = pydantic.Field(pattern=r"^\d+\.\d+$")
    options: tuple[str, ...]
    source_sha256: str
    file: str
    sha256: str

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor of ``nvrtc``."""
        major, minor = map(int, self.nvrtc.split("."))
        return major, minor


class Manifest(Schema):
    """The cubins of a folder."""

    format: Literal["tinysaver.cubins/1"] = FORMAT
    cubins: tuple[Entry, ...]


def load_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder; one without cubins where the folder has none.

    A damaged one counts as none, with a warning: NVRTC can do without.
    """
    path = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Manifest(cubins=())
    except (OSError, pydantic.ValidationError) as error:
        _log.warning("%s: not usable, so kernels are compiled: %s", path, error)
        return Manifest(cubins=())


def find_prebuilt(
    folder: Path, source: Source, target: Target, options: tuple[str, ...] = OPTIONS
) -> bytes | None:
    """Return the cubin for a target that was built from exactly this source, or None.

    Of several, that of the newest CUDA major which the driver takes.
    """
    fitting = [
        entry
        for entry in load_manifest(folder).cubins
        if entry.architecture == target.architecture
        and entry.source_sha256 == source.sha256
        and entry.options == options
        and entry.version[0] <= target.driver[0]
    ]
    for entry in sorted(fitting, key=lambda entry: entry.version, reverse=True):
        cubin = _verified(folder, entry)
        if cubin is not None:
            return cubin
    return None


def _verified(folder: Path, entry: Entry) -> bytes | None:
    path = folder / entry.file
    try:
        cubin = path.read_bytes()
    except OSError as error:
        _log.warning("%s: not usable, so it is compiled: %s", path, error)
        return None
    if hashlib.sha256(cubin).hexdigest() != entry.sha256:
        _log.warning("%s: content differs from its manifest, so it is compiled", path)
        return None
    return cubin


class Job(NamedTuple):
    """One cubin to build."""

    nvrtc: Nvrtc
    module: str
    architecture: str


def build(folder: Path, jobs: Iterable[Job], *, threads: int) -> Iterator[Entry]:
    """Build cubins into a folder, yield an entry for each, and write the manifest last.

    What the folder held before is no longer used from the start on, and its cubins are removed at
    the end. Nothing happens until the iterator is advanced.

    Raises
    ------
    CompileError
        When NVRTC refuses one; the folder is then without a manifest, so nothing in it is used.
    OSError
        When the folder cannot be written.
    """
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    entries = []
    with ThreadPoolExecutor(threads) as pool:
        for entry in pool.map(lambda job: _build_one(folder, job), jobs):
            entries.append(entry)
            yield entry
    for path in set(folder.glob("cu*/*.cubin")) - {folder / entry.file for entry in entries}:
        path.unlink()
    text = Manifest(cubins=tuple(entries)).model_dump_json(indent=1)
    write_whole(folder / MANIFEST_NAME, text.encode() + b"\n")


def _build_one(folder: Path, job: Job) -> Entry:
    source = load_source(job.module)
    cubin = job.nvrtc.compile(source, job.architecture).cubin
    file = f"cu{job.nvrtc.version[0]}/{job.module}-{job.architecture}.cubin"
    write_whole(folder / file, cubin)
    return Entry(
        module=job.module,
        architecture=job.architecture,
        nvrtc="{}.{}".format(*job.nvrtc.version),
        options=OPTIONS,
        source_sha256=source.sha256,
        file=file,
        sha256=hashlib.sha256(cubin).hexdigest(),
    )
