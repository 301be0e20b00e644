"""The same cascade on every supported TensorRT, on TensorRT-RTX, and on both cuda-bindings."""

from __future__ import annotations

import importlib.metadata

import pytest

from tests.cuda.other_versions import run_with
from tests.cuda_double.bindings import older_bindings
from tests.tensorrt_double.libraries import cache_folder
from tests.tensorrt_double.wheels import VERSIONS

pytestmark = pytest.mark.slow  # processes of their own, and downloads on first use

PROFILED = "TensorRT times layers by events, which no branch of a graph can hold"
SWITCH, IF = "SWITCH nodes, no wait for a count", "IF nodes, no wait for a count"


def check(outcomes, reason=SWITCH):
    """See that all ran and answered right, that ``graph`` was chosen, and who was profiled."""
    wanted = [("host", "asked for"), ("padded", "asked for"), ("graph", reason), ("graph", reason)]
    wanted.append(("host", f"no graph: {PROFILED}"))
    assert [(item.get("mode"), item.get("reason")) for item in outcomes] == wanted, outcomes
    for item in outcomes:
        assert (item["equal"], item["errors"], item["left"]) == (True, [], {})
    assert [item["marked"] for item in outcomes] == [[]] * 4 + [["large", "middle", "small"]]
    *others, profiled = [item["layers"] for item in outcomes]
    assert others == [[[], [], []]] * 4
    assert all("Tanh features" in layers for layers in profiled)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_tensorrt(version):
    check(run_with(tensorrt=version))


def test_tensorrt_rtx():
    version = importlib.metadata.version("tensorrt_rtx")
    check(run_with(library="tensorrt_rtx", tensorrt=version))


def test_tensorrt_rtx_is_asked_whether_an_engine_can_be_captured():
    version = importlib.metadata.version("tensorrt_rtx")
    content = {"capturable": False}
    outcomes = run_with(library="tensorrt_rtx", tensorrt=version, content=content)
    assert "graph is not possible: plan small.fp32 cannot be captured" in outcomes[2]["error"]
    assert outcomes[3]["reason"] == "no graph: plan small.fp32 cannot be captured"


def test_what_tensorrt_rtx_has_compiled_is_kept(tmp_path):
    version = importlib.metadata.version("tensorrt_rtx")
    kernels = cache_folder() / "home" / "tinysaver" / "cubins"
    run_with()  # which compiles the kernels, if need be
    (tmp_path / "tinysaver").mkdir()
    (tmp_path / "tinysaver" / "cubins").symlink_to(kernels)
    runs = [run_with(library="tensorrt_rtx", tensorrt=version, home=tmp_path) for _ in range(2)]
    batches = {f"{stage} at {size}" for stage in ("small", "middle", "large") for size in (1, 4, 8)}
    assert set(runs[0][0]["compiled"]) == batches
    assert all(outcome["compiled"] == [] for outcome in (*runs[0][1:], *runs[1]))
    caches = list((tmp_path / "tinysaver" / "rtx").iterdir())
    assert len(caches) == 3
    caches[0].write_bytes(b"damaged")
    third = run_with(library="tensorrt_rtx", tensorrt=version, home=tmp_path)
    assert len(third[0]["compiled"]) == 3 and third[1]["compiled"] == []
    check(third)


def test_tensorrt_8_needs_plans_whose_profiles_are_shared():
    (outcome, *_) = run_with(tensorrt="8.6.1", content={"shares_profiles": False})
    assert "Profile 0 has been chosen for another IExecutionContext" in outcome["error"]


@pytest.mark.parametrize(
    ("driver", "reason"), [((12, 6), IF), ((12, 8), SWITCH), ((13, 0), SWITCH)]
)
def test_cuda_bindings_12(driver, reason):
    check(run_with(bindings=str(older_bindings()), driver=driver), reason)


def test_a_driver_before_conditional_nodes():
    outcomes = run_with(bindings=str(older_bindings()), driver=(12, 2))
    reason = "conditional nodes need a driver of CUDA 12.4, it has 12.2"
    assert f"graph is not possible: {reason}" in outcomes[2]["error"]
    assert (outcomes[3]["mode"], outcomes[3]["reason"]) == ("host", f"no graph: {reason}")
    assert all(item["equal"] for item in (outcomes[0], outcomes[1], outcomes[3]))
