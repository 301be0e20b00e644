"""The schema of ``cascade.json``, format ``tinysaver.cascade/1``; see docs/formats.md.

Everything here is plain, frozen data. Reading and writing files is `runtime.bundle`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from kernels.frames import BYTES_PER_PIXEL, MOST_SIDE, PixelFormat
from runtime.certificate import (
    Certificate,
    Combination,
    Coverage,
    CoveredStage,
    Disagreement,
    Saving,
    Score,
    ThresholdPath,
)
from runtime.fields import Form, Schema, Sha256, Threshold, UnitInterval, digest

__all__ = [
    "FORMAT",
    "CascadeSpec",
    "Certificate",
    "Combination",
    "Coverage",
    "CoveredStage",
    "Disagreement",
    "Form",
    "FrameFormat",
    "Gate",
    "Golden",
    "ModelFile",
    "Preprocessing",
    "Provenance",
    "Saving",
    "Schema",
    "Score",
    "Setting",
    "Sha256",
    "Stage",
    "StageInput",
    "Threshold",
    "ThresholdPath",
    "UnitInterval",
    "digest",
]

FORMAT = "tinysaver.cascade/1"

Side = Annotated[int, Field(gt=0, le=MOST_SIDE)]


class FrameFormat(Schema):
    """What the caller hands over: ``u8 [N, height, width, channels]``.

    Attributes
    ----------
    shape
        ``(height, width, channels)``. A height and width of 0 accept frames of any size. NV12 has
        one channel, and as height 3/2 of the picture's: the luma plane, then the chroma pairs.
    matrix, range
        YUV to RGB conversion, for NV12 only.
    """

    shape: tuple[int, int, int]
    dtype: Literal["uint8"] = "uint8"
    colour: Literal["grey", "rgb", "bgr", "nv12"]
    matrix: Literal["bt601", "bt709"] | None = None
    range: Literal["limited", "full"] | None = None

    @model_validator(mode="after")
    def _check(self) -> FrameFormat:
        channels = BYTES_PER_PIXEL[self.colour]
        if min(self.shape) < 0 or (self.shape[0] == 0) != (self.shape[1] == 0):
            raise ValueError(f"height and width are positive, or both 0, shape says {self.shape}")
        if self.shape[2] != channels:
            raise ValueError(
                f"colour {self.colour} has {channels} channel(s), shape says {self.shape}"
            )
        if {self.matrix is not None, self.range is not None} != {self.colour == "nv12"}:
            raise ValueError("matrix and range are given for nv12, and only for it")
        self.pixels.picture_size(*self.shape[:2])
        return self

    @property
    def pixels(self) -> PixelFormat:
        """Its colours."""
        return PixelFormat(self.colour, self.matrix, self.range)


class Preprocessing(Schema):
    """From a frame to a network input ``f32 [channels, height, width]``.

    ``out = (frame / 255 - mean) / std``, after a bilinear resize (half-pixel centres, in float).

    Attributes
    ----------
    size
        ``(height, width)`` of the network input.
    colour
        Channel order the network expects.
    resize
        How another aspect ratio is made to fit; not used when sizes are equal.
    mean, std
        One number per channel, of pixels scaled to [0, 1].
    """

    size: tuple[Side, Side]
    colour: Literal["grey", "rgb", "bgr"]
    resize: Literal["stretch", "centre_crop", "letterbox"] = "stretch"
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        channels = 1 if self.colour == "grey" else 3
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std of colour {self.colour} have {channels} number(s) each")
        return self

    @property
    def sha256(self) -> str:
        """Hash of all fields, as a certificate names it."""
        return digest(self)


class StageInput(Schema):
    """One input tensor of a stage's network.

    ``source`` is ``"frames"``, or ``"<stage>/<output>"`` for a tensor that an earlier stage left.
    """

    tensor: str
    source: str = "frames"


class ModelFile(Schema):
    """An ONNX file of the bundle; paths are relative to the bundle folder and stay inside it.

    Attributes
    ----------
    external_data, external_sha256
        The files with its weights, where it has them in others, and the hash of each. Stages may
        name the same file.
    """

    file: str
    external_data: tuple[str, ...] = ()
    external_sha256: tuple[Sha256, ...] | None = None
    sha256: Sha256

    @model_validator(mode="after")
    def _check(self) -> ModelFile:
        files, hashes = len(self.external_data), len(self.external_sha256 or ())
        if files != hashes:
            raise ValueError(
                f"expected one external_sha256 for each of {files} files of external_data, "
                f"got {hashes}"
            )
        return self

    @property
    def external(self) -> dict[str, str]:
        """The hash of each file of external data, by its name."""
        return dict(zip(self.external_data, self.external_sha256 or (), strict=True))

    @property
    def digest(self) -> str:
        """The hash of the whole model; of the ONNX file alone where that holds its weights."""
        if not self.external:
            return self.sha256
        text = json.dumps([self.sha256, *self.external.items()])
        return hashlib.sha256(text.encode()).hexdigest()


class Stage(Schema):
    """One model of the cascade.

    Attributes
    ----------
    logits
        Name of the output ``f32 [n, K]``.
    macs
        Multiply-accumulates for one sample.
    whole_macs
        Those of the whole model, where this stage is the last part of one whose other parts are
        stages before it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    preprocessing: Preprocessing
    inputs: tuple[StageInput, ...] = Field(min_length=1)
    logits: str = "logits"
    macs: int = Field(gt=0)
    whole_macs: int | None = Field(default=None, gt=0)
    forms: dict[Form, ModelFile] = Field(min_length=1)

    @property
    def reads_frames(self) -> bool:
        """Whether it can run on its own, from frames alone."""
        return all(item.source == "frames" for item in self.inputs)

    @property
    def macs_alone(self) -> int:
        """Multiply-accumulates of its model for a sample that nothing was computed of before."""
        return self.whole_macs or self.macs


