"""The build code on the real class objects of each TensorRT, recorded in place of native calls."""

from __future__ import annotations

import pytest

from tests.engines import plan_models
from tests.tensorrt_double.recorded import record_builds
from tests.tensorrt_double.wheels import VERSIONS

pytestmark = pytest.mark.slow  # downloads the bindings on first use

OLD = ["8.6.1"]
NEW = [version for version in VERSIONS if version not in OLD]
ELEVEN = [version for version in VERSIONS if version.startswith("11.")]
# What TensorRT 11 removed and a builder of before would touch.
REMOVED = {
    "BuilderFlag.FP16",
    "BuilderFlag.INT8",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
    "IBuilderConfig.int8_calibrator",
    "IBuilderConfig.set_calibration_profile",
    "Builder.platform_has_fast_fp16",
    "Builder.platform_has_fast_int8",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "ILayer.precision",
    "ITensor.set_dynamic_range",
}
LIMITS = {
    "workspace_mib": 64,
    "optimisation_level": 5,
    "aux_streams": 2,
    "version_compatible": True,
    "hardware_compatible": "ampere_plus",
}


def request(folder, form, *, model=None, batches=(1, 4), **changes):
    model = model or plan_models.MAKERS[form](folder)
    profiles, lower = [], 1
    for batch in batches:
        profiles.append({"min": lower, "opt": batch, "max": batch})
        lower = batch + 1
    fields = {
        "name": f"saver.{form}",
        "library": "tensorrt",
        "model": str(model),
        "form": form,
        "inputs": [{"name": "input", "shape": [1, 4, 4]}],
        "outputs": [{"name": "logits", "shape": [3]}],
        "profiles": profiles,
        "flags": {},
        "output": str(folder / f"{form}.plan"),
    }
    return {**fields, **changes}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Recordings of a version, by case; each version runs once."""
    done = {}

    def of(version):
        if version not in done:
            folder = tmp_path_factory.mktemp(f"builds-{version}")
            cases = make_cases(folder)
            found = record_builds(version, list(cases.values()))
            done[version] = dict(zip(cases, found, strict=True))
        return done[version]

    return of


def make_cases(folder):
    timings = str(folder / "timings")
    (folder / "foreign").write_bytes(b"of another version")
    fixed = [{"min": 8, "opt": 8, "max": 8}]
    dla = {"flags": {"dla_core": 1}, "profiles": fixed}
    empty, garbage = (
        plan_models.no_model(folder / name, content)
        for name, content in [("a", b""), ("b", b"this is not onnx" * 9)]
        if not (folder / name).mkdir()
    )
    requests = {
        "fp32": request(folder, "fp32"),
        "fp16": request(folder, "fp16"),
        "int8_trt": request(folder, "int8_trt"),
        "tf32": request(folder, "fp32", flags={"tf32": True}),
        "limits": request(folder, "fp16", flags=LIMITS),
        "first timing": request(folder, "fp16", timing_cache=timings),
        "second timing": request(folder, "fp16", timing_cache=timings),
        "foreign timing": request(folder, "fp16", timing_cache=str(folder / "foreign")),
        "dla": request(folder, "fp16", **dla),
        "no dla": request(folder, "fp16", **dla),
        "unknown operator": request(folder, "fp32", model=plan_models.unknown_operator(folder)),
        "empty": request(folder, "fp32", model=empty),
        "garbage": request(folder, "fp32", model=garbage),
        "not started": request(folder, "fp32"),
        "refused": request(folder, "fp32"),
        "warned": request(folder, "fp32"),
    }
    scenarios = {
        "dla": {"dla_cores": 2},
        "no dla": {"dla_cores": 1},
        "not started": {"starts": False},
        "refused": {"error": "Error Code 10: no implementation for node fc"},
        "warned": {"warning": "weights are subnormal"},
    }
    return {
        name: {"request": asked, "scenario": scenarios.get(name, {})}
        for name, asked in requests.items()
    }


def flags_set(recording):
    return [call["flag"] for call in recording.of("IBuilderConfig.set_flag")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("form", plan_models.MAKERS)
def test_every_form_is_built_with_one_profile_per_bucket(recordings, version, form):
    recording = recordings(version)[form]
    assert recording.error is None
    profiles = recording.of("IOptimizationProfile.set_shape")
    assert [(call["min"][0], call["opt"][0], call["max"][0]) for call in profiles] == [
        (1, 1, 1),
        (2, 4, 4),
    ]
    assert all(call["opt"][1:] == [1, 4, 4] and call["input"] == "input" for call in profiles)
    tensor = {"name": "input", "dtype": "float32", "shape": [-1, 1, 4, 4]}
    assert recording.answer["inputs"] == [tensor]
    assert recording.answer["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [-1, 3]}]


@pytest.mark.parametrize("version", VERSIONS)
def test_precision_is_a_flag_only_where_networks_are_not_strongly_typed(recordings, version):
    expected = {"fp32": [], "fp16": ["FP16"], "int8_trt": ["FP16", "INT8"]}
    for form, names in expected.items():
        wanted = [f"BuilderFlag.{name}" for name in names] if version in OLD else []
        assert flags_set(recordings(version)[form]) == wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_the_network_is_strongly_typed_or_of_explicit_batch(recordings, version):
    (flags,) = recordings(version)["fp16"].of("Builder.create_network")
    strongly_typed = 2 if version.startswith("10.") else 1  # bit 1, and bit 0 from 11 on
    assert flags == {"flags": 1 if version in OLD else strongly_typed}


@pytest.mark.parametrize("version", VERSIONS)
def test_tf32_is_cleared_for_fp32_alone_and_unless_it_was_asked(recordings, version):
    cleared = {
        name: recordings(version)[name].of("IBuilderConfig.clear_flag")
        for name in ("fp32", "tf32", "fp16", "int8_trt")
    }
    assert cleared.pop("fp32") == [{"flag": "BuilderFlag.TF32"}]
    assert not any(cleared.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_contexts_may_share_a_profile_which_has_to_be_asked_of_8_6(recordings, version):
    asked = recordings(version)["fp16"].of("IBuilderConfig.set_preview_feature")
    feature = {"feature": "PreviewFeature.PROFILE_SHARING_0806", "enable": True}
    assert asked == ([feature] if version in OLD else [])


@pytest.mark.parametrize("version", VERSIONS)
def test_plans_keep_what_the_inspector_tells_of_their_layers(recordings, version):
    (call,) = recordings(version)["fp16"].of("IBuilderConfig.profiling_verbosity")
    assert call["value"] == "ProfilingVerbosity.DETAILED"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_option_reaches_the_configuration(recordings, version):
    recording = recordings(version)["limits"]
    assert recording.error is None
    limit = {"pool": "MemoryPoolType.WORKSPACE", "pool_size": 64 << 20}
    assert recording.of("IBuilderConfig.set_memory_pool_limit") == [limit]
    assert recording.of("IBuilderConfig.builder_optimization_level") == [{"value": 5}]
    assert recording.of("IBuilderConfig.max_aux_streams") == [{"value": 2}]
    assert "BuilderFlag.VERSION_COMPATIBLE" in flags_set(recording)
    level = {"value": "HardwareCompatibilityLevel.AMPERE_PLUS"}
    assert recording.of("IBuilderConfig.hardware_compatibility_level") == [level]


@pytest.mark.parametrize("version", VERSIONS)
def test_options_that_were_not_given_are_not_touched(recordings, version):
    touched = recordings(version)["fp16"].names()
    untouched = {
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.builder_optimization_level",
        "IBuilderConfig.max_aux_streams",
        "IBuilderConfig.hardware_compatibility_level",
        "IBuilderConfig.default_device_type",
        "IBuilderConfig.create_timing_cache",
        "BuilderFlag.VERSION_COMPATIBLE",
    }
    assert not touched & untouched


@pytest.mark.parametrize("version", VERSIONS)
def test_timings_are_kept_and_used_and_foreign_ones_replaced(recordings, version):
    def given(case):
        calls = recordings(version)[case].of("IBuilderConfig.create_timing_cache")
        return [call["serialized_timing_cache"] for call in calls]

    assert given("first timing") == ["0 bytes"]
    assert given("second timing") == ["5 bytes"]
    assert given("foreign timing") == ["18 bytes", "0 bytes"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_dla_gets_one_static_batch_of_fp16_with_the_gpu_for_other_layers(recordings, version):
    recording = recordings(version)["dla"]
    assert recording.error is None
    assert recording.of("IBuilderConfig.default_device_type") == [{"value": "DeviceType.DLA"}]
    assert recording.of("IBuilderConfig.DLA_core") == [{"value": 1}]
    fp16 = [] if version in ELEVEN else ["BuilderFlag.FP16"]
    assert flags_set(recording) == [*fp16, "BuilderFlag.GPU_FALLBACK"]
    assert recordings(version)["no dla"].error == "--dla 1: this machine has 1 DLA core(s)."


@pytest.mark.parametrize("version", NEW)
def test_progress_is_told_from_version_10_on(recordings, version):
    started, *steps, finished = recordings(version)["fp32"].progress
    assert started == {"event": "started", "phase": "Building engine", "steps": 4}
    assert [step["step"] for step in steps] == [0, 1, 2, 3]
    assert finished == {"event": "finished", "phase": "Building engine"}


def test_version_8_6_tells_no_progress_and_builds_all_the_same(recordings):
    assert recordings("8.6.1")["fp32"].progress == []


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_operator_is_named_with_its_node(recordings, version):
    error = recordings(version)["unknown operator"].error
    node = "node 0" if version in OLD else "node 0 (operator FooBar, name foo)"
    assert f"TensorRT {version} cannot read it: {node}: " in error
    assert "Plugin not found" in error


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", ["empty", "garbage"])
def test_a_file_that_the_parser_takes_for_an_empty_network_is_refused(recordings, version, case):
    assert recordings(version)[case].error.endswith("not an ONNX model, or an empty one.")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_error_is_tensorrts_own(recordings, version):
    refused = recordings(version)["refused"].error
    assert refused == (
        f"saver.fp32: TensorRT {version} cannot build it: "
        "Error Code 10: no implementation for node fc"
    )
    not_started = recordings(version)["not started"].error
    assert f"TensorRT {version} is installed but does not start: CUDA initialization" in not_started


@pytest.mark.parametrize("version", VERSIONS)
def test_a_warning_is_passed_on_once(recordings, version):
    assert recordings(version)["warned"].answer["warnings"] == ["weights are subnormal"]


@pytest.mark.parametrize("version", NEW)
def test_from_10_on_no_name_is_touched_that_the_version_lacks(recordings, version):
    assert {name for item in recordings(version).values() for name in item.missing} == set()


def test_on_8_6_only_what_came_later_is_asked_for_and_done_without(recordings):
    missing = {name for item in recordings("8.6.1").values() for name in item.missing}
    assert missing == {"IProgressMonitor", "ParserError.node_operator"}


@pytest.mark.parametrize("version", ELEVEN)
def test_nothing_that_11_removed_is_touched(recordings, version):
    touched = set().union(*(item.names() for item in recordings(version).values()))
    assert touched and not touched & REMOVED


def test_the_8_6_run_does_touch_what_11_removed(recordings):
    touched = set().union(*(item.names() for item in recordings("8.6.1").values()))
    assert touched & REMOVED == {"BuilderFlag.FP16", "BuilderFlag.INT8"}
