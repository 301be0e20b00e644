"""The preprocess kernel on the CPU emulation against the reference."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest

from kernels import ops, reference_preprocess
from kernels.launch import DeviceArray
from tests.cuda_cpu.emulation import EmulatedLauncher
from tests.kernels.dense_cases import Plan
from tests.kernels.machine import EmulatedMachine, emulated
from tests.kernels.preprocess_cases import (
    FORMATS,
    Source,
    compare,
    network,
    run_preprocess,
    upload_table,
)

SIZES = [
    ((2, 2), (1, 1)),
    ((2, 2), (7, 33)),
    ((6, 4), (6, 4)),
    ((28, 28), (14, 15)),
    ((8, 64), (33, 9)),
    ((64, 8), (5, 41)),
    ((38, 54), (24, 24)),
    ((30, 32), (32, 65)),
]
RESIZES = ("stretch", "centre_crop", "letterbox")


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("resize", RESIZES)
def test_every_format_in_every_resize(before, after, resize) -> None:
    sources = [Source(*before, format=name) for name in FORMATS]
    run_preprocess(sources, network(*after, "rgb", resize), emulated())


@pytest.mark.parametrize("colour", ["grey", "rgb", "bgr"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("resize", RESIZES)
def test_every_network_colour_normalised(colour, dtype, resize) -> None:
    sources = [Source(10, 22, format=name) for name in FORMATS]
    net = network(12, 13, colour, resize, unit=False)
    run_preprocess(sources, net, emulated(), dtype=dtype)


@pytest.mark.parametrize("size", [(3, 5), (7, 2), (2, 31)])
@pytest.mark.parametrize("name", ["grey", "rgb", "bgr"])
def test_odd_sizes_of_packed_frames(size, name) -> None:
    run_preprocess([Source(*size, format=name)], network(4, 6), emulated())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("pitch", "offset"), [(0, 1), (1, 3), (64, 0), (29, 7)])
def test_frames_at_any_address_with_any_pitch(name, pitch, offset) -> None:
    source = Source(6, 10, format=name, pitch=pitch, offset=offset)
    run_preprocess([source], network(9, 7), emulated())


@pytest.mark.parametrize("resize", RESIZES)
def test_chroma_planes_that_lie_elsewhere(resize) -> None:
    source = Source(12, 18, format="nv12", pitch=2, split=True)
    run_preprocess([source, source._replace(pitch=0)], network(7, 7, "bgr", resize), emulated())


def test_frames_of_any_size_and_format_share_one_launch() -> None:
    sources = [
        Source(6, 8, format="nv12"),
        Source(2, 2, format="grey", offset=3),
        Source(40, 31, format="bgr", pitch=5),
        Source(9, 50, format="rgb"),
        Source(64, 48, format="nv12-709-full", split=True),
    ]
    for resize in RESIZES:
        run_preprocess(sources, network(11, 17, "rgb", resize), emulated(seed=3))


@pytest.mark.parametrize(("name", "tap_bytes"), [("grey", 1), ("rgb", 3), ("nv12", 3)])
def test_every_output_is_written_once_and_every_tap_read_once(name, tap_bytes) -> None:
    launcher = EmulatedLauncher()
    run_preprocess([Source(30, 70, format=name)] * 2, network(50, 67), EmulatedMachine(launcher))
    (launched,) = launcher.launched
    pixels, blocks = 2 * 50 * 67, 2 * 2 * 3
    assert launched.bytes_written == 3 * 4 * pixels
    # Six threads of a block read the count and their part of the table.
    assert launched.bytes_read == 4 * tap_bytes * pixels + 6 * blocks * (4 + 16)


@pytest.mark.parametrize("valid", [0, 1, 3, 4])
def test_rows_behind_the_valid_ones_are_not_written(valid) -> None:
    run_preprocess([Source(4, 6)] * 4, network(5, 5), emulated(), valid=valid)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(1, 0),
        Plan(5, 5),
        Plan(9, 4, (1, 2, 4)),
        Plan(9, 5, (4,)),
        Plan(9, 0, (2, 4), padded=True),
        Plan(7, 3, (4,), padded=True),
    ],
    ids=str,
)
def test_escalated_rows_come_straight_from_their_frames(plan: Plan) -> None:
    names = list(FORMATS)
    sources = [Source(6 + 2 * i, 8, format=names[i % len(names)]) for i in range(plan.rows)]
    run_preprocess(sources, network(5, 9, "rgb", "letterbox"), emulated(seed=1), plan=plan)


def test_wide_frames_keep_their_precision() -> None:
    sources = [Source(2, 4096, format="grey"), Source(2, 32766, format="nv12")]
    run_preprocess(sources, network(1, 223, "grey"), emulated())
    run_preprocess([Source(8190, 2, format="rgb")], network(311, 2), emulated())


def test_another_table_serves_the_same_launch() -> None:
    """What a captured graph does: its launch stays, the memory that it reads changes."""
    machine, net = emulated(), network(6, 6, unit=False)
    table = machine.upload(np.zeros((1, 96), np.uint8))
    out = machine.upload(np.zeros((1, *net.shape), np.float32))
    launch = ops.preprocess(table, machine.upload(np.array([1], np.int32)), out, net)
    for source in (Source(8, 6, format="rgb"), Source(4, 10, format="nv12")):
        frame = source.frame()
        content = ops.frame_table([source.upload(frame, machine)], net).tobytes()
        ctypes.memmove(table.address, content, len(content))
        machine.run(launch)
        expected = reference_preprocess.preprocess(frame, FORMATS[source.format], net)
        compare(machine.download(out)[0], expected, net)


def test_a_grid_lower_than_the_rows_makes_them_all() -> None:
    machine, net = emulated(resident=2), network(40, 33)
    sources = [Source(4 + i, 6) for i in range(5)]
    frames = [source.frame() for source in sources]
    uploaded = [s.upload(frame, machine) for s, frame in zip(sources, frames, strict=True)]
    out = machine.upload(np.zeros((5, *net.shape), np.float32))
    valid = machine.upload(np.array([5], np.int32))
    launch = ops.preprocess(upload_table(uploaded, net, machine), valid, out, net)
    assert launch.grid == (4, 5, 1)
    machine.run(dataclasses.replace(launch, grid=(4, 2, 1)))
    for frame, image in zip(frames, machine.download(out), strict=True):
        compare(image, reference_preprocess.preprocess(frame, FORMATS["rgb"], net), net)


def test_a_batch_above_4_gib() -> None:
    """Only a tile of the last image is made: memory that nobody touches costs nothing."""
    machine, net, rows = emulated(), network(2048, 2048, "grey"), 520
    source = Source(4, 6)
    frame = source.frame()
    table = upload_table([source.upload(frame, machine)], net, machine)
    images = np.zeros((rows, *net.shape), np.float16)
    assert images.size > 2**31
    out = DeviceArray(images.ctypes.data, images.dtype, images.shape)
    last = (np.arange(rows) == rows - 1).astype(np.int32)
    idx, count = machine.upload(0 * last), machine.upload(np.array([rows], np.int32))
    escalated = ops.Escalated(idx, count, machine.upload(last), largest=1, rounds=rows)
    launch = ops.preprocess(table, escalated, out, net)
    machine.run(dataclasses.replace(launch, grid=(1, rows, 1)))
    expected = reference_preprocess.preprocess(frame, FORMATS["rgb"], net)
    compare(images[-1, :, :32, :32], expected[:, :32, :32], net)
    assert not images[-1, :, :64, 32:64].any()


@pytest.mark.parametrize("name", ["grey", "nv12"])
def test_a_pitch_above_2_gib(name) -> None:
    machine, net, pitch = emulated(), network(5, 5), 2**30 + 2**29
    source = Source(4, 6, format=name)
    frame = source.frame()
    memory = np.zeros(len(frame) * pitch, np.uint8)
    for row, content in enumerate(frame.reshape(len(frame), -1)):
        memory[row * pitch : row * pitch + len(content)] = content
    uploaded = ops.Frame(memory.ctypes.data, 4, 6, FORMATS[name], pitch=pitch)
    out = machine.upload(np.zeros((1, *net.shape), np.float32))
    valid = machine.upload(np.array([1], np.int32))
    machine.run(ops.preprocess(upload_table([uploaded], net, machine), valid, out, net))
    expected = reference_preprocess.preprocess(frame, FORMATS[name], net)
    compare(machine.download(out)[0], expected, net)


@pytest.mark.parametrize("seed", range(60))
def test_shapes_drawn_at_random(seed) -> None:
    rng = np.random.default_rng(seed)
    sources = [
        Source(
            *(2 * rng.integers(1, 60, 2)),
            format=str(rng.choice(list(FORMATS))),
            pitch=int(rng.integers(0, 20)),
            offset=int(rng.integers(0, 16)),
        )
        for _ in range(rng.integers(1, 5))
    ]
    net = network(
        *rng.integers(1, 90, 2).tolist(),
        colour=rng.choice(["grey", "rgb", "bgr"]),
        resize=rng.choice(RESIZES),
        unit=bool(rng.integers(2)),
    )
    dtype = str(rng.choice(["float16", "float32"]))
    run_preprocess(sources, net, emulated(seed=seed), dtype=dtype)
