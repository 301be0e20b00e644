"""Every kernel on a GPU against its float64 reference: what `runtime.verify` runs first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import ops, reference, reference_preprocess
from kernels.launch import DeviceArray, Launch
from runtime.cuda import CudaDevice
from runtime.cuda_resources import Resources

Array = npt.NDArray[Any]

MODULES = ("gate", "gather", "scatter", "preprocess")

_ROWS, _VALID, _SAMPLES = 70, 67, 83
_TEMPERATURE = 1.5
_STAGE = 3
_CLASSES = (10, 200, 4500)  # a gate gives such rows 4, 32 and 256 threads
_P_NORM_CLASSES = (10, 100, 4500)
_SCORES: tuple[ops.ScoreName, ...] = ("max_softmax", "margin", "entropy", "p_norm", "learned")
_BUCKETS = (1, 4, 16)
_BAND = 1e-5  # rows this close to the threshold may be decided either way
_UNTOUCHED = -7


class KernelCheck(NamedTuple):
    """One kernel.

    Attributes
    ----------
    wrong
        Values that differ from the reference by more than rounding.
    of
        Values compared.
    """

    name: str
    wrong: int
    of: int


class Memory:
    """Arrays on the device, freed together."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._resources = Resources(device)
        self._stream = self._resources.stream()

    def put(self, values: Array) -> DeviceArray:
        """Return a copy on the device."""
        memory = self._resources.allocate(values.nbytes, "self-check")
        array = memory.array(values.dtype, values.shape)
        self._stream.upload(array, np.ascontiguousarray(values))
        return array

    def number(self, value: float, dtype: npt.DTypeLike) -> DeviceArray:
        """Return an array of one number."""
        return self.put(np.array([value], dtype))

    def new(self, dtype: npt.DTypeLike, *shape: int) -> DeviceArray:
        """Return an array that no kernel has written."""
        return self.put(np.full(shape, _UNTOUCHED, dtype))

    def get(self, array: DeviceArray) -> Array:
        """Return a copy on the host."""
        return self._stream.download(array)

    def run(self, launch: Launch) -> None:
        """Run a kernel to its end."""
        launch.enqueue(self._device, stream=self._stream.handle)
        self._stream.sync()

    def close(self) -> None:
        """Free all arrays."""
        self._resources.close()


def check_kernels(device: CudaDevice) -> Iterator[KernelCheck]:
    """Run every variant of every kernel, and compare.

    All but ``select``, which only runs in a graph: the launch mode that has one checks it.

    Raises
    ------
    DeviceError
        When a kernel cannot be compiled, loaded or run.
    """
    with device.active():
        for module in MODULES:
            device.load(module)
        memory = Memory(device)
        try:
            for score, dtype in product(_SCORES, (np.float16, np.float32)):
                for classes in _P_NORM_CLASSES if score == "p_norm" else _CLASSES:
                    yield check_gate(memory, score, dtype, classes)
            for width in (16, 3, 1):
                yield _check_gather(memory, width)
            for dtype in (np.float16, np.float32):
                for classes, combined in product((200, 4500), (False, True)):
                    yield _check_scatter(memory, dtype, classes, combined=combined)
                yield _check_preprocess(memory, dtype)
        finally:
            memory.close()


class _Gate:
    """A case of a gate: all that one can have, but a threshold per class."""

    def __init__(self, score: ops.ScoreName, dtype: npt.DTypeLike, classes: int) -> None:
        self.score, self.classes = score, classes
        rng = np.random.default_rng(classes)
        self.logits = _logits(_ROWS, classes, dtype)
        self.force = (rng.random(_SAMPLES) < 0.1).astype(np.uint8)
        self.row_map = np.sort(rng.permutation(_SAMPLES)[:_ROWS]).astype(np.int32)
        self.scores = _scores(self.logits, score)
        sureness = reference.softmax(self.logits, _TEMPERATURE).confidence
        self.threshold = float(np.median(sureness if self.scores is None else self.scores))

    def inputs(self, memory: Memory) -> ops.GateInputs:
        learned = self.scores if self.score == "learned" else None
        return ops.GateInputs(
            logits=memory.put(self.logits),
            valid=memory.number(_VALID, np.int32),
            thresholds=memory.put(ops.threshold_values(self.threshold, self.classes)),
            temperature=memory.put(ops.temperature_value(_TEMPERATURE)),
            buckets=memory.put(np.array(_BUCKETS, np.int32)),
            scores=None if learned is None else memory.put(learned),
            force=memory.put(self.force),
            row_map=memory.put(self.row_map),
        )

    def expected(self) -> reference.Gated:
        return reference.gate(
            self.logits[:_VALID],
            self.threshold,
            _TEMPERATURE,
            _BUCKETS,
            scores=None if self.scores is None else self.scores[:_VALID],
            force=self.force,
            row_map=self.row_map[:_VALID],
        )


