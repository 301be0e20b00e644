"""The running side of the doubled TensorRT: what it refuses, and what it sees go wrong."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.cuda import CudaDevice
from runtime.errors import TensorRTError
from runtime.plan_fit import find_plans
from runtime.plans import this_machine
from runtime.tensorrt_engine import Engine, tensorrt_runtime
from tests.cuda import bundles
from tests.cuda_double.install import TENSORRT
from tests.cuda_double.plans import write_plans


class Bench:
    """An engine with one context, streams and memory."""

    def __init__(self, driver, folder):
        write_plans(folder, (2, 4))
        bundle = load_bundle(folder)
        (plan,) = find_plans(bundle, 0, "fp32", this_machine("tensorrt", TENSORRT))
        self.driver = driver
        self.device = CudaDevice()
        with self.device.active():
            self.engine = Engine(plan, self.device)
            self.one, self.two = self.device.stream(), self.device.stream()
            self.scratch = self.device.allocate(self.engine.scratch_bytes)
            self.context = self.engine.context(4, self.scratch, self.one)
            self.native = self.context._native
            self.memory = {
                name: self.device.allocate(4 * 4 * int(np.prod(tensor.shape)))
                for name, tensor in self.engine.tensors.items()
            }

    def arrays(self):
        """Return memory for four rows of every tensor."""
        tensors = self.engine.tensors.items()
        return {name: self.memory[name].array(t.dtype, (4, *t.shape)) for name, t in tensors}

    def close(self):
        self.one.sync()
        self.two.sync()
        self.native = None
        self.context.close()
        self.engine.close()


@pytest.fixture(params=[None, 0, 1])
def bench(request, gpu, tmp_path):
    folder = bundles.two_stages(tmp_path / "bundle")
    made = Bench(gpu.ignoring(seed=request.param), folder)
    with made.device.active():
        yield made
        made.close()
    made.device.close()
    assert (made.driver.leaked, made.driver.live()) == ({}, {})


def refused(bench, words):
    """See that what was just tried has left this in the log."""
    assert words in bench.engine.runtime.last_error


def test_a_run_computes_what_the_model_says(bench):
    bench.context.bind(bench.arrays())
    bench.one.upload(bench.arrays()["input"], np.ones((4, 3, 4, 4), np.float32))
    bench.context.enqueue(bench.one)
    features = bench.one.download(bench.arrays()["features"])
    assert (np.abs(features) < 1).all() and (features == features[0]).all() and features.any()
    assert bench.driver.errors == []


@pytest.mark.parametrize("batch", [0, 2, 5])
def test_a_batch_outside_of_the_profile(batch, bench):
    assert not bench.native.set_input_shape("input", (batch, 3, 4, 4))
    refused(bench, "does not satisfy any optimization profiles. Valid range for profile 1: 3..4")


def test_another_shape_than_the_models(bench):
    assert not bench.native.set_input_shape("input", (4, 3, 4, 5))
    assert not bench.native.set_input_shape("logits", (4, 7))


def test_an_address_before_the_shapes(bench):
    assert not bench.native.set_tensor_address("logits", bench.memory["logits"].address)
    refused(bench, "no such tensor, or a shape is missing")


def test_an_address_that_is_not_aligned(bench):
    assert bench.native.set_input_shape("input", (4, 3, 4, 4))
    assert not bench.native.set_tensor_address("logits", bench.memory["logits"].address + 16)
    refused(bench, "is not aligned to 256 bytes")


def test_a_run_before_all_is_set(bench):
    assert not bench.native.execute_async_v3(bench.one.handle)
    bench.native.set_input_shape("input", (4, 3, 4, 4))
    bench.native.set_tensor_address("input", bench.memory["input"].address)
    assert not bench.native.execute_async_v3(bench.one.handle)
    refused(bench, "not all is set: addresses of ['features', 'logits']")


def test_a_run_on_the_default_stream(bench):
    bench.context.bind(bench.arrays())
    assert not bench.native.execute_async_v3(0)


def test_scratch_memory_that_is_too_small_is_not_taken(bench):
    native = bench.engine._memory.make_context()
    native.set_device_memory(bench.scratch.address, 10)
    refused(bench, "scratch of 10 bytes")
    del native


def test_a_profile_that_there_is_not(bench):
    assert not bench.native.set_optimization_profile_async(2, bench.one.handle)


def test_contexts_that_share_scratch_memory_and_may_run_at_the_same_time_are_a_race(bench):
    other = bench.engine.context(2, bench.scratch, bench.two)
    bench.context.bind(bench.arrays())
    bench.context.enqueue(bench.one)
    tensors = bench.engine.tensors.items()
    own = {name: bench.device.allocate(4096).array(t.dtype, (2, *t.shape)) for name, t in tensors}
    other.bind(own)
    other.enqueue(bench.two)
    bench.one.sync()
    bench.two.sync()
    assert any("unordered: saver at" in error for error in bench.driver.errors)
    other.close()


def test_one_context_on_two_streams_is_a_race(bench):
    bench.context.bind(bench.arrays())
    bench.context.enqueue(bench.one)
    bench.context.enqueue(bench.two)
    bench.one.sync()
    bench.two.sync()
    assert any("unordered: saver at 4 writes" in error for error in bench.driver.errors)


def test_a_context_is_not_freed_while_it_runs(gpu, tmp_path):
    folder = bundles.two_stages(tmp_path / "bundle")
    bench = Bench(gpu.ignoring(seed=None), folder)
    with bench.device.active():
        bench.context.bind(bench.arrays())
        bench.context.enqueue(bench.one)
        bench.native = None
        bench.context.close()
        bench.close()
        assert any("which is not allocated" in error for error in bench.driver.errors)
    bench.device.close()


def test_what_tensorrt_logs_goes_to_the_log_of_python(bench, caplog):
    with caplog.at_level(logging.DEBUG, logger="runtime.tensorrt_engine"):
        bench.native.set_input_shape("input", (9, 3, 4, 4))
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "runtime.tensorrt_engine")


def test_what_is_no_plan_is_refused_with_tensorrts_words(bench, tmp_path):
    assert bench.engine.runtime.native.deserialize_cuda_engine(b"vtrt, or not") is None
    refused(bench, "Magic tag does not match")
    error = tensorrt_runtime().failure("deserialising it")
    assert isinstance(error, TensorRTError)
    assert str(error).endswith(
        "deserialising it failed: Serialization assertion failed: Magic tag does not match"
    )
    again = tensorrt_runtime().failure("that")
    assert str(again).endswith("that failed: it gave no reason")  # each reason is told once
