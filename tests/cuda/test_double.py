"""The double of the driver notices what a real GPU does wrong without saying so."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from kernels import ops
from runtime.cuda import CudaDevice
from runtime.driver import pop_context, wait_for_stream
from runtime.errors import DeviceError, DeviceMemoryError, GraphError
from runtime.graphs import Graphs
from tests.cuda_double.memory import POISON
from tests.cuda_double.structures import Status


class Bench:
    """A device with two streams and some memory; closed by hand, since things go wrong on it."""

    def __init__(self, driver):
        self.driver = driver
        self.device = CudaDevice()
        with self.device.active():
            self.one, self.two = self.device.stream(), self.device.stream()
            self.event = self.device.event()
            self.memory = self.device.allocate(1024)
            self.pinned = self.device.pin(1024)

    def part(self, nbytes=1024, offset=0):
        return self.memory.array(np.uint8, (nbytes,), offset=offset)

    def copy_in(self, stream, nbytes=1024):
        stream.copy_in(self.memory.address, self.pinned.host[:nbytes])

    def copy_out(self, stream, nbytes=1024):
        stream.copy_out(self.pinned.host[:nbytes], self.memory.address)

    def finish(self):
        """Wait for everything; return what went wrong."""
        self.one.sync()
        self.two.sync()
        return self.driver.errors


@pytest.fixture(params=[None, 0, 1, 2])
def bench(request, gpu):
    made = Bench(gpu.ignoring(seed=request.param))
    with made.device.active():
        yield made
    made.device.close()
    assert made.driver.live() == {}


# Order


def test_two_streams_that_write_the_same_bytes_are_a_race(bench):
    bench.one.fill(bench.part(512), 1)
    bench.two.fill(bench.part(512, offset=256), 2)
    (error,) = bench.finish()
    assert error.startswith("unordered: set writes and set writes 256 bytes at 0x")


def test_reading_what_another_stream_writes_is_a_race(bench):
    bench.one.fill(bench.part(), 1)
    bench.copy_out(bench.two)
    (error,) = bench.finish()
    assert "copy out reads and set writes" in error or "set writes and copy out reads" in error


def test_two_streams_may_read_the_same_bytes_and_write_others(bench):
    other = bench.device.allocate(1024)
    bench.one.copy(other.address, bench.memory.address, 512)
    bench.two.copy(other.address + 512, bench.memory.address, 512)
    assert bench.finish() == []


def test_an_event_orders_two_streams(bench):
    bench.one.fill(bench.part(), 7)
    wait_for_stream(bench.two.handle, bench.one.handle)
    bench.copy_out(bench.two)
    assert bench.finish() == []
    assert (bench.pinned.host == 7).all()


def test_a_wait_counts_for_what_was_recorded_before_it(bench):
    bench.event.record(bench.one)
    bench.two.native.wait_for_event(bench.event.native)
    bench.one.fill(bench.part(), 1)
    bench.event.record(bench.one)  # too late for the wait above
    bench.copy_out(bench.two)
    assert len(bench.finish()) == 1


def test_a_wait_takes_the_last_record(bench):
    bench.event.record(bench.one)
    bench.one.fill(bench.part(), 1)
    bench.event.record(bench.one)
    bench.two.native.wait_for_event(bench.event.native)
    bench.copy_out(bench.two)
    assert bench.finish() == []


def test_waiting_for_an_event_that_was_never_recorded_waits_for_nothing(bench):
    bench.one.fill(bench.part(), 1)
    bench.two.native.wait_for_event(bench.event.native)
    bench.copy_out(bench.two)
    assert len(bench.finish()) == 1


def test_what_the_host_waited_for_is_ordered_before_all_that_follows(bench):
    bench.one.fill(bench.part(), 3)
    bench.one.sync()
    bench.copy_out(bench.two)
    assert bench.finish() == []


def test_order_is_passed_on_by_a_third_stream(bench):
    third = bench.device.stream()
    bench.one.fill(bench.part(), 3)
    wait_for_stream(third.handle, bench.one.handle)
    wait_for_stream(bench.two.handle, third.handle)
    bench.copy_out(bench.two)
    third.sync()
    assert bench.finish() == []


# What the host sees


def test_the_host_sees_a_copy_when_it_has_waited_and_not_before(bench):
    bench.one.fill(bench.part(), 9)
    bench.copy_out(bench.one)
    assert (bench.pinned.host == POISON).all()
    bench.event.record(bench.one)
    assert (bench.pinned.host == POISON).all()
    bench.event.sync()
    assert (bench.pinned.host == 9).all()


def test_an_event_that_is_done_tells_the_host_as_much_as_a_wait(bench):
    bench.one.fill(bench.part(), 9)
    bench.copy_out(bench.one)
    bench.event.record(bench.one)
    for _ in range(100):
        if bench.event.is_done():
            assert (bench.pinned.host == 9).all()
            return
    bench.event.sync()  # a driver that runs nothing before somebody waits


def test_pinned_memory_must_stay_as_it_is_until_the_host_knows_that_it_was_copied(bench):
    bench.pinned.host[:] = 1
    bench.copy_in(bench.one)
    bench.pinned.host[5] = 2
    assert bench.finish() == ["pinned memory changed while it was to be copied to the device"]


def test_mapped_memory_must_stay_as_it_is_while_work_that_reads_it_is_pending(bench):
    mapped = bench.device.pin(1024, mapped=True)
    mapped.host[:] = 1
    bench.one.copy(bench.memory.address, mapped.address, 1024)
    mapped.host[:] = 2
    assert bench.finish() == ["mapped memory changed while copy was pending"]


def test_copies_of_pageable_memory_are_noticed(bench):
    pageable = np.zeros(1024, np.uint8)
    bench.one.copy_in(bench.memory.address, pageable)
    bench.one.copy_out(pageable, bench.memory.address)
    assert {
        "cuMemcpyHtoDAsync reads 1024 bytes of pageable memory",
        "cuMemcpyDtoHAsync writes 1024 bytes of pageable memory",
    } <= set(bench.finish())


# Memory


def test_memory_that_was_freed_must_not_be_touched(bench):
    other = bench.device.allocate(64)
    bench.one.fill(other.array(np.uint8, (64,)), 1)
    other.free()
    errors = bench.finish()
    # What has run by chance before it was freed cannot be seen.
    assert errors == [] or "which is not allocated" in errors[0]


def test_copies_past_the_end_are_refused(bench):
    with pytest.raises(DeviceError, match="invalid value"):
        bench.one.copy(bench.memory.address, bench.memory.address + 512, 1024)
    with pytest.raises(DeviceError, match="invalid value"):
        bench.one.fill(bench.part(1025), 1)


def test_new_memory_holds_nothing_that_anyone_may_rely_on(bench):
    assert (bench.one.download(bench.part()) == POISON).all()


def test_memory_runs_out(bench):
    with pytest.raises(DeviceMemoryError, match=r"1024\.0 MiB are free"):
        bench.device.allocate(2**31)


# Contexts, streams and launches


def test_without_a_context_nothing_works(bench):
    pop_context()
    with pytest.raises(DeviceError, match="invalid context"):
        bench.one.sync()
    bench.driver.contexts.append(0xC0000000)


def test_what_was_freed_is_no_stream_any_more(bench):
    stream = bench.device.stream()
    handle = stream.handle
    stream.free()
    with pytest.raises(DeviceError, match="cuEventRecord: CUDA_ERROR_INVALID_HANDLE"):
        wait_for_stream(bench.one.handle, handle)


def test_a_kernel_that_reads_what_is_not_allocated_is_noticed(bench):
    bench.device.load("gather")
    freed = bench.device.allocate(4096)
    source = freed.array(np.float32, (8, 16))
    freed.free()
    target = bench.device.allocate(4096).array(np.float32, (8, 16))
    numbers = bench.device.allocate(64)
    bench.one.fill(numbers.array(np.uint8, (64,)), 0)
    rows = ops.Escalated(
        numbers.array(np.int32, (8,)), numbers.array(np.int32, (1,), offset=32), None, 8, 1
    )
    ops.gather([(source, target)], rows).enqueue(bench.device, stream=bench.one.handle)
    assert any("gather_16 touches" in error for error in bench.finish())


def test_resources_that_are_left_are_counted(gpu):
    driver = gpu.ignoring()
    device = CudaDevice()
    with device.active():
        kept = device.driver.Stream(), device.driver.Event(), device.driver.mem_alloc(16)
        kept[0].synchronize()
        assert driver.live() == {
            "Stream": 1,
            "Event": 1,
            "Block": 1,
            "context": 1,
            "current context": 1,
        }
    device.close()
    assert driver.leaked == {"Stream": 1, "Event": 1, "Block": 1}
    del kept


# Graphs


@pytest.fixture
def graphs(bench):
    return Graphs(bench.device)


def test_captured_work_runs_when_the_graph_is_launched_and_not_before(bench, graphs):
    bench.one.fill(bench.part(), 1)
    bench.one.sync()
    graph = graphs.capture(bench.one, bench.two, lambda _: bench.one.fill(bench.part(), 5))
    assert (bench.one.download(bench.part()) == 1).all()
    for _ in range(2):
        graph.launch(bench.one)
    assert (bench.one.download(bench.part()) == 5).all()
    graph.close()


def test_what_would_wait_or_allocate_ends_a_capture(bench, graphs):
    for forbidden in (
        bench.one.sync,
        lambda: bench.device.allocate(16),
        lambda: bench.device.pin(16),
        lambda: bench.event.record(bench.one),
    ):
        with pytest.raises(DeviceError):
            graphs.capture(bench.one, bench.two, lambda _, call=forbidden: call())
    assert bench.driver.live().get("capture") is None


def test_nodes_without_an_edge_that_write_the_same_bytes_are_a_race(bench, graphs):
    def work(capture):
        bench.one.fill(bench.part(), 1)
        graphs.call("cuStreamUpdateCaptureDependencies", bench.one.handle, [], [], 0, 1)
        bench.one.fill(bench.part(), 2)

    graph = graphs.capture(bench.one, bench.two, work)
    graph.launch(bench.one)
    (error,) = bench.finish()
    assert error.startswith("unordered: set writes and set writes 1024 bytes")
    graph.close()


def test_a_conditional_node_runs_one_body_or_none(bench, graphs):
    bench.device.load("select")
    index = bench.device.allocate(4).array(np.int32, (1,))

    def work(capture):
        bodies = [
            lambda stream, value=value: stream.fill(bench.part(), value) for value in (10, 11, 12)
        ]

        def select(handles, is_switch):
            launch = ops.select(index, handles, is_switch=is_switch)
            launch.enqueue(bench.device, stream=bench.one.handle)

        bench.one.fill(bench.part(), 0)
        capture.branch(bodies, select)

    graph = graphs.capture(bench.one, bench.two, work)
    for value, expected in ((0, 10), (1, 11), (2, 12), (3, 0)):
        bench.one.upload(index, np.array([value], np.int32))
        graph.launch(bench.one)
        assert (bench.one.download(bench.part()) == expected).all()
    graph.close()
    assert bench.driver.errors == []


def test_a_kernel_that_sets_another_graphs_handle_is_noticed(bench, graphs):
    bench.device.load("select")
    index = bench.device.allocate(4).array(np.int32, (1,))
    bench.one.upload(index, np.zeros(1, np.int32))
    foreign = ops.select(index, [0xABC0], is_switch=True)
    graph = graphs.capture(
        bench.one,
        bench.two,
        lambda _: foreign.enqueue(bench.device, stream=bench.one.handle),
    )
    graph.launch(bench.one)
    assert bench.finish() == [f"a kernel sets the conditional handle {0xABC0} of another graph"]
    graph.close()


def test_a_body_with_a_forbidden_node_cannot_be_instantiated(bench, graphs, monkeypatch):
    bench.device.load("select")
    index = bench.device.allocate(4).array(np.int32, (1,))

    def host_node(stream):
        bench.driver.enqueue(stream.handle, "host function", lambda: None, kind="HOST")

    def select(handles, is_switch):
        launch = ops.select(index, handles, is_switch=is_switch)
        launch.enqueue(bench.device, stream=bench.one.handle)

    monkeypatch.setattr(Graphs, "_check_bodies", lambda self, bodies: None)
    with pytest.raises(GraphError, match="cuGraphInstantiate: CUDA_ERROR_INVALID_VALUE"):
        graphs.capture(bench.one, bench.two, lambda capture: capture.branch([host_node], select))


def test_functions_that_are_not_doubled_say_that_they_are_not_supported(bench):
    library = ctypes.CDLL("libcuda.so.1")
    assert library.cuMemAllocManaged(None, 16, 1) == Status.NOT_SUPPORTED
