"""What the checked launches refuse, with the message, and what they make of the rest."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest

from kernels import ops
from kernels.launch import DeviceArray

ADDRESSES = itertools.count(2**50, 2**41)


def array(dtype: str, *shape: int, address: int | None = None) -> DeviceArray:
    """Memory that nobody reads: checks look at addresses only."""
    return DeviceArray(next(ADDRESSES) if address is None else address, np.dtype(dtype), shape)


class Recorder:
    def __init__(self) -> None:
        self.launched: list[tuple[ops.Kernel, tuple[int, int, int]]] = []

    def load(self, module: str) -> None:
        raise AssertionError("nothing is loaded while launching")

    def launch(
        self,
        kernel: ops.Kernel,
        grid: tuple[int, int, int],
        arguments: ctypes.Structure,
        *,
        stream: int,
    ) -> None:
        self.launched.append((kernel, grid))


def gate_arrays(
    rows: int = 64, classes: int = 10, dtype: str = "float32", sizes: int = 3
) -> dict[str, Any]:
    rounds = -(-rows // 4) if rows else 0
    return {
        "inputs": ops.GateInputs(
            logits=array(dtype, rows, classes),
            valid=array("int32", 1),
            thresholds=array("float32", 1),
            temperature=array("float32", 1),
            buckets=array("int32", sizes),
        ),
        "outputs": ops.GateOutputs(
            label=array("int32", rows),
            confidence=array("float32", rows),
            stage=array("int8", rows),
            idx=array("int32", rows),
            count=array("int32", 1),
            bucket=array("int32", rounds),
            bucket_index=array("int32", rounds),
        ),
        "scratch": ops.GateScratch(
            masks=array("uint64", ops.mask_words(rows)), ticket=array("uint32", 1)
        ),
    }


def gate(arrays: dict[str, Any], **options: Any) -> ops.Launch:
    options = {"buckets": (1, 2, 4), "stage": 0, **options}
    return ops.gate(arrays["inputs"], arrays["outputs"], arrays["scratch"], **options)


def changed(part: str, **arrays: Any) -> dict[str, Any]:
    made = gate_arrays()
    return {**made, part: dataclasses.replace(made[part], **arrays)}


@pytest.mark.parametrize(
    ("classes", "dtype", "score", "name", "blocks"),
    [
        (2, "float32", "max_softmax", "gate_max_softmax_fp32_x4", 1),
        (128, "float16", "margin", "gate_margin_fp16_x4", 1),
        (129, "float16", "entropy", "gate_entropy_fp16_x32", 8),
        (4096, "float32", "max_softmax", "gate_max_softmax_fp32_x32", 8),
        (4097, "float32", "max_softmax", "gate_max_softmax_fp32_x256", 64),
        (1000, "float16", "p_norm", "gate_p_norm_fp16_x256", 64),
        (10, "float32", "p_norm", "gate_p_norm_fp32_x4", 1),
    ],
)
def test_the_kernel_follows_from_classes_dtype_and_score(
    classes: int, dtype: str, score: ops.ScoreName, name: str, blocks: int
) -> None:
    launch = gate(gate_arrays(64, classes, dtype), score=score)
    assert launch.kernel == ops.Kernel("gate", name, threads=256)
    assert launch.grid == (blocks, 1, 1)


def test_enqueuing_only_launches() -> None:
    recorder = Recorder()
    launch = gate(gate_arrays())
    launch.enqueue(recorder, stream=7)
    launch.enqueue(recorder, stream=7)
    assert recorder.launched == [(launch.kernel, (1, 1, 1))] * 2


def test_no_rows_launch_nothing() -> None:
    recorder = Recorder()
    gate(gate_arrays(rows=0)).enqueue(recorder, stream=0)
    empty = ops.Escalated(array("int32", 0), array("int32", 1), array("int32", 0), 4, 0)
    ops.gather([(array("uint8", 5, 3), array("uint8", 0, 3))], empty).enqueue(recorder, stream=0)
    ops.scatter(
        array("float32", 0, 10), empty, answers(5), temperature=array("float32", 1), stage=1
    ).enqueue(recorder, stream=0)
    assert recorder.launched == []


@pytest.mark.parametrize(
    ("part", "name", "wrong", "message"),
    [
        ("inputs", "logits", ("float64", 64, 10), "logits: expected f16 or f32 [rows, K], got f64"),
        ("inputs", "logits", ("float32", 640), "logits: expected f16 or f32 [rows, K], got f32 [6"),
        ("inputs", "logits", ("float32", 64, 1), "classes: expected 2 to 2147483647, got 1"),
        ("inputs", "valid", ("int64", 1), "valid: expected i32 [1], got i64 [1]"),
        ("inputs", "thresholds", ("float32", 9), "thresholds: expected f32 [10], got f32 [9]"),
        ("inputs", "temperature", ("float32",), "temperature: expected f32 [1], got f32 []"),
        ("inputs", "buckets", ("int32", 4), "buckets: expected i32 [3], got i32 [4]"),
        ("inputs", "force", ("bool", 64), "force: expected u8 [64], got b8 [64]"),
        ("inputs", "row_map", ("int32", 63), "row_map: expected i32 [64], got i32 [63]"),
        ("inputs", "scores", ("float32", 64), "scores: expected for score 'learned' and only then"),
        ("outputs", "label", ("int32", 64, 1), "label: expected i32 [samples], got i32 [64, 1]"),
        ("outputs", "confidence", ("float32", 65), "confidence: expected f32 [64], got f32 [65]"),
        ("outputs", "stage", ("uint8", 64), "stage: expected i8 [64], got u8 [64]"),
        ("outputs", "idx", ("int32", 65), "idx: expected i32 [64], got i32 [65]"),
        ("outputs", "count", ("uint32", 1), "count: expected i32 [1], got u32 [1]"),
        ("outputs", "bucket", ("int32", 1), "bucket: expected i32 [16], got i32 [1]"),
        ("outputs", "bucket_index", ("int32", 1), "bucket_index: expected i32 [16], got i32 [1]"),
        ("scratch", "masks", ("uint64", 1), "masks: expected u64 [64], got u64 [1]"),
        ("scratch", "ticket", ("uint64", 1), "ticket: expected u32 [1], got u64 [1]"),
    ],
)
def test_a_wrong_array_is_named(part: str, name: str, wrong: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        gate(changed(part, **{name: array(*wrong)}))


def test_without_a_row_map_there_are_as_many_samples_as_rows() -> None:
    label, confidence, stage = answers(63)
    with pytest.raises(ValueError, match=r"^samples: expected 64 to \d+, got 63$"):
        gate(changed("outputs", label=label, confidence=confidence, stage=stage))
    made = changed("outputs", label=label, confidence=confidence, stage=stage)
    mapped = dataclasses.replace(made["inputs"], row_map=array("int32", 64))
    assert gate({**made, "inputs": mapped}).grid == (1, 1, 1)


def test_a_learned_gate_needs_its_scores() -> None:
    with pytest.raises(ValueError, match=r"^scores: expected for score 'learned'.*got none$"):
        gate(gate_arrays(), score="learned")
    launch = gate(changed("inputs", scores=array("float32", 64)), score="learned")
    assert launch.kernel.name == "gate_tensor_fp32_x4"


@pytest.mark.parametrize("part", ["logits", "valid"])
def test_a_misaligned_address_is_refused(part: str) -> None:
    wrong = getattr(gate_arrays()["inputs"], part)._replace(address=2**40 + 2)
    with pytest.raises(ValueError, match=f"^{part}: expected an address that is a multiple of 4"):
        gate(changed("inputs", **{part: wrong}))


def test_memory_that_is_written_may_not_be_shared() -> None:
    arrays = gate_arrays()
    label = arrays["outputs"].label
    with pytest.raises(ValueError, match=r"^(idx|label): expected memory of its own, overlaps"):
        gate(changed("outputs", label=label, idx=label._replace(address=label.address + 252)))
    with pytest.raises(ValueError, match="expected memory of its own, overlaps logits"):
        logits = array("float32", 64, 10)
        gate(
            {
                **changed("inputs", logits=logits),
                "outputs": dataclasses.replace(
                    arrays["outputs"],
                    confidence=array("float32", 64, address=logits.address + 64 * 36),
                ),
            }
        )


def test_memory_that_is_only_read_may_be_shared() -> None:
    one = array("float32", 1)
    gate(changed("inputs", thresholds=one, temperature=one))


@pytest.mark.parametrize("buckets", [(), (4, 2), (1, 1), (0, 1), (-1,)])
def test_buckets_ascend_from_one(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^buckets: expected ascending positive sizes, got \["):
        gate(gate_arrays(sizes=len(buckets)), buckets=buckets)


@pytest.mark.parametrize("p", [0.5, float("nan"), float("inf")])
def test_p_is_at_least_one(p: float) -> None:
    with pytest.raises(ValueError, match=r"^p: expected a finite number >= 1"):
        gate(gate_arrays(), score="p_norm", p=p)


@pytest.mark.parametrize("stage", [-1, 128])
def test_a_stage_fits_its_eight_bits(stage: int) -> None:
    with pytest.raises(ValueError, match=r"^stage: expected 0 to 127"):
        gate(gate_arrays(), stage=stage)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf"), [0.5, 2.0]])
def test_thresholds_lie_in_the_unit_interval(threshold: Any) -> None:
    with pytest.raises(ValueError, match=r"^thresholds: expected numbers in \[0, 1\]"):
        ops.threshold_values(threshold, 2)


def test_thresholds_are_one_or_one_per_class() -> None:
    assert ops.threshold_values(0.1, 10).tolist() == [np.float32(0.1)]
    assert ops.threshold_values([0.1] * 10, 10).shape == (10,)
    with pytest.raises(ValueError, match=r"^thresholds: expected 1 or 10 numbers, got \[9\]"):
        ops.threshold_values([0.1] * 9, 10)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-50])
def test_a_temperature_is_a_positive_float32(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^temperature: expected a finite float32 > 0"):
        ops.temperature_value(temperature)


def answers(samples: int = 64) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    return (array("int32", samples), array("float32", samples), array("int8", samples))


def escalated(rows: int = 64, largest: int = 16, rounds: int = 4) -> ops.Escalated:
    return ops.Escalated(
        array("int32", rows), array("int32", 1), array("int32", rounds), largest, rounds
    )


def pair(
    *shape: int, rows: int = 64, dtype: str = "float32", offset: int = 0
) -> tuple[DeviceArray, DeviceArray]:
    source, target = array(dtype, rows, *shape), array(dtype, 64, *shape)
    return (
        source._replace(address=source.address + offset),
        target._replace(address=target.address + offset),
    )


@pytest.mark.parametrize(
    ("pairs", "kernel", "grid"),
    [
        ([pair(3, 8, 8)], "gather_16", (1, 64, 1)),
        ([pair(3, 224, 224)], "gather_16", (37, 64, 1)),
        ([pair(8, offset=4)], "gather_4", (1, 64, 1)),
        ([pair(3)], "gather_4", (1, 64, 1)),
        ([pair(8), pair(3, dtype="uint8")], "gather_1", (1, 64, 2)),
    ],
)
def test_gather_takes_the_widest_word_that_divides_rows_and_addresses(
    pairs: list[tuple[DeviceArray, DeviceArray]], kernel: str, grid: tuple[int, int, int]
) -> None:
    launch = ops.gather(pairs, escalated())
    assert (launch.kernel.name, launch.grid) == (kernel, grid)


@pytest.mark.parametrize(
    ("pairs", "plan", "message"),
    [
        ([], escalated(), "pairs: expected 1 to 8 tensors, got 0"),
        ([pair(1) for _ in range(9)], escalated(), "pairs: expected 1 to 8 tensors, got 9"),
        (
            [(array("float32", 64, 3), array("float16", 64, 3))],
            escalated(),
            "target 0: expected f32 [64, 3], got f16 [64, 3]",
        ),
        (
            [pair(2), (array("float32", 64, 3), array("float32", 63, 3))],
            escalated(),
            "target 1: expected f32 [64, 3], got f32 [63, 3]",
        ),
        ([pair(2)], escalated(rows=65), "rounds * largest: expected 65 to 2147483647, got 64"),
        ([pair(2)], escalated(largest=0), "largest: expected 1 to 2147483647, got 0"),
        (
            [pair(2)],
            escalated(largest=2**20, rounds=2**12),
            "rounds * largest: expected 64 to 2147483647, got 4294967296",
        ),
    ],
)
def test_gather_refuses(pairs: Any, plan: ops.Escalated, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.gather(pairs, plan)


def test_gather_into_its_own_source_is_refused() -> None:
    source, _ = pair(4)
    with pytest.raises(ValueError, match="expected memory of its own"):
        ops.gather([(source, source)], escalated())


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (("float32", 63, 10), "logits: expected f16 or f32 [64, K], got f32 [63, 10]"),
        (("int8", 64, 10), "logits: expected f16 or f32 [64, K], got i8 [64, 10]"),
        (("float16", 64, 1), "classes: expected 2 to 2147483647, got 1"),
    ],
)
def test_scatter_refuses(logits: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.scatter(
            array(*logits), escalated(), answers(), temperature=array("float32", 1), stage=1
        )


def test_combined_logits_have_one_dtype() -> None:
    other = ops.Combination(array("float32", 64, 10), array("float32", 1))
    with pytest.raises(ValueError, match=r"^other: expected f16 \[rows, 10\], got f32"):
        ops.scatter(
            array("float16", 64, 10),
            escalated(),
            answers(),
            temperature=array("float32", 1),
            stage=1,
            combination=other,
        )


@pytest.mark.parametrize(
    ("handles", "is_switch"), [([], True), ([], False), ([1, 2], True), ([1] * 33, False)]
)
def test_select_refuses_a_wrong_number_of_handles(handles: list[int], is_switch: bool) -> None:
    with pytest.raises(ValueError, match=r"^handles: expected 1 to (1|32), got"):
        ops.select(array("int32", 1), handles, is_switch=is_switch)


def test_products_of_sizes_are_not_32_bits_wide() -> None:
    """2^31 logits and rows of 2^31 bytes: launches are made, with sizes that did not wrap."""
    launch = gate(gate_arrays(rows=2**21, classes=2**11))
    assert launch.grid == (2**18, 1, 1)
    wide = ops.gather([(array("uint8", 64, 2**33), array("uint8", 64, 2**33))], escalated())
    assert wide.grid == (2**33 // 16 // 1024, 64, 1)
    assert wide.arguments.tensors[0].units == 2**29