def check_gate(
    memory: Memory, score: ops.ScoreName, dtype: npt.DTypeLike, classes: int
) -> KernelCheck:
    """Run one variant of the gate twice, as a captured graph would: the host resets nothing."""
    case = _Gate(score, dtype, classes)
    rounds = ops.rounds(_ROWS, _BUCKETS)
    outputs = ops.GateOutputs(
        label=memory.new(np.int32, _SAMPLES),
        confidence=memory.new(np.float32, _SAMPLES),
        stage=memory.new(np.int8, _SAMPLES),
        idx=memory.new(np.int32, _ROWS),
        count=memory.new(np.int32, 1),
        bucket=memory.new(np.int32, rounds),
        bucket_index=memory.new(np.int32, rounds),
        idx_rows=memory.new(np.int32, _ROWS),
    )
    masks = memory.put(np.full(ops.mask_words(_ROWS), 2**64 - 1, np.uint64))
    scratch = ops.GateScratch(masks, memory.number(0, np.uint32))
    inputs = case.inputs(memory)
    launch = ops.gate(inputs, outputs, scratch, buckets=_BUCKETS, stage=_STAGE, score=score)
    memory.run(launch)
    memory.run(launch)
    found = {name: memory.get(array) for name, array in vars(outputs).items()}
    return KernelCheck(launch.kernel.name, _wrong_of_gate(case, found), _ROWS)


def _wrong_of_gate(case: _Gate, found: dict[str, Array]) -> int:
    expected, row_map = case.expected(), case.row_map
    count = int(np.clip(found["count"][0], 0, _VALID))
    listed = found["idx_rows"][:count]
    rows = listed[(listed >= 0) & (listed < _VALID)]
    near = np.abs(expected.confidence - np.float32(case.threshold)) <= _BAND
    moved = np.setxor1d(rows, expected.rows)
    wrong = len(listed) - len(rows) + int((~near[moved]).sum()) + int((np.diff(rows) <= 0).sum())
    wrong += int((found["idx"][:count][: len(rows)] != row_map[rows]).sum())
    kept = np.setdiff1d(np.setdiff1d(np.arange(_VALID), rows), expected.rows)
    wrong += _wrong_answers(found, row_map[kept], expected.label[kept], expected.confidence[kept])
    others = np.setdiff1d(np.arange(_SAMPLES), row_map[np.setdiff1d(np.arange(_VALID), rows)])
    wrong += sum(int((found[name][others] != _UNTOUCHED).sum()) for name in _ANSWERS)
    bucket = reference.bucket_rounds(count, _ROWS, _BUCKETS)
    index = np.where(bucket == 0, len(_BUCKETS), np.searchsorted(_BUCKETS, bucket))
    wrong += int((found["bucket"] != bucket).sum()) + int((found["bucket_index"] != index).sum())
    return wrong


_ANSWERS = ("label", "confidence", "stage")


def _wrong_answers(found: dict[str, Array], samples: Array, label: Array, confidence: Array) -> int:
    """Return at how many samples the answers are not these."""
    right = found["label"][samples] == label
    right &= np.isclose(found["confidence"][samples], confidence, rtol=1e-4, atol=_BAND)
    right &= found["stage"][samples] == _STAGE
    return int((~right).sum())


def _logits(rows: int, classes: int, dtype: npt.DTypeLike) -> Array:
    """Return random logits, some rows of which are not valid."""
    rng = np.random.default_rng([rows, classes])
    logits = rng.standard_normal((rows, classes)) * 3
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        logits[row, row % classes] = value
    logits[3] = -np.inf
    logits[4] = 1.0
    return logits.astype(dtype)


