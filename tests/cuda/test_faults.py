"""What can be wrong with a GPU, its software and its plans: each says what, and what to do."""

from __future__ import annotations

import logging
import os
import sys

import pytest

from runtime import Cascade, driver, tensorrt_engine
from runtime.devices import GpuOptions
from runtime.errors import (
    BundleError,
    ClosedError,
    DeviceError,
    DeviceMemoryError,
    InputError,
    PlanError,
    TensorRTError,
    TinysaverError,
)
from tests.cuda import bundles
from tests.cuda_double.driver import Failure
from tests.cuda_double.plans import write_plans
from tests.cuda_double.structures import Status
from tests.tensorrt_double.executing import ExecutionContext

ROWS = 4
BUCKETS = (1, ROWS)
QUICK = GpuOptions(verify=False)


def load(folder, device="cuda", **options):
    return Cascade.load(folder, device, batch=ROWS, gpu=GpuOptions(**{"verify": False, **options}))


def refusal(folder, kind=TinysaverError, device="cuda", **options):
    with pytest.raises(kind) as caught:
        load(folder, device, **options)
    return str(caught.value)


def check_auto(folder, frames, caplog, *, warnings=1):
    """See that ``auto`` takes the CPU, with so many warnings."""
    caplog.clear()
    with caplog.at_level(logging.WARNING), load(folder, "auto") as cascade:
        assert cascade.executor.engine == "onnxruntime"
        assert len(cascade.run(frames)) == ROWS
    messages = [
        record.getMessage() for record in caplog.records if record.name == "runtime.devices"
    ]
    assert len(messages) == warnings
    for message in messages:
        assert message.startswith("The GPU is not used: ")
        assert message.endswith(" The cascade runs on the CPU.")


# The machine


def test_no_driver(folder, frames, monkeypatch, caplog):
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-missing.so.1")
    message = refusal(folder, DeviceError)
    assert message == (
        "libcuda-missing.so.1: not found, so this machine has no NVIDIA driver. "
        "Install it, or, in a container, start it with the NVIDIA runtime."
    )
    check_auto(folder, frames, caplog, warnings=0)  # nobody meant a GPU


def test_no_device(folder, frames, gpu, caplog):
    gpu(devices=0)
    message = refusal(folder, DeviceError)
    assert "cuInit: CUDA_ERROR_NO_DEVICE" in message and "nvidia-smi" in message
    check_auto(folder, frames, caplog)


def test_a_gpu_that_is_not_there(folder, gpu):
    gpu()
    assert refusal(folder, device="cuda:1") == "GPU 1: the NVIDIA driver reports 1 GPU(s)."


def test_the_second_gpu(folder, frames, gpu):
    gpu(devices=2)
    with Cascade.load(folder, "cuda:1", batch=ROWS, gpu=QUICK) as cascade:
        assert cascade.executor.device.index == 1
        assert len(cascade.run(frames)) == ROWS


def test_a_driver_that_is_too_old(folder, frames, gpu, caplog):
    gpu(driver=(11, 4))
    message = refusal(folder, DeviceError)
    assert "too old: expected CUDA 12.0 or newer, it has 11.4" in message
    assert "Update the driver" in message
    check_auto(folder, frames, caplog)


def test_pycuda_missing(folder, frames, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    message = refusal(folder, DeviceError)
    assert message.startswith("pycuda cannot be imported (")
    assert "pip install 'tinysaver-runtime[cuda]'" in message
    check_auto(folder, frames, caplog)


def test_tensorrt_missing(folder, frames, monkeypatch, caplog):
    monkeypatch.setattr(tensorrt_engine, "_runtimes", {})
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = refusal(folder, TensorRTError)
    assert message.startswith("TensorRT cannot be imported (")
    assert "pip install tensorrt" in message and "python -m runtime.doctor" in message
    check_auto(folder, frames, caplog)


def test_cuda_bindings_missing(folder, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with load(folder) as cascade:
        assert cascade.executor.mode == "host"
        assert "cuda-bindings cannot be imported" in cascade.executor.mode_reason
        assert "pip install 'cuda-bindings'" in cascade.executor.mode_reason
        cascade.run(frames)


# Plans


def test_no_plan(folder, frames, caplog):
    for path in (folder / "plans").iterdir():
        path.unlink()
    message = refusal(folder, PlanError)
    assert message.startswith("plan saver.fp32: not in ")
    assert f"python -m engines.build {folder} --form fp32" in message
    check_auto(folder, frames, caplog)


def test_a_plan_of_another_tensorrt(folder, frames, gpu, caplog):
    gpu()
    for path in (folder / "plans").iterdir():
        path.unlink()
    write_plans(folder, BUCKETS, tensorrt="10.3.0")
    message = refusal(folder, PlanError)
    assert "built by TensorRT 10.3.0 for sm_87, this is 10.13.3.9" in message
    assert "python -m engines.build" in message
    check_auto(folder, frames, caplog)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"name": "Thor (double)"}, "built on Orin (double), this is Thor (double)"),
        ({"capability": (8, 9)}, "for sm_87, this is sm_89"),
        ({"driver": (13, 1)}, "built with CUDA 13.0, this is 13.1"),
    ],
)
def test_a_plan_of_another_gpu(other, words, folder, frames, gpu, caplog):
    gpu(**other)
    message = refusal(folder, PlanError)
    assert words in message and "python -m engines.build" in message
    check_auto(folder, frames, caplog)


