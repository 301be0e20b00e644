"""From a bundle and an order to the single plans, each with what its network must have."""

from __future__ import annotations

import pytest

from engines.build_jobs import Order, expected_inputs, expected_outputs, jobs
from engines.build_messages import Expected
from engines.errors import EngineError
from runtime.bundle import load_bundle
from runtime.errors import BundleError
from runtime.plans import Flags, bucket_profiles
from tests.engines.plan_cases import ORIN


def order(**changes):
    fields = {
        "forms": ("fp32",),
        "stages": (),
        "machine": ORIN,
        "targets": (),
        "profiles": bucket_profiles([1, 8]),
        "flags": Flags(),
    }
    return Order(**{**fields, **changes})


@pytest.fixture
def bundle(make_bundle):
    return load_bundle(make_bundle("echo", "negated"))


def test_every_stage_has_a_plan_of_every_form(bundle):
    found = list(jobs(bundle, order()))
    assert [job.wanted.name for job in found] == ["echo.fp32", "negated.fp32"]
    assert [job.model.name for job in found] == ["echo.onnx", "negated.onnx"]
    key = found[0].wanted.key
    assert key.model_sha256 == bundle.spec.stages[0].forms["fp32"].sha256
    assert (key.machine, key.profiles) == (ORIN, bucket_profiles([1, 8]))


def test_a_stage_alone_is_chosen_by_name(bundle):
    assert [job.wanted.name for job in jobs(bundle, order(stages=("negated",)))] == ["negated.fp32"]
    with pytest.raises(EngineError, match="no stage middle; it has echo, negated"):
        list(jobs(bundle, order(stages=("middle",))))


def test_a_form_that_is_missing_is_refused_before_anything_is_built(bundle):
    with pytest.raises(BundleError, match="stage echo has no form fp16"):
        list(jobs(bundle, order(forms=("fp16",))))


def test_a_model_that_was_changed_is_refused(bundle):
    with (bundle.folder / "echo.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="content differs"):
        list(jobs(bundle, order()))


def test_a_dla_core_has_one_plan_per_bucket_each_of_one_batch(bundle):
    found = list(jobs(bundle, order(stages=("echo",), flags=Flags(dla_core=1))))
    assert [job.wanted.name for job in found] == ["echo.fp32.dla1.b1", "echo.fp32.dla1.b8"]
    assert [(p.min, p.opt, p.max) for job in found for p in job.wanted.key.profiles] == [
        (1, 1, 1),
        (8, 8, 8),
    ]


def test_a_request_says_what_the_network_must_have(bundle, tmp_path):
    job = next(jobs(bundle, order(targets=("sm_89",))))
    request = job.request(tmp_path / "partial", tmp_path / "timings")
    assert request.inputs == (Expected(name="input", shape=(1, 2, 2)),)
    assert request.outputs == (Expected(name="logits", shape=(4,)),)
    assert (request.targets, request.library) == (("sm_89",), "tensorrt")
    assert request.output == str(tmp_path / "partial")
    assert job.request(tmp_path, None).timing_cache is None


def test_tensors_between_stages_and_a_learned_score_are_expected_too(make_bundle, stage):
    colour = {"size": [4, 6], "colour": "rgb", "mean": [0] * 3, "std": [1] * 3}
    folder = make_bundle(
        stage("features", preprocessing=colour),
        stage("reads_features", sources={"input": "frames", "features": "features/features"}),
        scores=[{"name": "learned", "output": "score"}],
        input={"shape": [4, 6, 3], "colour": "rgb"},
    )
    spec = load_bundle(folder).spec
    assert expected_inputs(spec, 0) == (Expected(name="input", shape=(3, 4, 6)),)
    assert expected_outputs(spec, 0) == (
        Expected(name="logits", shape=(4,)),
        Expected(name="score", shape=()),
        Expected(name="features"),
    )
    assert expected_inputs(spec, 1)[1] == Expected(name="features")
    assert expected_outputs(spec, 1) == (Expected(name="logits", shape=(4,)),)
