"""Every kernel on a GPU against its float64 reference: what `runtime.verify` runs first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import ops, reference, reference_preprocess
from kernels.launch import DeviceArray, Launch
from runtime.cuda import CudaDevice

Array = npt.NDArray[Any]

MODULES = ("gate", "gather", "scatter", "preprocess")

_ROWS = 70
_CLASSES = (10, 200, 4500)  # a gate gives such rows 4, 32 and 256 threads
_P_NORM_CLASSES = (10, 100, 4500)
_SCORES: tuple[ops.ScoreName, ...] = ("max_softmax", "margin", "entropy", "p_norm", "learned")
_BUCKETS = (1, 4, 16, 64)
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
        self._stream = device.stream()
        self._owned: list[Any] = []

    def put(self, values: Array) -> DeviceArray:
        """Return a copy on the device."""
        memory = self._device.allocate(values.nbytes, "self-check")
        self._owned.append(memory)
        array = memory.array(values.dtype, values.shape)
        self._stream.upload(array, np.ascontiguousarray(values))
        return array

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
        for memory in self._owned:
            memory.free()
        self._owned.clear()


def check_kernels(device: CudaDevice) -> Iterator[KernelCheck]:
    """Run every variant of every kernel, and compare.

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
            for score in _SCORES:
                for dtype in (np.float16, np.float32):
                    for classes in _P_NORM_CLASSES if score == "p_norm" else _CLASSES:
                        yield _check_gate(memory, score, dtype, classes)
            for width in (16, 3, 1):
                yield _check_gather(memory, width)
            for dtype in (np.float16, np.float32):
                for classes in (200, 4500):
                    yield _check_scatter(memory, dtype, classes, combined=False)
                    yield _check_scatter(memory, dtype, classes, combined=True)
                yield _check_preprocess(memory, dtype)
        finally:
            memory.close()


def _logits(rows: int, classes: int, dtype: npt.DTypeLike) -> Array:
    """Return random logits, some rows of which are not valid."""
    rng = np.random.default_rng([rows, classes])
    logits = rng.standard_normal((rows, classes)) * 3
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        logits[row, row % classes] = value
    logits[3] = -np.inf
    logits[4] = 1.0
    return logits.astype(dtype)


def _check_gate(
    memory: Memory, score: ops.ScoreName, dtype: npt.DTypeLike, classes: int
) -> KernelCheck:
    logits = _logits(_ROWS, classes, dtype)
    values = _scores(logits, score)
    threshold = float(np.median(reference.softmax(logits).confidence if values is None else values))
    inputs = ops.GateInputs(
        logits=memory.put(logits),
        valid=memory.put(np.array([_ROWS], np.int32)),
        thresholds=memory.put(ops.threshold_values(threshold, classes)),
        temperature=memory.put(ops.temperature_value(1.0)),
        buckets=memory.put(np.array(_BUCKETS, np.int32)),
        scores=memory.put(values) if score == "learned" and values is not None else None,
    )
    rounds = ops.rounds(_ROWS, _BUCKETS)
    outputs = ops.GateOutputs(
        label=memory.new(np.int32, _ROWS),
        confidence=memory.new(np.float32, _ROWS),
        stage=memory.new(np.int8, _ROWS),
        idx=memory.new(np.int32, _ROWS),
        count=memory.new(np.int32, 1),
        bucket=memory.new(np.int32, rounds),
        bucket_index=memory.new(np.int32, rounds),
    )
    masks = memory.new(np.uint64, ops.mask_words(_ROWS))
    scratch = ops.GateScratch(masks, memory.put(np.zeros(1, np.uint32)))
    launch = ops.gate(inputs, outputs, scratch, buckets=_BUCKETS, stage=1, score=score)
    memory.run(launch)
    memory.run(launch)  # again, as a captured graph would: nothing was reset by the host
    expected = reference.gate(logits, threshold, buckets=_BUCKETS, scores=values)
    wrong = _wrong_rows(memory, outputs, expected, threshold)
    return KernelCheck(launch.kernel.name, wrong, _ROWS)