def test_a_plan_that_was_changed(folder):
    (plan,) = (folder / "plans").glob("saver*.plan")
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    assert "is not what its sidecar describes" in refusal(folder, PlanError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"version": "10.3.0"}, "expecting library version 10.13.3.9 got 10.3.0, please rebuild"),
        ({"host_code": True}, "Host code is not allowed"),
    ],
)
def test_a_plan_that_tensorrt_refuses_says_why(content, words, folder, frames, caplog):
    write_plans(folder, BUCKETS, **content)
    message = refusal(folder, TensorRTError)
    assert "TensorRT 10.13.3.9: plan saver.fp32: deserialising" in message
    assert words in message
    check_auto(folder, frames, caplog)


def test_host_code_is_run_where_it_is_allowed(folder, frames, monkeypatch):
    write_plans(folder, BUCKETS, host_code=True)
    with load(folder, host_code=True) as cascade:
        cascade.run(frames)
    assert "Host code is not allowed" in refusal(folder, TensorRTError)  # that was for once


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            bundles.Part("other", (4, 4), reads=["x/y"]),
            r"inputs: expected \['input'\], as cascade.json says, got \['input', 'x_y'\]",
        ),
        (
            bundles.Part("other", (5, 4)),
            r"tensor input: expected float16 or float32 \[n, 3, 4, 4\], got float32 \[n, 3, 5, 4\]",
        ),
    ],
)
def test_a_plan_with_other_tensors(part, words, folder, tmp_path):
    model = tmp_path / "models"
    model.mkdir()
    bundles.write_stage(model, 0, part)
    write_plans(folder, BUCKETS, onnx=(model / "other.onnx").read_bytes())
    with pytest.raises(PlanError, match=words) as caught:
        load(folder)
    assert "Build it again from this bundle: python -m engines.build" in str(caught.value)


def test_a_plan_for_smaller_batches(folder):
    with pytest.raises(BundleError) as caught:
        Cascade.load(folder, "cuda", batch=9, gpu=QUICK)
    assert str(caught.value) == (
        "plan saver.fp32: expected a batch of 9, its largest is 4. Load the cascade with batch=4, "
        "or build for more: --max-batch 9"
    )


# Memory


def test_too_little_memory_says_how_much_was_asked_for_and_is_free(folder, frames, gpu, caplog):
    write_plans(folder, BUCKETS, scratch=3 * 2**20)
    gpu(memory=4 * 2**20)
    message = refusal(folder, DeviceMemoryError)
    assert "out of memory: asked for 3.0 MiB for scratch of large.fp32" in message
    assert "of 4.0 MiB are free. Use a smaller batch, or end other processes." in message
    check_auto(folder, frames, caplog)


def test_too_little_memory_for_an_engine(folder, frames, gpu, caplog):
    gpu(memory=500)
    message = refusal(folder, TensorRTError)
    assert "Requested amount of GPU memory could not be allocated" in message
    check_auto(folder, frames, caplog)


# In the middle of a run


