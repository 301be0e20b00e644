"""Every kernel under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer.

The kernels run on the CPU emulation in a process of their own, and their values are compared too.
That the sanitizers see anything at all is shown by the bugs of test_planted_bugs.py.
"""

from __future__ import annotations

import pytest

from kernels.launch import Launch
from tests.cuda_cpu import build
from tests.cuda_cpu.emulation import KERNELS
from tests.cuda_cpu.standalone import StandaloneMachine
from tests.kernels.every_kernel import RUNS, kernel_names

# Of the others a run of scripts/test would have to wait for the build of gate.cu.
QUICK = ("gather_16", "select_bucket")


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Build what the selected tests need, two modules at a time."""
    chosen = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    build.modules(
        dict.fromkeys(
            (KERNELS / f"{params['kernel'].split('_')[0]}.cu", params["variant"])
            for params in chosen
        )
    )


class Recorder(StandaloneMachine):
    """A machine that keeps the names of the kernels it has run."""

    def run(self, *launches: Launch) -> None:
        super().run(*launches)
        self.kernels = {launch.kernel.name for launch in launches}


def test_every_kernel_has_a_run() -> None:
    assert set(RUNS) == kernel_names()


@pytest.mark.parametrize("variant", [build.THREAD, build.ADDRESS], ids=lambda variant: variant.name)
@pytest.mark.parametrize(
    "kernel",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS],
)
def test_no_race_and_no_access_out_of_bounds(kernel: str, variant: build.Variant) -> None:
    machine = Recorder(variant)
    RUNS[kernel](machine)
    assert machine.kernels == {kernel}