def _scores(logits: Array, score: ops.ScoreName) -> Array | None:
    if score == "max_softmax":
        return None
    if score == "learned":
        return np.random.default_rng(0).random(len(logits)).astype(np.float32)
    return reference.score(logits, score)


def _wrong_rows(
    memory: Memory, outputs: ops.GateOutputs, expected: reference.Gated, threshold: float
) -> int:
    count = min(max(0, int(memory.get(outputs.count)[0])), _ROWS)
    found = memory.get(outputs.idx)[:count]
    near = np.abs(expected.confidence - np.float32(threshold)) <= _BAND
    kept = np.setdiff1d(np.setdiff1d(np.arange(_ROWS), expected.rows), found)
    moved = np.setxor1d(found, expected.rows)
    wrong = int((~near[moved[(moved >= 0) & (moved < _ROWS)]]).sum())
    wrong += int((np.diff(found) <= 0).sum())
    label, confidence = memory.get(outputs.label)[kept], memory.get(outputs.confidence)[kept]
    right = np.isclose(confidence, expected.confidence[kept], rtol=1e-4, atol=_BAND)
    wrong += int((~right | (label != expected.label[kept])).sum())
    bucket = reference.bucket_rounds(count, _ROWS, _BUCKETS)
    return wrong + int((memory.get(outputs.bucket) != bucket).sum())


def _escalated(memory: Memory, count: int) -> tuple[Array, ops.Escalated]:
    idx = np.sort(np.random.default_rng(count).permutation(_ROWS).astype(np.int32)[:count])
    padded = np.concatenate([idx, np.zeros(_ROWS - count, np.int32)])
    bucket = reference.bucket_rounds(count, _ROWS, _BUCKETS)
    return idx, ops.Escalated(
        memory.put(padded),
        memory.put(np.array([count], np.int32)),
        memory.put(bucket),
        _BUCKETS[-1],
        len(bucket),
    )


def _check_gather(memory: Memory, width: int) -> KernelCheck:
    """Rows of ``width`` floats, or of one byte: words of 16, 4 and 1 bytes."""
    dtype = np.uint8 if width == 1 else np.float32
    tensor = np.random.default_rng(width).integers(0, 99, (_ROWS, width)).astype(dtype)
    idx, escalated = _escalated(memory, 9)
    target = memory.new(dtype, escalated.rounds * escalated.largest, width)
    launch = ops.gather([(memory.put(tensor), target)], escalated)
    memory.run(launch)
    bucket = reference.bucket_rounds(len(idx), _ROWS, _BUCKETS)
    rows = reference.dense_rows(idx, len(idx), _BUCKETS[-1], bucket)
    expected = np.where(rows[:, None] >= 0, tensor[rows], np.full((), _UNTOUCHED, dtype))
    wrong = int((memory.get(target) != expected).any(1).sum())
    return KernelCheck(launch.kernel.name, wrong, len(rows))


def _check_scatter(
    memory: Memory, dtype: npt.DTypeLike, classes: int, *, combined: bool
) -> KernelCheck:
    idx, escalated = _escalated(memory, 21)
    logits = _logits(escalated.rounds * escalated.largest, classes, dtype)
    other = _logits(_ROWS, classes, dtype)[::-1].copy()
    answers = (
        memory.new(np.int32, _ROWS),
        memory.new(np.float32, _ROWS),
        memory.new(np.int8, _ROWS),
    )
    weight = memory.put(np.array([0.5], np.float32))
    launch = ops.scatter(
        memory.put(logits),
        escalated,
        answers,
        temperature=memory.put(ops.temperature_value(1.0)),
        stage=1,
        combination=ops.Combination(memory.put(other), weight) if combined else None,
    )
    memory.run(launch)
    label = np.full(_ROWS, _UNTOUCHED, np.int32)
    confidence = np.full(_ROWS, float(_UNTOUCHED))
    added = {"other": other[idx], "weight": 0.5} if combined else {}
    reference.scatter(logits, idx, len(idx), label, confidence, **added)
    right = (memory.get(answers[0]) == label) & np.isclose(
        memory.get(answers[1]), confidence, rtol=1e-4
    )
    return KernelCheck(launch.kernel.name, int((~right).sum()), _ROWS)


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
