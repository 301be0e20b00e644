"""The verb cache: what each plan is worth here, what is removed, and what never is."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from engines import cache
from engines.errors import EngineError
from engines.plan_store import lock_file, obtain, try_lock
from runtime.bundle import load_bundle
from runtime.plans import model_digest
from tests.engines.plan_cases import ORIN, maker, wanted
from tests.engines.test_tensorrt_versions import tensorrt


@pytest.fixture
def bundle(make_bundle, stage, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "load_tensorrt", lambda library: tensorrt("10.3.0"))
    monkeypatch.setattr(cache, "this_machine", lambda library, version: ORIN)
    return make_bundle(stage("echo", name="saver"), "negated")


@pytest.fixture
def add(bundle):
    """Build a plan of the saver; by default one that is usable here."""

    def build(**changes):
        model = model_digest(load_bundle(bundle), 0, "fp32")
        fields = {"model_sha256": model, "form": "fp32", **changes}
        return obtain(wanted(bundle, **fields), maker()[0], lambda line: None).plan

    return build


def invoke(*arguments):
    return CliRunner().invoke(cache.main, list(map(str, arguments)))


def statuses(bundle):
    result = invoke("list", bundle, "--json")
    assert result.exit_code == 0, result.output
    return [(item["name"], item["status"]) for item in json.loads(result.stdout)]


@pytest.fixture
def all_kinds(bundle, add):
    """One plan of each kind, and their status in the order of the listing."""
    usable = add()
    elsewhere = add(machine=ORIN.model_copy(update={"version": "8.6.2"}))
    stale = add(model_sha256="ab" * 32)
    edited = add(machine=ORIN.model_copy(update={"cuda": "11.4"}))
    edited.path.write_bytes(b"PLAN")
    broken = add(machine=ORIN.model_copy(update={"cuda": "11.5"}))
    broken.sidecar_path.write_text("{")
    orphan = add(machine=ORIN.model_copy(update={"cuda": "11.6"}))
    orphan.sidecar_path.unlink()
    (usable.folder / f".{usable.path.name}.x.partial").write_bytes(b"half")
    (usable.folder / "timings.0.cache").write_bytes(b"timed")
    return {
        "usable": [usable],
        "elsewhere": [elsewhere],
        "stale": [stale],
        "damaged": [edited, broken],
        "leftover": [orphan],
    }


def test_the_listing_says_what_each_plan_is_worth(bundle, all_kinds):
    found = statuses(bundle)
    assert sorted(status for _, status in found) == [
        "damaged",
        "damaged",
        "elsewhere",
        "leftover",
        "leftover",
        "stale",
        "timings",
        "usable",
    ]
    text = invoke("list", bundle).stdout
    assert "saver.fp32: usable\n  TensorRT 10.3.0 for Orin (AGX) (sm_87, CUDA 12.6), " in text
    assert "elsewhere (built by TensorRT 8.6.2 for sm_87, this is 10.3.0)" in text
    assert "stale (the bundle has another model now)" in text
    assert "leftover (of a build that was killed)" in text


def test_an_empty_cache_is_said_to_be_empty(bundle):
    assert invoke("list", bundle).stdout == "none\n"
    assert invoke("list", bundle, "--json").stdout == "[]\n"
    assert invoke("verify", bundle).exit_code == 0


def test_a_stage_that_is_gone_makes_its_plans_stale(bundle, add):
    add()
    text = (bundle / "cascade.json").read_text()
    (bundle / "cascade.json").write_text(text.replace('"name": "saver"', '"name": "renamed"'))
    assert statuses(bundle) == [("saver.fp32", "stale")]


def test_verify_fails_for_a_damaged_plan_and_says_how_to_remove_it(bundle, all_kinds):
    result = invoke("verify", bundle)
    assert result.exit_code == 1
    assert f"python -m engines.cache prune {bundle}" in result.stderr
    for plan in all_kinds["damaged"]:
        plan.path.unlink()
        plan.sidecar_path.unlink()
    assert invoke("verify", bundle).exit_code == 0


def test_prune_removes_what_is_of_no_use_to_anyone(bundle, all_kinds):
    dry = invoke("prune", bundle, "--dry-run", "--json")
    assert len(json.loads(dry.stdout)) == 5 and len(statuses(bundle)) == 8
    result = invoke("prune", bundle)
    assert result.exit_code == 0 and result.stderr == "removed: 5\n"
    assert sorted(status for _, status in statuses(bundle)) == ["elsewhere", "timings", "usable"]
    kept = [plan for kind in ("usable", "elsewhere") for plan in all_kinds[kind]]
    assert all(plan.read() for plan in kept)


def test_plans_of_other_machines_are_removed_only_when_asked(bundle, all_kinds):
    invoke("prune", bundle, "--elsewhere")
    assert sorted(status for _, status in statuses(bundle)) == ["timings", "usable"]
    invoke("prune", bundle, "--all")
    assert statuses(bundle) == []


def test_where_this_machine_is_unknown_no_plan_is_called_anothers(bundle, add, monkeypatch):
    add()

    def missing(library):
        raise EngineError("TensorRT is not installed (tensorrt). Install it.")

    monkeypatch.setattr(cache, "load_tensorrt", missing)
    assert statuses(bundle) == [("saver.fp32", "unknown")]
    assert "unknown (TensorRT is not installed (tensorrt))" in invoke("list", bundle).stdout
    invoke("prune", bundle, "--elsewhere")
    assert statuses(bundle) == [("saver.fp32", "unknown")]


def test_a_plan_that_is_being_built_is_not_removed(bundle, add):
    plan = add()
    plan.path.write_bytes(b"bad")
    partial = plan.folder / f".{plan.path.name}.x.partial"
    partial.write_bytes(b"half")
    with lock_file(plan.folder, "saver.fp32").open("ab") as lock:
        assert try_lock(lock.fileno())
        result = invoke("prune", bundle)
    assert result.stderr.count("being built by another process, kept") == 2
    assert partial.exists() and plan.path.exists()
    assert invoke("prune", bundle).stderr == "removed: 2\n"
    assert not partial.exists() and not plan.path.exists()


def test_plans_in_the_users_cache_are_listed_too(bundle, add, tmp_path):
    (bundle / "plans").write_bytes(b"a file where the folder would be")
    plan = add()
    assert plan.path.is_relative_to(tmp_path / "cache")
    assert statuses(bundle) == [("saver.fp32", "usable")]
