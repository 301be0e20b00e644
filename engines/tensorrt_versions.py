"""The small layer of what differs between TensorRT 8.6, 10, 11 and TensorRT-RTX when building.

Enumerations are asked for members by name, never by number: the numbers differ between majors.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import EngineError
from runtime.plans import LIBRARY_NAMES, Flags, Library, version_numbers
from runtime.schema import Form

# Builder flags by which a network without strong typing is allowed what its ONNX file says.
_PRECISIONS: dict[Form, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("FP16",),
    "int8_trt": ("FP16", "INT8"),
}
FORMS: tuple[Form, ...] = tuple(_PRECISIONS)
"""The forms that TensorRT takes."""

_LAST_WITH_DLA = (10, 7)
_DLA_AGAIN = (11, 4, 1)

_INSTALL: dict[Library, str] = {
    "tensorrt": "On Jetson: sudo apt install python3-libnvinfer, and an environment that sees the "
    "system's packages (scripts/bench makes one); elsewhere: pip install tensorrt",
    "tensorrt_rtx": "Install it: pip install 'tinysaver-runtime[rtx]'",
}


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT."""

    library: Library
    module: Any

    @property
    def version(self) -> str:
        """The full version, ``10.3.0``."""
        return str(self.module.__version__)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version of TensorRT's interface, to compare; TensorRT-RTX has that of 11."""
        return (11,) if self.library == "tensorrt_rtx" else version_numbers(self.version)

    @property
    def name(self) -> str:
        """Library and version, for messages."""
        return f"{LIBRARY_NAMES[self.library]} {self.version}"

    def has(self, enumeration: str, name: str) -> bool:
        """Return whether an enumeration has a member of that name."""
        return name in getattr(self.module, enumeration).__members__

    def member(self, enumeration: str, name: str) -> Any:
        """Return the member of an enumeration by its name.

        Raises
        ------
        EngineError
            When this version lacks it.
        """
        if not self.has(enumeration, name):
            raise EngineError(f"{self.name} has no {enumeration}.{name}.")
        return getattr(self.module, enumeration).__members__[name]

    def typed(self, flags: Flags) -> bool:
        """Return whether networks are made strongly typed, as their ONNX files say.

        All from version 10 on, but for the DLA before 11: there, as in 8.6, FP16 is a builder flag.
        """
        if flags.dla_core is not None and self.numbers < (11,):
            return False
        return self.has("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")

    def network_flags(self, flags: Flags) -> int:
        """Return the bits for ``Builder.create_network``."""
        if self.typed(flags):
            name = "STRONGLY_TYPED"
        elif self.numbers < (10,):
            name = "EXPLICIT_BATCH"
        else:
            return 0
        return 1 << int(self.member("NetworkDefinitionCreationFlag", name))

    def builder_flags(self, form: Form, flags: Flags) -> list[str]:
        """Return the names of the builder flags to set."""
        names = [] if self.typed(flags) else list(_PRECISIONS[form])
        if flags.version_compatible:
            names.append("VERSION_COMPATIBLE")
        if flags.dla_core is not None:
            names.append("GPU_FALLBACK")  # layers that the DLA does not know
        return names

    def cleared_flags(self, form: Form, flags: Flags) -> list[str]:
        """Return the names of the builder flags to clear: FP32 is meant, unless TF32 was asked."""
        return ["TF32"] if form == "fp32" and not flags.tf32 else []

    def preview_features(self) -> list[str]:
        """Return what lets several contexts share one profile, where that is not the rule yet."""
        return ["PROFILE_SHARING_0806"] if self.numbers < (10,) else []


def load_tensorrt(library: Library) -> TensorRT:
    """Import TensorRT.

    Raises
    ------
    EngineError
        When it is not installed, or its libraries cannot be loaded.
    """
    try:
        return TensorRT(library, importlib.import_module(library))
    except ModuleNotFoundError as error:
        raise EngineError(
            f"{LIBRARY_NAMES[library]} is not installed ({error.name}). {_INSTALL[library]}"
        ) from None
    except (ImportError, OSError, AttributeError) as error:
        raise EngineError(
            f"{LIBRARY_NAMES[library]} is installed but cannot be loaded: {error}. "
            "Its Python package and its libraries are probably of different versions, or a library "
            f"of CUDA is missing. {_INSTALL[library]}"
        ) from None


