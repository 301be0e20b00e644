"""Bundles and their plans, on machines that fit and others."""

import hashlib

import pytest

from runtime.bundle import load_bundle
from runtime.doctor_bundle import check_bundle, check_plans, open_bundle
from runtime.plans import (
    Machine,
    PlanKey,
    Sidecar,
    bucket_profiles,
    model_digest,
    plan_file,
    plan_folders,
)
from tests.runtime.fake_machine import FakeMachine

HERE = Machine(
    library="tensorrt",
    version="10.3.0",
    cuda="12.6",
    gpu="NVIDIA RTX A2000",
    architecture="sm_86",
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A PC whose plans are `HERE`'s; no plan of the user's own cache is seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "machine").mkdir()
    made = FakeMachine(tmp_path / "machine")
    made.driver()
    made.tensorrt("10.3.0")
    return made


def write_plan(folder, stage, *, machine=HERE, content=b"plan", **changes):
    bundle = load_bundle(folder)
    fields = {
        "model_sha256": model_digest(bundle, stage, "fp32"),
        "form": "fp32",
        "machine": machine,
        "profiles": bucket_profiles([1, 8]),
    }
    key, name = PlanKey(**{**fields, **changes}), bundle.spec.stages[stage].name
    sidecar = Sidecar(
        stage=name,
        key=key,
        file=plan_file(name, key),
        sha256=hashlib.sha256(content).hexdigest(),
        nbytes=len(content),
        inputs=(),
        outputs=(),
        built="2026-01-02T03:04:05+00:00",
        build_seconds=1.0,
    )
    place = plan_folders(folder)[0]
    place.mkdir(exist_ok=True)
    (place / sidecar.file).write_bytes(content)
    path = (place / sidecar.file).with_suffix(".json")
    path.write_text(sidecar.model_dump_json())
    return path


def plans(machine, folder, *libraries):
    libraries = libraries or ("driver", "tensorrt")
    return list(check_plans(machine.examination(*libraries, bundle=load_bundle(folder))))


def test_a_bundle_tells_its_stages_and_forms(machine, make_bundle):
    folder = make_bundle("echo", "negated")
    (finding,) = check_bundle(machine.examination(bundle=open_bundle(folder)))
    assert finding.status == "ok"
    assert f"hand-made in {folder}: echo -> negated; forms fp32" in finding.found
    assert finding.facts["settings"] == ["fp32/fp32"]


def test_no_bundle_is_no_finding(machine):
    examination = machine.examination(bundle=open_bundle(None))
    for check in (check_bundle, check_plans):
        assert list(check(examination)) == []


def test_a_bundle_that_is_not_there_or_damaged_is_a_problem(machine, make_bundle, tmp_path):
    (finding,) = check_bundle(machine.examination(bundle=open_bundle(tmp_path / "nowhere")))
    assert finding.status == "problem"
    assert "not found" in finding.cause
    folder = make_bundle("echo", "negated")
    (folder / "negated.onnx").write_bytes(b"cut")
    examination = machine.examination(bundle=open_bundle(folder))
    (finding,) = check_bundle(examination)
    assert finding.status == "problem"
    assert "negated.onnx: content differs" in finding.cause
    assert list(check_plans(examination)) == []


def test_a_bundle_without_thresholds_is_a_problem(machine, make_bundle):
    folder = make_bundle("echo", "negated", settings={})
    (finding,) = check_bundle(machine.examination(bundle=open_bundle(folder)))
    assert finding.status == "problem"
    assert "tinysaver threshold" in finding.fix


def test_plans_that_fit_are_fine(machine, make_bundle):
    folder = make_bundle("echo", "negated")
    for stage in (0, 1):
        write_plan(folder, stage)
    found = plans(machine, folder)
    assert [item.status for item in found] == ["ok", "ok"]
    assert {item.name for item in found} == {"plan echo.fp32", "plan negated.fp32"}
    assert found[0].found == "built 2026-01-02, 0.0 MiB"


def test_a_plan_of_another_tensorrt_is_a_warning_with_the_command_that_builds_it(
    machine, make_bundle
):
    folder = make_bundle("echo", "negated")
    write_plan(folder, 0, machine=HERE.model_copy(update={"version": "10.16.2"}))
    write_plan(folder, 1)
    (other, fits, missing) = plans(machine, folder)
    assert other.cause == "built by TensorRT 10.16.2 for sm_86, this is 10.3.0"
    assert other.fix == f"python -m engines.build {folder} --form fp32"
    assert fits.status == "ok"
    assert (missing.status, missing.found) == ("warning", "none that fits for echo")


def test_a_plan_of_another_model_does_not_fit(machine, make_bundle):
    folder = make_bundle("echo", "negated")
    write_plan(folder, 0, model_sha256="ab" * 32)
    assert "another model" in plans(machine, folder)[0].cause


def test_a_plan_that_was_cut_or_edited_is_a_warning(machine, make_bundle):
    folder = make_bundle("echo", "negated")
    path = write_plan(folder, 0)
    path.with_suffix(".plan").write_bytes(b"p")
    assert "its sidecar says 4" in plans(machine, folder)[0].cause
    path.write_text("{")
    finding = plans(machine, folder)[0]
    assert finding.status == "warning"
    assert finding.fix == f"python -m engines.cache prune {folder}"


def test_a_plan_of_a_stage_that_the_bundle_lacks_is_a_warning(machine, make_bundle):
    path = write_plan(make_bundle("echo", "negated"), 0)
    text = path.read_text().replace('"stage":"echo"', '"stage":"gone"')
    path.write_text(text)
    finding = plans(machine, path.parent.parent)[0]
    assert finding.status == "warning"
    assert "gone" in finding.cause


def test_without_a_gpu_plans_are_only_counted(machine, make_bundle):
    folder = make_bundle("echo", "negated")
    assert plans(machine, folder, "tensorrt") == []
    write_plan(folder, 0)
    (finding,) = plans(machine, folder, "tensorrt")
    assert (finding.status, finding.found) == ("absent", "1, not used without TensorRT and a GPU")


def test_plans_of_tensorrt_rtx_count_too(machine, make_bundle):
    machine.tensorrt("1.7.1.116", name="tensorrt_rtx")
    folder = make_bundle("echo", "negated")
    ahead = Machine(library="tensorrt_rtx", version="1.7.1.116")
    for stage in (0, 1):
        write_plan(folder, stage, machine=ahead, targets=("sm_86", "sm_89"))
    found = plans(machine, folder, "driver", "tensorrt", "tensorrt_rtx")
    assert [item.status for item in found] == ["ok", "ok"]
    assert plans(machine, folder)[0].status == "warning"
