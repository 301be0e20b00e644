"""The schema of ``cascade.json``, format ``tinysaver.cascade/1``; see docs/formats.md.

Everything here is plain, frozen data. Reading and writing files is `runtime.bundle`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kernels.frames import BYTES_PER_PIXEL, MOST_SIDE, PixelFormat

FORMAT = "tinysaver.cascade/1"

Form = Literal["fp32", "fp16", "int8_host", "int8_trt"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(gt=0, le=MOST_SIDE)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
Threshold = UnitInterval | list[UnitInterval]
"""One number, or one per predicted class."""


class Schema(BaseModel):
    """Frozen; an unknown field is an error, so that a typing mistake is not read as a default."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


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
    """An ONNX file of the bundle; paths are relative to the bundle folder and stay inside it."""

    file: str
    external_data: tuple[str, ...] = ()
    sha256: Sha256


class Stage(Schema):
    """One model of the cascade.

    Attributes
    ----------
    logits
        Name of the output ``f32 [n, K]``.
    macs
        Multiply-accumulates for one sample.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    preprocessing: Preprocessing
    inputs: tuple[StageInput, ...] = Field(min_length=1)
    logits: str = "logits"
    macs: int = Field(gt=0)
    forms: dict[Form, ModelFile] = Field(min_length=1)

    @property
    def reads_frames(self) -> bool:
        """Whether it can run on its own, from frames alone."""
        return all(item.source == "frames" for item in self.inputs)


class Score(Schema):
    """How sure a stage is, from its logits (or from its own output ``score f32 [n]``), in [0, 1].

    ``max_softmax`` and ``entropy`` and ``margin`` use ``temperature``; ``p_norm`` uses ``p``.
    """

    name: Literal["max_softmax", "margin", "entropy", "p_norm", "learned"] = "max_softmax"
    temperature: float = Field(default=1.0, gt=0)
    p: float | None = Field(default=None, ge=1)
    output: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Score:
        if (self.name == "p_norm") != (self.p is not None):
            raise ValueError("p is given for the score p_norm, and only for it")
        if (self.name == "learned") != (self.output is not None):
            raise ValueError("output names the score tensor of a learned gate, and only of one")
        return self


class Gate(Schema):
    """Stands between two stages; accepts the samples whose score is above the threshold."""

    score: Score = Score()


class ThresholdPath(Schema):
    """The sequence of threshold vectors that a certificate walked, from "escalate all" down.

    Point 0 is all ones. The ``points`` after it have ``t_i = sigmoid(u + offsets[i])`` with ``u``
    evenly spaced from ``start`` to ``stop``, both included, rounded to float32. A path of another
    kind is written out in ``explicit``.
    """

    offsets: tuple[float, ...] = (0.0,)
    start: float = 9.0
    stop: float = -2.2
    points: int = Field(default=500, ge=1)
    explicit: tuple[tuple[UnitInterval, ...], ...] | None = None

    def vectors(self) -> npt.NDArray[np.float32]:
        """Return every threshold vector, f32 [points, gates], as devices compare them.

        An ``explicit`` path is taken as written. Any other has a point 0 of ones before its
        ``points``.

        Raises
        ------
        ValueError
            When the path is empty or ragged, or a threshold rises along it.
        """
        values = self._logistic() if self.explicit is None else _rectangle(self.explicit)
        rises = np.argwhere(np.diff(values, axis=0) > 0)
        if len(rises):
            point, gate = rises[0]
            raise ValueError(f"path: threshold {gate} rises from point {point} to {point + 1}")
        return values

    def _logistic(self) -> npt.NDArray[np.float32]:
        u = np.linspace(self.start, self.stop, self.points)[:, None] + np.asarray(self.offsets)
        # The clip only keeps exp from overflowing: float32 is 0 or 1 long before it.
        lower = 1 / (1 + np.exp(-np.clip(u, -700, 700)))
        return np.concatenate([np.ones((1, lower.shape[1])), lower]).astype(np.float32)


class CoveredStage(Schema):
    """What a certificate says of one stage: exactly which computation was certified."""

    name: str
    model_sha256: Sha256
    engine: str
    form: Form
    preprocessing_sha256: Sha256


class Coverage(Schema):
    """What a certificate was computed on.

    Attributes
    ----------
    data_sha256
        Of the images and labels that certified.
    provenance
        ``checked``: no sample had been used for training, selection or ranges.
        ``unchecked``: the user told us to go on without knowing.
    """

    data_sha256: Sha256
    stages: tuple[CoveredStage, ...]
    provenance: Literal["checked", "unchecked"]


class Certificate(Schema):
    """A statement that holds with probability at least ``1 - delta`` over the certifying sample.

    Attributes
    ----------
    quantity
        What is at most ``epsilon``: the drop in accuracy against the large model alone, or, where
        there were no labels, the share of answers that differ from the large model's.
    thresholds
        The last point of the path that passed.
    n, harm, help
        Samples; among them those where the large model alone is right and the cascade wrong (or,
        without labels, differs), and the reverse.
    order_seed
        Seed of the sample order, from the hash of the certified logits and labels.
    escalation_rates
        Share of all samples each gate sends on, on the certifying sample.
    """

    quantity: Literal["accuracy_drop", "disagreement"]
    epsilon: float = Field(gt=0, lt=1)
    delta: float = Field(gt=0, lt=1)
    method: Literal["wsr", "clopper_pearson", "harm_only"]
    n: int = Field(ge=1)
    harm: int = Field(ge=0)
    help: int = Field(ge=0)
    thresholds: tuple[UnitInterval, ...]
    scores: tuple[Score, ...]
    path: ThresholdPath
    passed: int = Field(ge=0)
    order_seed: int = Field(ge=0)
    escalation_rates: tuple[UnitInterval, ...]
    covers: Coverage | None = None

    @property
    def threshold(self) -> float:
        """The threshold of a two-stage cascade."""
        if len(self.thresholds) != 1:
            raise ValueError(f"this cascade has {len(self.thresholds)} thresholds, not one")
        return self.thresholds[0]


class Setting(Schema):
    """Thresholds for one combination of forms, what certifies them, and the gears above them.

    ``path`` was chosen on the selection split; certification walks it. Each gear is a threshold
    vector, none of its components below the certified one.
    """

    thresholds: tuple[Threshold, ...]
    path: ThresholdPath | None = None
    certificate: Certificate | None = None
    gears: tuple[tuple[Threshold, ...], ...] = ()


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
    settings: dict[str, Setting]
    golden: Golden | None = None
    provenance: tuple[Provenance, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> CascadeSpec:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names repeat: {names}")
        if len(self.gates) != len(names) - 1:
            raise ValueError(
                f"{len(names)} stages need {len(names) - 1} gate(s), found {len(self.gates)}"
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


def digest(part: BaseModel) -> str:
    """Return the sha256 of a schema object's canonical JSON."""
    text = json.dumps(part.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _rectangle(points: tuple[tuple[float, ...], ...]) -> npt.NDArray[np.float32]:
    widths = {len(point) for point in points}
    if len(widths) != 1:
        raise ValueError(f"path: expected points of one length, got lengths {sorted(widths)}")
    return np.asarray(points, np.float32)


def _check_sources(stage: Stage, *, earlier: list[str]) -> None:
    for item in stage.inputs:
        producer = item.source.partition("/")[0]
        if item.source != "frames" and producer not in earlier:
            raise ValueError(
                f"stage {stage.name}: input {item.tensor} reads {item.source!r}; "
                f"expected 'frames' or '<stage>/<output>' with an earlier stage of {earlier}"
            )