def resolve_targets(tensorrt: TensorRT, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the architectures that TensorRT-RTX builds ahead of time for, in ascending order.

    ``rtx`` stands for all from Ampere on; Turing (``sm_75``) has to be named.

    Raises
    ------
    EngineError
        When this version does not know one.
    """
    if not targets:
        return ()
    known = _architectures(tensorrt)
    chosen: set[str] = set()
    for target in targets:
        if target != "rtx" and target not in known:
            raise EngineError(
                f"--target {target}: {tensorrt.name} builds for {', '.join(known)}. "
                "For Jetson and data-centre GPUs build on the device itself, without --target."
            )
        chosen |= {name for name in known if name != "sm_75"} if target == "rtx" else {target}
    return tuple(name for name in known if name in chosen)


def refuse_flags(tensorrt: TensorRT, form: Form, flags: Flags, *, board: str | None) -> None:
    """Refuse options that this TensorRT or board cannot honour, with the reason.

    Parameters
    ----------
    board
        Name of the Jetson board, None elsewhere.

    Raises
    ------
    EngineError
        Names the option, the reason and the way out.
    """
    if tensorrt.library == "tensorrt_rtx":
        _refuse_on_rtx(tensorrt, flags)
    if flags.hardware_compatible:
        _refuse_hardware_compatible(tensorrt, flags.hardware_compatible, board)
    if flags.dla_core is not None:
        _refuse_dla(tensorrt, form, board)


def _architectures(tensorrt: TensorRT) -> list[str]:
    names = tensorrt.module.ComputeCapability.__members__
    numbers = sorted(int(name[2:]) for name in names if name.startswith("SM"))
    return [f"sm_{number}" for number in numbers]


def _refuse_on_rtx(tensorrt: TensorRT, flags: Flags) -> None:
    if flags.version_compatible:
        raise EngineError(
            f"--version-compatible: {tensorrt.name} comes without the lean runtime that such plans "
            "need. Build again after an update."
        )
    if flags.hardware_compatible:
        raise EngineError(
            f"--hardware-compatible: {tensorrt.name} has targets instead: "
            "--target rtx, or one --target per architecture."
        )
    if flags.dla_core is not None:
        raise EngineError(f"--dla: {tensorrt.name} does not know the DLA. Leave --target out.")


def _refuse_hardware_compatible(tensorrt: TensorRT, level: str, board: str | None) -> None:
    if board is not None:
        raise EngineError(
            f"--hardware-compatible: not on Jetson (this is {board}). Build on each device."
        )
    if not tensorrt.has("HardwareCompatibilityLevel", level.upper()):
        raise EngineError(
            f"--hardware-compatible {level}: {tensorrt.name} does not know it. "
            "Use ampere_plus, or build on each device."
        )


def _refuse_dla(tensorrt: TensorRT, form: Form, board: str | None) -> None:
    if form != "fp16":
        raise EngineError(
            f"--dla: the DLA takes the form fp16, not {form}. Its INT8 would need ranges by "
            "calibrator in place of Q/DQ nodes, which is left out. Use --form fp16."
        )
    if tensorrt.numbers[:2] <= _LAST_WITH_DLA:
        return
    if tensorrt.numbers[:3] < _DLA_AGAIN:
        raise EngineError(
            f"--dla: {tensorrt.name} has no support for the DLA. "
            "TensorRT up to 10.7 has (JetPack 6), and 11.4.1 on AGX Orin. Leave --dla out."
        )
    if board is None or "AGX Orin" not in board:
        raise EngineError(
            f"--dla: {tensorrt.name} supports the DLA of AGX Orin only; "
            f"this is {board or 'not a Jetson'}. Leave --dla out."
        )