class Gate(Schema):
    """Stands between two stages; accepts the samples whose score is above the threshold."""

    score: Score = Score()


class Setting(Schema):
    """Thresholds for one combination of forms, what certifies them, and the gears above them.

    ``path`` was chosen on the selection split; certification walks it. Gears are earlier points of
    the certified path, the cheapest last, which escalate more and so lose no more than the same
    epsilon. No component of one is below the certified one. With ``disagreements``, at the
    thresholds and each gear, a drift guard compares; see `runtime.drift`.
    """

    thresholds: tuple[Threshold, ...]
    path: ThresholdPath | None = None
    certificate: Certificate | None = None
    gears: tuple[tuple[Threshold, ...], ...] = ()
    disagreements: tuple[Disagreement, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Setting:
        if self.certificate is not None:
            for gear in self.gears:
                _check_gear(gear, self.certificate.thresholds)
        return self


class Golden(Schema):
    """A few frames and the logits every form of every stage gave for them (npz)."""

    file: str
    sha256: Sha256


class Provenance(Schema):
    """Which samples decided something in this bundle: a provenance file, see docs/formats.md."""

    purpose: Literal["training", "selection", "ranges"]
    file: str
    sha256: Sha256


class CascadeSpec(Schema):
    """The whole of ``cascade.json``.

    ``settings`` is keyed by the forms of the stages joined by ``/``, as ``"fp32/fp32"``.
    """

    format: Literal["tinysaver.cascade/1"]
    name: str
    description: str = ""
    input: FrameFormat
    labels: tuple[str, ...] = Field(min_length=2)
    stages: tuple[Stage, ...] = Field(min_length=2)
    gates: tuple[Gate, ...]
    combination: Combination | None = None
    settings: dict[str, Setting]
    golden: Golden | None = None
    provenance: tuple[Provenance, ...] = ()

    @property
    def weighted(self) -> tuple[int, float] | None:
        """Index of the stage that the combination names, and its weight."""
        if self.combination is None:
            return None
        names = [stage.name for stage in self.stages]
        return names.index(self.combination.stage), self.combination.weight

    @model_validator(mode="after")
    def _check(self) -> CascadeSpec:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names repeat: {names}")
        if len(self.gates) != len(names) - 1:
            raise ValueError(
                f"{len(names)} stages need {len(names) - 1} gate(s), found {len(self.gates)}"
            )
        if self.combination is not None and self.combination.stage not in names[:-1]:
            raise ValueError(
                f"combination: stage {self.combination.stage!r} is not one of the earlier stages "
                f"{names[:-1]}"
            )
        for key, setting in self.settings.items():
            self._check_setting(key, setting)
        for index, stage in enumerate(self.stages):
            _check_sources(stage, earlier=names[:index])
        return self

    def _check_setting(self, key: str, setting: Setting) -> None:
        forms = key.split("/")
        known = len(forms) == len(self.stages) and all(
            form in stage.forms for form, stage in zip(forms, self.stages, strict=True)
        )
        if not known:
            raise ValueError(f"settings: {key!r} does not name one known form per stage")
        for vector in (setting.thresholds, *setting.gears):
            if len(vector) != len(self.gates):
                raise ValueError(
                    f"settings: {key!r} has {len(vector)} thresholds for {len(self.gates)} gates"
                )
            for threshold in vector:
                if isinstance(threshold, list) and len(threshold) != len(self.labels):
                    raise ValueError(
                        f"settings: {key!r} needs one threshold per class, {len(self.labels)}"
                    )
        offsets = setting.path.class_offsets if setting.path else None
        if offsets is not None and len(offsets[0]) != len(self.labels):
            raise ValueError(
                f"settings: {key!r} has class_offsets of {len(offsets[0])} classes, "
                f"needs {len(self.labels)}"
            )


def _check_gear(gear: tuple[Threshold, ...], certified: tuple[Threshold, ...]) -> None:
    pairs = zip(gear, certified, strict=False)
    if len(gear) != len(certified) or any(np.any(np.less(*pair)) for pair in pairs):
        raise ValueError(
            f"gears: {list(gear)} is below the certified thresholds {list(certified)} at some gate"
        )


def _check_sources(stage: Stage, *, earlier: list[str]) -> None:
    for item in stage.inputs:
        producer = item.source.partition("/")[0]
        if item.source != "frames" and producer not in earlier:
            raise ValueError(
                f"stage {stage.name}: input {item.tensor} reads {item.source!r}; "
                f"expected 'frames' or '<stage>/<output>' with an earlier stage of {earlier}"
            )
