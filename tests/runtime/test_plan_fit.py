"""Which plan runs where, in which words another is refused, and which of several is taken."""

from __future__ import annotations

import hashlib

import pytest

from runtime.bundle import load_bundle
from runtime.errors import PlanError
from runtime.plan_fit import difference, find_plans, misfit
from runtime.plans import (
    Flags,
    Machine,
    PlanKey,
    Profile,
    Sidecar,
    bucket_profiles,
    model_digest,
    plan_file,
    plan_folders,
)

SHA, OTHER_SHA = "01" * 32, "ab" * 32
ORIN = Machine(
    library="tensorrt", version="10.3.0", cuda="12.6", gpu="Orin (AGX)", architecture="sm_87"
)
RTX = Machine(
    library="tensorrt_rtx", version="1.7.1.116", cuda="13.0", gpu="RTX 4090", architecture="sm_89"
)


def key(machine=ORIN, **changes):
    fields = {"model_sha256": SHA, "form": "fp16", "profiles": bucket_profiles([1, 8])}
    return PlanKey(machine=machine, **{**fields, **changes})


def ahead(*targets, **changes):
    return key(Machine(library="tensorrt_rtx", version="1.7.1.116"), targets=targets, **changes)


def other(machine=ORIN, **changes):
    return machine.model_copy(update=changes)


def test_a_plan_fits_the_machine_it_was_built_on():
    assert misfit(key(), ORIN) is None
    assert misfit(ahead("sm_86", "sm_89"), RTX) is None
    assert difference(key(), key()) is None
    assert difference(ahead("sm_89"), ahead("sm_89")) is None


@pytest.mark.parametrize(
    ("found", "machine", "words"),
    [
        (
            key(),
            other(version="10.16.2"),
            "built by TensorRT 10.3.0 for sm_87, this is 10.16.2",
        ),
        (key(), RTX, "built by TensorRT 10.3.0 for sm_87, this is TensorRT-RTX 1.7.1.116"),
        (
            key(),
            other(architecture="sm_110", gpu="Thor"),
            "built by TensorRT 10.3.0 for sm_87, this is sm_110",
        ),
        (key(), other(cuda="13.2"), "built with CUDA 12.6, this is 13.2"),
        (key(), other(gpu="Orin (Nano)"), "built on Orin (AGX), this is Orin (Nano)"),
        (
            ahead("sm_75", "sm_86"),
            RTX,
            "built by TensorRT-RTX 1.7.1.116 for sm_75, sm_86, this is sm_89",
        ),
    ],
    ids=["version", "library", "architecture", "cuda", "gpu", "targets"],
)
def test_a_plan_of_elsewhere_does_not_fit_and_says_why(found, machine, words):
    assert misfit(found, machine) == words
    if not found.targets:
        assert difference(found, key(machine)) == words


@pytest.mark.parametrize(
    ("found", "wanted", "words"),
    [
        (
            key(),
            key(model_sha256=OTHER_SHA),
            "built from another model (sha256 010101010101..., the bundle has abababababab...)",
        ),
        (
            key(),
            key(profiles=bucket_profiles([1, 4, 8])),
            "built for batches 1, 8, this asks for 1, 4, 8",
        ),
        (
            key(),
            key(flags=Flags(tf32=True, workspace_mib=64)),
            "built with tf32 False, workspace_mib None, this asks for tf32 True, workspace_mib 64",
        ),
        (
            ahead("sm_89"),
            ahead("sm_86", "sm_89"),
            "built by TensorRT-RTX 1.7.1.116 for sm_89, this asks for sm_86, sm_89",
        ),
        (
            key(RTX),
            ahead("sm_89"),
            "built by TensorRT-RTX 1.7.1.116 for sm_89, this asks for sm_89",
        ),
        (
            key(),
            ahead("sm_89"),
            "built by TensorRT 10.3.0 for sm_87, this is TensorRT-RTX 1.7.1.116",
        ),
    ],
    ids=["model", "profiles", "flags", "targets", "own GPU", "library"],
)
def test_a_plan_that_answers_another_request_says_how_it_differs(found, wanted, words):
    assert difference(found, wanted) == words


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("10.3.0", True),
        ("10.3.0.26", True),
        ("10.16.2", True),
        ("11.4.0.106", True),
        ("10.2.0", False),
        ("8.6.1", False),
        ("12.0.0", False),
    ],
)
def test_a_version_compatible_plan_runs_on_later_versions_up_to_the_next_major(version, fits):
    plan = key(flags=Flags(version_compatible=True))
    assert (misfit(plan, other(version=version, cuda="13.0")) is None) == fits


