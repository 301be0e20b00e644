"""Streams and events."""

from __future__ import annotations

import ctypes

from tests.cuda_double.driver import Driver
from tests.cuda_double.structures import Status, store
from tests.cuda_double.work import NOTHING, Operation, Touched


class Stream:
    """A stream's handle; its work is in `Queues`."""


class Event:
    """An event, and the last time it was recorded."""

    record: Operation | None = None


class Streams:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._queues = driver.queues

    def cuStreamCreate(self, stream: int, flags: int) -> int:
        handle = self._driver.new(Stream())
        self._queues.open(handle)
        return store(stream, ctypes.c_void_p, handle)

    def cuStreamDestroy_v2(self, stream: int) -> int:
        status = self._driver.remove(stream, Stream)
        if status == Status.SUCCESS:
            self._queues.close(stream)
            self._driver.captures.pop(stream, None)
        return status

    def cuStreamSynchronize(self, stream: int) -> int:
        if stream not in self._queues:
            return Status.INVALID_HANDLE
        if stream in self._driver.captures:
            self._driver.captures[stream].valid = False
            return Status.STREAM_CAPTURE_UNSUPPORTED
        return self._driver.wait(lambda: self._queues.wait_for_stream(stream))

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> int:
        found = self._event(event)
        if found is None or stream not in self._queues:
            return Status.INVALID_HANDLE
        if stream in self._driver.captures:
            return Status.STREAM_CAPTURE_ISOLATION
        if found.record is None:  # an event that was never recorded holds nobody up
            return Status.SUCCESS
        self._queues.enqueue(stream, "wait", Touched, needs=[found.record])
        return Status.SUCCESS

    def cuEventCreate(self, event: int, flags: int) -> int:
        return store(event, ctypes.c_void_p, self._driver.new(Event()))

    def cuEventDestroy_v2(self, event: int) -> int:
        return self._driver.remove(event, Event)

    def cuEventRecord(self, event: int, stream: int) -> int:
        found = self._event(event)
        if found is None or stream not in self._queues:
            return Status.INVALID_HANDLE
        if stream in self._driver.captures:
            return Status.STREAM_CAPTURE_UNSUPPORTED
        found.record = self._queues.enqueue(stream, "record", lambda: NOTHING)
        return Status.SUCCESS

    def cuEventQuery(self, event: int) -> int:
        found = self._event(event)
        if found is None:
            return Status.INVALID_HANDLE
        if found.record is None:
            return Status.SUCCESS
        if not found.record.done:
            self._queues.progress()
        if not found.record.done:
            return Status.NOT_READY
        self._queues.learn(found.record.clock)
        return Status(self._driver.dead)

    def cuEventSynchronize(self, event: int) -> int:
        found = self._event(event)
        if found is None:
            return Status.INVALID_HANDLE
        record = found.record
        if record is None:
            return Status.SUCCESS
        return self._driver.wait(lambda: self._queues.wait(record))

    def cuEventElapsedTime_v2(self, milliseconds: int, start: int, end: int) -> int:
        """Tell that no time has passed: there is none on the double."""
        return store(milliseconds, ctypes.c_float, 0.0)

    cuEventElapsedTime = cuEventElapsedTime_v2

    def _event(self, handle: int) -> Event | None:
        found = self._driver.objects.get(handle)
        return found if isinstance(found, Event) else None
