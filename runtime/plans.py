"""Plans, TensorRT's engine files: what one was built for, its name, and the sidecar beside it.

A plan lies in the folder ``plans`` of its bundle or, where that cannot be written, in the user's
cache folder, as ``<stage>.<form>.<key>.plan``. Its sidecar ``.json`` holds the whole key and the
plan's hash; the plan is used only where both fit. These folders are the cache that `engines.build`
fills. Format ``tinysaver.plan/1``, see docs/formats.md.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import pydantic
from pydantic import Field, model_validator

from runtime.bundle import Bundle
from runtime.driver import ask_driver, board
from runtime.errors import PlanError
from runtime.schema import Form, Schema, Sha256, digest

FORMAT: Final = "tinysaver.plan/1"
FOLDER = "plans"

Library = Literal["tensorrt", "tensorrt_rtx"]
LIBRARY_NAMES: dict[Library, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

Architecture = Annotated[str, Field(pattern=r"^sm_[0-9]{2,3}$")]
Batch = Annotated[int, Field(gt=0)]

_KEY_DIGITS = 12
_CHUNK = 1 << 20


class Profile(Schema):
    """The batch sizes that one optimisation profile takes; the plan is tuned for ``opt``."""

    min: Batch
    opt: Batch
    max: Batch

    @model_validator(mode="after")
    def _check(self) -> Profile:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


class Flags(Schema):
    """How a plan was built; all that changes the plan and is not in the model.

    Attributes
    ----------
    tf32
        FP32 products may be rounded to TF32.
    workspace_mib, optimisation_level, aux_streams
        None leaves TensorRT's default.
    version_compatible
        Later versions run the plan too.
    hardware_compatible
        Other GPUs run it too: of the same compute capability, or all from Ampere on.
    dla_core
        Built for this DLA core, and for one batch size.
    """

    tf32: bool = False
    workspace_mib: int | None = None
    optimisation_level: int | None = None
    aux_streams: int | None = None
    version_compatible: bool = False
    hardware_compatible: Literal["same_compute_capability", "ampere_plus"] | None = None
    dla_core: int | None = None


class Machine(Schema):
    """What builds and runs plans: a TensorRT and, but for plans built ahead of time, a GPU.

    Attributes
    ----------
    version
        Full version of the library, ``10.3.0``.
    cuda
        The CUDA version that the driver reports, ``12.6``.
    gpu
        Its name; with the board's on Jetson, where all modules of a generation have one name.
    architecture
        Its compute capability, ``sm_87``.
    """

    library: Library
    version: str = Field(pattern=r"^[0-9]+(\.[0-9]+)+")
    cuda: str | None = None
    gpu: str | None = None
    architecture: Architecture | None = None


class PlanKey(Schema):
    """Everything that decides a plan. Equal keys mean the same plan.

    Attributes
    ----------
    model_sha256
        Of the ONNX file and its external data, see `model_digest`.
    targets
        Architectures it was built for ahead of time; empty when it was built on its own GPU.
    """

    model_sha256: Sha256
    form: Form
    machine: Machine
    targets: tuple[Architecture, ...] = ()
    profiles: tuple[Profile, ...] = Field(min_length=1)
    flags: Flags = Flags()

    @property
    def digest(self) -> str:
        """The sha256 of the whole key."""
        return digest(self)


class Tensor(Schema):
    """An input or output of a plan; the batch axis of ``shape`` is -1 unless it is fixed."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Sidecar(Schema):
    """The JSON file beside a plan.

    Attributes
    ----------
    file, sha256, nbytes
        The plan.
    built, build_seconds
        When (UTC, ISO 8601), and how long it took.
    """

    format: Literal["tinysaver.plan/1"] = FORMAT
    stage: str
    key: PlanKey
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.plan$")
    sha256: Sha256
    nbytes: int = Field(gt=0)
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    built: str
    build_seconds: float = Field(ge=0)