def test_version_8_plans_run_on_10_but_not_on_11():
    plan = key(other(version="8.6.1"), flags=Flags(version_compatible=True))
    assert misfit(plan, other(version="10.3.0")) is None
    assert misfit(plan, other(version="11.0.0.114"))


@pytest.mark.parametrize(
    ("level", "architecture", "fits"),
    [
        ("ampere_plus", "sm_80", True),
        ("ampere_plus", "sm_120", True),
        ("ampere_plus", "sm_75", False),
        ("same_compute_capability", "sm_87", True),
        ("same_compute_capability", "sm_86", False),
        (None, "sm_87", False),
    ],
)
def test_a_hardware_compatible_plan_runs_on_other_gpus(level, architecture, fits):
    plan = key(flags=Flags(hardware_compatible=level))
    assert (misfit(plan, other(gpu="Other", architecture=architecture)) is None) == fits


@pytest.fixture
def bundle(make_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return load_bundle(make_bundle("echo", "negated"))


@pytest.fixture
def add(bundle):
    """Write a plan of stage echo for a key; ``built`` orders them."""

    def write(plan_key, *, built=1, folder=0, stage="echo"):
        content = plan_key.digest.encode()
        described = Sidecar(
            stage=stage,
            key=plan_key,
            file=plan_file(stage, plan_key),
            sha256=hashlib.sha256(content).hexdigest(),
            nbytes=len(content),
            inputs=(),
            outputs=(),
            built=f"2026-01-0{built}T00:00:00+00:00",
            build_seconds=1,
        )
        place = plan_folders(bundle.folder)[folder]
        place.mkdir(parents=True, exist_ok=True)
        (place / described.file).write_bytes(content)
        (place / described.file).with_suffix(".json").write_text(described.model_dump_json())

    return write


@pytest.fixture
def own(bundle):
    """Keys of the first stage's fp32 form."""

    def make(machine=ORIN, **changes):
        model = model_digest(bundle, 0, "fp32")
        return key(machine, **{"model_sha256": model, "form": "fp32", **changes})

    return make


def test_the_newest_plan_that_fits_is_found_wherever_it_lies(bundle, add, own):
    add(own(profiles=bucket_profiles([1])), built=2)
    add(own(profiles=bucket_profiles([4])), built=3, folder=1)
    add(own(other(version="10.16.2")), built=4)
    add(own(model_sha256=OTHER_SHA), built=5)
    add(own(form="fp16"), built=6)
    add(own(flags=Flags(dla_core=0), profiles=(Profile(min=1, opt=1, max=1),)), built=7)
    add(own(), built=8, stage="negated")
    (plan,) = find_plans(bundle, 0, "fp32", ORIN)
    assert plan.key.profiles == bucket_profiles([4])
    assert plan.read() == plan.key.digest.encode()


def test_a_dla_core_has_one_plan_per_batch_size(bundle, add, own):
    for built, (batch, core) in enumerate([(8, 0), (1, 0), (1, 1)], start=1):
        fixed = (Profile(min=batch, opt=batch, max=batch),)
        add(own(profiles=fixed, flags=Flags(dla_core=core)), built=built)
    found = find_plans(bundle, 0, "fp32", ORIN, dla_core=0)
    assert [plan.name for plan in found] == ["echo.fp32.dla0.b1", "echo.fp32.dla0.b8"]
    with pytest.raises(PlanError, match=r"--dla 2$"):
        find_plans(bundle, 0, "fp32", ORIN, dla_core=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": other(version="10.16.2")}, "built by TensorRT 10.16.2 for sm_87, this is"),
        ({"model_sha256": OTHER_SHA}, "built from another model (abababababab...)"),
        (None, "not in "),
    ],
    ids=["machine", "model", "none"],
)
def test_without_a_fitting_plan_the_reason_and_the_command_are_said(
    bundle, add, own, change, words
):
    if change is not None:
        add(own(**change))
    with pytest.raises(PlanError) as caught:
        find_plans(bundle, 0, "fp32", ORIN)
    message = str(caught.value)
    assert message.startswith("plan echo.fp32: ") and words in message
    assert message.endswith(f"python -m engines.build {bundle.folder} --form fp32")


def test_for_tensorrt_rtx_the_command_names_the_target(bundle):
    with pytest.raises(PlanError, match=r"--form fp32 --target sm_89$"):
        find_plans(bundle, 0, "fp32", RTX)
