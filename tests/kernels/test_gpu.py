"""The kernels on a GPU: the cases of the emulation, and how fast they move bytes.

``TINYSAVER_GPU_REPORT=FILE`` keeps the speeds as JSON; see docs/gpu-checklist.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kernels import ops
from runtime.cuda import CudaDevice
from tests.kernels.cuda_machine import CudaMachine, Speed
from tests.kernels.dense_cases import Plan, run_gather, run_scatter
from tests.kernels.gate_cases import Case, launch, make_logits, run, upload
from tests.kernels.preprocess_cases import (
    FORMATS,
    Source,
    network,
    run_preprocess,
    upload_table,
)
from tests.kernels.test_dense_emulated import PLANS
from tests.kernels.test_gate_emulated import matrix

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def machine() -> Iterator[CudaMachine]:
    device = CudaDevice()
    yield CudaMachine(device)
    device.close()


@pytest.mark.parametrize("case", matrix(), ids=str)
def test_gate(case: Case, machine: CudaMachine) -> None:
    run(case, machine)


@pytest.mark.parametrize("score", ["margin", "entropy", "p_norm", "learned"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("rows", "classes"), [(70, 10), (33, 130), (9, 1001), (5, 4500)])
def test_gate_with_other_scores(score, dtype, rows, classes, machine: CudaMachine) -> None:
    run(Case(rows, classes, dtype, "edge", score=score, force=True, samples=2 * rows), machine)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_gather(plan: Plan, machine: CudaMachine) -> None:
    tensor = np.random.default_rng(0).random((plan.rows, 3, 5), np.float32)
    run_gather(plan, [tensor, tensor.astype(np.float16)], machine)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("classes", [10, 1001, 4100])
def test_scatter(plan: Plan, classes: int, machine: CudaMachine) -> None:
    rng = np.random.default_rng(classes)
    logits = make_logits(rng, plan.dense_rows, classes, "edge").astype(np.float16)
    other = rng.standard_normal((plan.rows, classes)).astype(np.float16)
    run_scatter(plan, logits, machine)
    run_scatter(
        plan,
        make_logits(rng, *logits.shape, "plain").astype(np.float16),
        machine,
        other=other,
        weight=0.5,
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("resize", ["stretch", "centre_crop", "letterbox"])
def test_preprocess(resize: ops.Resize, dtype: str, machine: CudaMachine) -> None:
    sources = [Source(10, 22, format=name, pitch=5, offset=3) for name in FORMATS]
    plan = Plan(len(sources), 2, (1, 4))
    run_preprocess(sources, network(12, 13, "rgb", resize), machine, dtype=dtype)
    run_preprocess(sources, network(31, 7, "grey", resize), machine, dtype=dtype, plan=plan)


@pytest.mark.parametrize(("rows", "classes"), [(256, 10), (256, 1000), (4096, 1000), (256, 21843)])
def test_speed_of_the_gate(rows: int, classes: int, machine: CudaMachine) -> None:
    case = Case(rows, classes, "float16")
    arrays = upload(case, case.values(), machine)
    speed = machine.speed(launch(case, arrays), arrays.inputs.logits.nbytes)
    keep(f"gate fp16 {rows}x{classes}", speed)


@pytest.mark.parametrize("count", [26, 256])
def test_speed_of_gather(count: int, machine: CudaMachine) -> None:
    plan = Plan(256, count, (8, 32, 64, 128, 256))
    frames = np.zeros((256, 3, 224, 224), np.float16)
    pair = (machine.upload(frames), machine.upload(frames))
    nbytes = 2 * int((plan.sources() >= 0).sum()) * frames[0].nbytes
    keep(
        f"gather fp16 {count} of 256x3x224x224",
        machine.speed(ops.gather([pair], plan.upload(machine)), nbytes),
    )


@pytest.mark.parametrize("classes", [1000, 21843])
def test_speed_of_scatter(classes: int, machine: CudaMachine) -> None:
    plan = Plan(256, 256, (256,))
    logits = machine.upload(np.zeros((256, classes), np.float16))
    answers = [machine.upload(np.zeros(256, kind)) for kind in (np.int32, np.float32, np.int8)]
    temperature = machine.upload(ops.temperature_value(1.0))
    launch = ops.scatter(
        logits, plan.upload(machine), tuple(answers), temperature=temperature, stage=1
    )
    keep(f"scatter fp16 256x{classes}", machine.speed(launch, logits.nbytes))


@pytest.mark.parametrize("name", ["rgb", "nv12"])
def test_speed_of_preprocess(name: str, machine: CudaMachine) -> None:
    """Frames as large as the input: every byte is read once, or nearly."""
    source, net = Source(224, 224, format=name), network(224, 224)
    frame = source.upload(source.frame(), machine)
    table = upload_table([frame] * 32, net, machine)
    out = machine.upload(np.zeros((32, *net.shape), np.float16))
    valid = machine.upload(np.array([32], np.int32))
    nbytes = out.nbytes + 32 * source.frame().nbytes
    launch = ops.preprocess(table, valid, out, net)
    keep(f"preprocess fp16 {name} 32x224x224", machine.speed(launch, nbytes))


def keep(name: str, speed: Speed) -> None:
    """Print a speed, and add it to the report."""
    share = speed.share_of_peak
    peak = "" if share is None else f", {share:.0%} of the memory's peak"
    print(f"{name}: {speed.microseconds:.1f} us, {speed.gigabytes_per_second:.0f} GB/s{peak}")
    report = os.environ.get("TINYSAVER_GPU_REPORT")
    if report:
        path = Path(report)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, name: speed._asdict()}, indent=2))