@dataclass(frozen=True)
class Plan:
    """A plan on disk, of which only the sidecar was read."""

    folder: Path
    sidecar: Sidecar

    @property
    def key(self) -> PlanKey:
        """What it was built for."""
        return self.sidecar.key

    @property
    def path(self) -> Path:
        """The plan file."""
        return self.folder / self.sidecar.file

    @property
    def sidecar_path(self) -> Path:
        """The JSON file beside it."""
        return self.path.with_suffix(".json")

    @property
    def name(self) -> str:
        """As people call it, ``saver.fp16``."""
        return plan_name(self.sidecar.stage, self.key)

    def read(self) -> bytes:
        """Return the plan's content, checked; never deserialise it unchecked.

        Raises
        ------
        PlanError
            When the file is missing, truncated or edited.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise PlanError(f"plan {self.name}: {self.path}: {error.strerror}") from None
        self._compare(len(content), hashlib.sha256(content).hexdigest())
        return content

    def check(self) -> None:
        """Check the plan's content without holding all of it.

        Raises
        ------
        PlanError
            When the file is missing, truncated or edited.
        """
        content, nbytes = hashlib.sha256(), 0
        try:
            with self.path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    content.update(chunk)
                    nbytes += len(chunk)
        except OSError as error:
            raise PlanError(f"plan {self.name}: {self.path}: {error.strerror}") from None
        self._compare(nbytes, content.hexdigest())

    def _compare(self, nbytes: int, sha256: str) -> None:
        if nbytes != self.sidecar.nbytes:
            raise PlanError(
                f"plan {self.name}: {self.path} has {nbytes} bytes, "
                f"its sidecar says {self.sidecar.nbytes}"
            )
        if sha256 != self.sidecar.sha256:
            raise PlanError(f"plan {self.name}: {self.path} is not what its sidecar describes")


class Damaged(NamedTuple):
    """A sidecar that cannot be used, and why."""

    sidecar_path: Path
    reason: str


def plan_name(stage: str, key: PlanKey) -> str:
    """Return a plan's name: ``saver.fp16``; ``saver.fp16.dla0.b8`` for batch 8 on DLA core 0."""
    core = key.flags.dla_core
    return f"{stage}.{key.form}" + ("" if core is None else f".dla{core}.b{key.profiles[0].max}")


def plan_file(stage: str, key: PlanKey) -> str:
    """Return the file name of a plan; its sidecar's has ``.json`` in place of ``.plan``."""
    return f"{plan_name(stage, key)}.{key.digest[:_KEY_DIGITS]}.plan"


def bucket_profiles(buckets: Iterable[int]) -> tuple[Profile, ...]:
    """Return one profile per bucket: tuned for it, and taking the counts that fall to it.

    Raises
    ------
    ValueError
        When the buckets are not positive and ascending.
    """
    profiles: list[Profile] = []
    for bucket in buckets:
        lower = profiles[-1].max + 1 if profiles else 1
        if bucket < lower:
            raise ValueError(f"buckets are ascending batch sizes from 1 on, got {bucket}")
        profiles.append(Profile(min=lower, opt=bucket, max=bucket))
    return tuple(profiles)


def plan_folders(bundle_folder: Path) -> tuple[Path, Path]:
    """Return where plans of a bundle may lie: in the bundle, and in the user's cache folder."""
    place = bundle_folder.resolve()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = f"{place.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
    return bundle_folder / FOLDER, caches / "tinysaver" / FOLDER / own


def plans_of(bundle_folder: Path) -> Iterator[Plan | Damaged]:
    """Read the sidecars of all plans of a bundle, in the order of `plan_folders` and of names."""
    for folder in plan_folders(bundle_folder):
        for path in sorted(folder.glob("*.json")):
            try:
                yield load_sidecar(path)
            except PlanError as error:
                yield Damaged(path, str(error))


def load_sidecar(path: Path) -> Plan:
    """Read a plan's sidecar; the plan itself is checked by `Plan.read`.

    Raises
    ------
    PlanError
        When it cannot be read, is not JSON, or has another format or unknown fields.
    """
    try:
        sidecar = Sidecar.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from None
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise PlanError(f"{path}: not a sidecar of {FORMAT} ({place} {problem['msg']})") from None
    return Plan(path.parent, sidecar)


def model_digest(bundle: Bundle, stage: int, form: Form) -> str:
    """Return the hash of a stage's model as plans are keyed by it: with its external data.

    Taken from ``cascade.json``; `Bundle.model` compares it with the files.

    Raises
    ------
    BundleError
        When the stage lacks the form.
    """
    return bundle.described(stage, form).digest


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, ``(10, 13, 3, 9)`` of ``10.13.3.9.post1``, to compare."""
    leading = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(map(int, leading.group().split("."))) if leading else ()


def this_machine(library: Library, version: str, *, device: int = 0) -> Machine:
    """Describe the GPU of this machine for a TensorRT of this version.

    Raises
    ------
    DriverError
        When there is no driver or no such GPU.
    """
    driver = ask_driver()
    gpu = driver.gpu(device)
    module = board()
    return Machine(
        library=library,
        version=version,
        cuda=driver.cuda,
        gpu=f"{gpu.name} ({module})" if module else gpu.name,
        architecture=gpu.architecture,
    )
