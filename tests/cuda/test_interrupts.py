"""Ctrl-C at any call: nothing is left behind, and a cascade that was loaded goes on."""

from __future__ import annotations

import contextlib

import pytest

from runtime import Cascade
from runtime.cuda import CudaDevice
from runtime.devices import GpuOptions
from runtime.graphs import Graphs

ROWS = 2
BUCKETS = (1, ROWS)
MODES = ("host", "padded", "graph")


class Interrupts:
    """Raises KeyboardInterrupt at a call of the driver, in place of it or behind it.

    Python raises it between two of its own instructions, and so before or after a call.
    """

    def __init__(self, monkeypatch):
        self.number = self.calls = -1
        self.behind = False
        for owner in (CudaDevice, Graphs):
            monkeypatch.setattr(owner, "call", self._wrap(owner.call))

    def _wrap(self, call):
        def interrupted(owner, *arguments):
            self.calls += 1
            now = self.calls == self.number
            if now and not self.behind:
                del arguments  # which the traceback would keep alive
                raise KeyboardInterrupt
            result = call(owner, *arguments)
            if now:
                raise KeyboardInterrupt
            return result

        return interrupted

    def at(self, number, *, behind=False):
        """Interrupt the call of that number from now on."""
        self.number, self.calls, self.behind = number, -1, behind


@pytest.fixture
def interrupts(monkeypatch):
    return Interrupts(monkeypatch)


def load(folder, mode):
    return Cascade.load(folder, "cuda", batch=ROWS, gpu=GpuOptions(mode=mode, verify=False))


@pytest.mark.parametrize("mode", MODES)
def test_while_it_loads(mode, folder, gpu, interrupts):
    interrupts.at(-1)
    load(folder, mode).close()
    count = interrupts.calls
    for number in range(1, count, 7):
        driver = gpu.ignoring()
        interrupts.at(number)
        with pytest.raises(KeyboardInterrupt):
            load(folder, mode).close()
        assert driver.errors == [], number
        # A call that frees may be what was interrupted: then that goes with the context.
        left = driver.live()
        assert left == {} or number > count - 5, f"call {number} of {count}: left {left}"


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_while_it_runs(mode, behind, folder, frames, gpu, interrupts):
    gpu()
    with load(folder, mode) as cascade:
        interrupts.at(-1)
        expected = cascade.run(frames)
        count = interrupts.calls
        for number in range(1, count):  # the first makes the context current
            interrupts.at(number, behind=behind)
            with contextlib.suppress(KeyboardInterrupt):
                cascade.run(frames)
            found = cascade.run(frames)
            assert (found.confidence == expected.confidence).all(), f"call {number} of {count}"