def _scores(logits: Array, score: ops.ScoreName) -> Array | None:
    if score == "max_softmax":
        return None
    if score == "learned":
        return np.random.default_rng(0).random(len(logits)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return reference.score(logits, score, temperature=_TEMPERATURE)


def _escalated(memory: Memory, count: int) -> tuple[Array, ops.Escalated]:
    idx = np.sort(np.random.default_rng(count).permutation(_ROWS).astype(np.int32)[:count])
    padded = np.concatenate([idx, np.zeros(_ROWS - count, np.int32)])
    bucket = reference.bucket_rounds(count, _ROWS, _BUCKETS)
    return idx, ops.Escalated(
        memory.put(padded),
        memory.number(count, np.int32),
        memory.put(bucket),
        _BUCKETS[-1],
        len(bucket),
    )


def _check_gather(memory: Memory, width: int) -> KernelCheck:
    """Rows of ``width`` floats, or of one byte: words of 16, 4 and 1 bytes."""
    dtype = np.uint8 if width == 1 else np.float32
    untouched = np.full((), _UNTOUCHED % 256, dtype)
    tensor = np.random.default_rng(width).integers(0, 99, (_ROWS, width)).astype(dtype)
    idx, escalated = _escalated(memory, 19)
    target = memory.put(np.full((escalated.rounds * escalated.largest, width), untouched))
    launch = ops.gather([(memory.put(tensor), target)], escalated)
    memory.run(launch)
    bucket = reference.bucket_rounds(len(idx), _ROWS, _BUCKETS)
    rows = reference.dense_rows(idx, len(idx), _BUCKETS[-1], bucket)
    expected = np.where(rows[:, None] >= 0, tensor[rows], untouched)
    wrong = int((memory.get(target) != expected).any(1).sum())
    return KernelCheck(launch.kernel.name, wrong, len(rows))


def _check_scatter(
    memory: Memory, dtype: npt.DTypeLike, classes: int, *, combined: bool
) -> KernelCheck:
    idx, escalated = _escalated(memory, 21)
    logits = _logits(escalated.rounds * escalated.largest, classes, dtype)
    other = _logits(_ROWS, classes, dtype)[::-1].copy()
    arrays = [memory.new(kind, _ROWS) for kind in (np.int32, np.float32, np.int8)]
    weight = memory.number(0.5, np.float32)
    launch = ops.scatter(
        memory.put(logits),
        escalated,
        (arrays[0], arrays[1], arrays[2]),
        temperature=memory.put(ops.temperature_value(_TEMPERATURE)),
        stage=_STAGE,
        combination=ops.Combination(memory.put(other), weight) if combined else None,
    )
    memory.run(launch)
    label, confidence = np.empty(_ROWS, np.int32), np.empty(_ROWS)
    added = {"other": other[idx], "weight": 0.5} if combined else {}
    with np.errstate(invalid="ignore"):
        reference.scatter(
            logits, idx, len(idx), label, confidence, temperature=_TEMPERATURE, **added
        )
    found = {name: memory.get(array) for name, array in zip(_ANSWERS, arrays, strict=True)}
    others = np.setdiff1d(np.arange(_ROWS), idx)
    wrong = _wrong_answers(found, idx, label[idx], confidence[idx])
    wrong += sum(int((found[name][others] != _UNTOUCHED).sum()) for name in _ANSWERS)
    return KernelCheck(launch.kernel.name, wrong, _ROWS)


def _check_preprocess(memory: Memory, dtype: npt.DTypeLike) -> KernelCheck:
    """Frames of every format, in a letterbox."""
    formats = (
        ops.PixelFormat("grey"),
        ops.PixelFormat("rgb"),
        ops.PixelFormat("bgr"),
        ops.PixelFormat("nv12", "bt601", "limited"),
        ops.PixelFormat("nv12", "bt709", "full"),
    )
    network = ops.NetworkInput((23, 17), "rgb", "letterbox", (0.5,) * 3, (0.25,) * 3)
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (36 if p.colour == "nv12" else 24, 40, p.bytes_per_pixel), np.uint8)
        for p in formats
    ]
    frames = [
        ops.Frame(memory.put(image).address, 24, 40, p)
        for image, p in zip(images, formats, strict=True)
    ]
    table = ops.frame_table(frames, network).view(np.uint8).reshape(len(frames), -1)
    out = memory.new(dtype, len(frames), *network.shape)
    valid = memory.put(np.array([len(frames)], np.int32))
    launch = ops.preprocess(memory.put(table), valid, out, network)
    memory.run(launch)
    expected = np.stack(
        [
            reference_preprocess.preprocess(image, p, network)
            for image, p in zip(images, formats, strict=True)
        ]
    )
    # 1e-3 grey levels, in units of the network's input; and the rounding of fp16 up to 2.
    allowed = 1e-3 / 255 / 0.25 + (1e-3 if np.dtype(dtype).itemsize == 2 else 0)
    wrong = int((np.abs(memory.get(out) - expected) > allowed).sum())
    return KernelCheck(launch.kernel.name, wrong, expected.size)