@pytest.mark.parametrize("status", [Status.LAUNCH_FAILED, Status.ILLEGAL_ADDRESS])
@pytest.mark.parametrize(
    ("mode", "call"),
    [("host", "cuLaunchKernel"), ("host", "cuEventSynchronize"), ("graph", "cuGraphLaunch")],
)
def test_a_fault_ends_the_context_and_everything_says_so(mode, call, status, folder, frames, gpu):
    driver = gpu.ignoring()
    cascade = load(folder, mode=mode)
    cascade.run(frames)
    driver.failure = Failure(status, 0, call, sticky=True)
    for _ in range(2):
        with pytest.raises(DeviceError) as caught:
            cascade.run(frames)
        assert "Work on the GPU has failed, and with it the context of this process" in str(
            caught.value
        )
        assert "start the process anew" in str(caught.value)
        assert "python -m runtime.verify" in str(caught.value)
    before = len(driver.counts.calls)
    cascade.close()
    later = driver.counts.calls[before:]
    assert not any("Free" in name or "Destroy" in name or "Unload" in name for name in later)
    assert driver.live() == {}  # with the context
    assert driver.errors == []
    with pytest.raises(ClosedError):
        cascade.run(frames)


def test_a_fault_while_a_kernel_runs_shows_at_the_results(folder, frames, gpu, monkeypatch):
    driver = gpu.ignoring(seed=None)
    with load(folder, mode="graph") as cascade:
        pending = cascade.submit(frames)
        monkeypatch.setattr(driver.kernels, "launch", fault)
        with pytest.raises(DeviceError, match="Work on the GPU has failed"):
            pending.result()
        with pytest.raises(DeviceError, match="Work on the GPU has failed"):
            pending.result()  # and not what happened to stand in the arrays
        monkeypatch.undo()
    assert driver.errors == ["a kernel failed: a fault"] * len(driver.errors) != []


def fault(*arguments):
    raise RuntimeError("a fault")


@pytest.mark.parametrize("mode", ["host", "padded"])
def test_an_engine_that_does_not_run_says_which_and_why(mode, folder, frames, gpu, monkeypatch):
    driver = gpu()
    with load(folder, mode=mode) as cascade:
        expected = cascade.run(frames)
        monkeypatch.setattr(
            ExecutionContext,
            "execute_async_v3",
            lambda self, stream_handle: self._fail("Error Code 1: Cask (Cask convolution)"),
        )
        with pytest.raises(TensorRTError) as caught:
            cascade.run(frames)
        assert str(caught.value) == (
            "TensorRT 10.13.3.9: plan saver.fp32, batch 4: running it failed: "
            "Error Code 1: Cask (Cask convolution)"
        )
        monkeypatch.undo()
        assert (cascade.run(frames).label == expected.label).all()
        assert driver.errors == []


# Wrong use


def test_use_after_close(folder, frames):
    cascade = load(folder)
    pending = cascade.submit(frames)
    cascade.close()
    assert len(pending.result()) == ROWS  # it was waited for
    with pytest.raises(ClosedError, match=r"This cascade is closed\. Load it again\."):
        cascade.run(frames)
    with pytest.raises(ClosedError, match=r"This GPU device is closed\."):
        cascade.executor.stage_logits(frames)


@pytest.mark.parametrize("mode", ["fast", "", "HOST"])
def test_an_unknown_mode(mode, folder):
    assert refusal(folder, InputError, mode=mode).startswith("mode: expected host, padded, graph")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_use_in_a_forked_child(folder, frames, gpu):
    driver = gpu()
    with load(folder) as cascade:
        expected = cascade.run(frames)
        pending = cascade.submit(frames)
        outcomes = in_a_child(
            lambda: cascade.run(frames), pending.result, lambda: load(folder), cascade.close
        )
        assert (
            outcomes[0]
            == outcomes[1]
            == (
                "DeviceError: This process was forked after the GPU was opened, and has no "
                "context on it. Load the cascade in the child, or start it with multiprocessing's "
                "'spawn'."
            )
        )
        assert outcomes[2].startswith(
            "DriverError: cuInit: this process was forked after its parent"
        )
        assert outcomes[3] == "nothing"
        assert (cascade.run(frames).label == expected.label).all()
        assert (pending.result().label == expected.label).all()
        assert driver.errors == []


def in_a_child(*attempts):
    """Return what came of each attempt in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, "\n".join(map(outcome, attempts)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        outcomes = stream.read().splitlines()
    assert os.waitpid(child, 0)[1] == 0
    return outcomes


def outcome(attempt):
    try:
        result = attempt()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing" if result is None else "something"
