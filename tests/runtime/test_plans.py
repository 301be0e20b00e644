"""Plans: names, profiles, sidecars, where they lie, and that only a matching file is read."""

from __future__ import annotations

import hashlib
import json

import pydantic
import pytest

from runtime import plans
from runtime.bundle import load_bundle
from runtime.driver import Driver, Gpu
from runtime.errors import BundleError, PlanError
from runtime.plans import Damaged, Flags, Machine, PlanKey, Profile, Sidecar, Tensor

SHA = "0123456789abcdef" * 4
ORIN = Machine(
    library="tensorrt", version="10.3.0", cuda="12.6", gpu="Orin (AGX)", architecture="sm_87"
)


def key(**changes):
    fields = {
        "model_sha256": SHA,
        "form": "fp16",
        "machine": ORIN,
        "profiles": plans.bucket_profiles([1, 8]),
    }
    return PlanKey(**{**fields, **changes})


def sidecar(plan_key, content, *, stage="saver", **changes):
    fields = {
        "stage": stage,
        "key": plan_key,
        "file": plans.plan_file(stage, plan_key),
        "sha256": hashlib.sha256(content).hexdigest(),
        "nbytes": len(content),
        "inputs": (Tensor(name="input", dtype="float32", shape=(-1, 1, 28, 28)),),
        "outputs": (Tensor(name="logits", dtype="float32", shape=(-1, 10)),),
        "built": "2026-01-02T03:04:05+00:00",
        "build_seconds": 1.5,
    }
    return Sidecar(**{**fields, **changes})


def write_plan(folder, plan_key, content=b"plan", **changes):
    """Write a plan and its sidecar; return the sidecar's path."""
    described = sidecar(plan_key, content, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / described.file).write_bytes(content)
    path = (folder / described.file).with_suffix(".json")
    path.write_text(described.model_dump_json())
    return path


def test_each_bucket_has_a_profile_for_exactly_the_counts_that_fall_to_it():
    profiles = plans.bucket_profiles([1, 2, 8, 32])
    assert [(p.min, p.opt, p.max) for p in profiles] == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 8, 8),
        (9, 32, 32),
    ]
    assert [(p.min, p.opt, p.max) for p in plans.bucket_profiles([5])] == [(1, 5, 5)]


@pytest.mark.parametrize("buckets", [[0], [4, 2], [3, 3], [-1]])
def test_buckets_that_do_not_ascend_from_one_are_refused(buckets):
    with pytest.raises(ValueError, match="ascending"):
        plans.bucket_profiles(buckets)


def test_a_profile_is_ordered():
    with pytest.raises(pydantic.ValidationError, match="min <= opt <= max"):
        Profile(min=2, opt=1, max=4)


def test_names_say_stage_form_and_for_the_dla_core_and_batch():
    assert plans.plan_name("saver", key()) == "saver.fp16"
    fixed = (Profile(min=8, opt=8, max=8),)
    on_dla = key(profiles=fixed, flags=Flags(dla_core=1))
    assert plans.plan_name("saver", on_dla) == "saver.fp16.dla1.b8"


CHANGES = [
    {"model_sha256": SHA[::-1]},
    {"form": "int8_trt"},
    {"machine": ORIN.model_copy(update={"version": "10.3.1"})},
    {"machine": ORIN.model_copy(update={"library": "tensorrt_rtx"})},
    {"machine": ORIN.model_copy(update={"cuda": "12.2"})},
    {"machine": ORIN.model_copy(update={"gpu": "Orin (Nano)"})},
    {"machine": ORIN.model_copy(update={"architecture": "sm_86"})},
    {"targets": ("sm_89",)},
    {"profiles": plans.bucket_profiles([1, 16])},
    *({"flags": Flags(**{name: value})} for name, value in [
        ("tf32", True),
        ("workspace_mib", 64),
        ("optimisation_level", 5),
        ("aux_streams", 0),
        ("version_compatible", True),
        ("hardware_compatible", "ampere_plus"),
        ("dla_core", 0),
    ]),
]  # fmt: skip


def test_every_part_of_a_key_changes_the_file_name():
    assert {name for change in CHANGES for name in change} == set(PlanKey.model_fields)
    flags = {name for change in CHANGES if "flags" in change for name in change["flags"].model_dump(
        exclude_defaults=True)}  # fmt: skip
    assert flags == set(Flags.model_fields)
    names = [plans.plan_file("saver", key(**change)) for change in [{}, *CHANGES]]
    assert len(set(names)) == len(names)
    assert plans.plan_file("saver", key()) == names[0]


def test_versions_compare_by_their_numbers():
    assert plans.version_numbers("10.13.3.9.post1") == (10, 13, 3, 9)
    assert plans.version_numbers("8.6.1") < plans.version_numbers("10.3.0")


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    plan = plans.load_sidecar(write_plan(tmp_path, key(), b"the plan"))
    assert plan.read() == b"the plan"
    assert (plan.name, plan.key) == ("saver.fp16", key())
    assert plan.sidecar_path.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"the pla", "has 7 bytes, its sidecar says 8"),
        (b"", "has 0 bytes"),
        (b"THE plan", "is not what its sidecar describes"),
        (None, "No such file"),
    ],
    ids=["truncated", "empty", "edited", "missing"],
)
def test_a_plan_that_is_not_the_one_described_is_not_read(tmp_path, content, words):
    plan = plans.load_sidecar(write_plan(tmp_path, key(), b"the plan"))
    plan.path.unlink() if content is None else plan.path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan saver\.fp16") as caught:
        plan.read()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[:40], "JSON"),
        (lambda text: "", "JSON"),
        (lambda text: "[]", "object"),
        (lambda text: text.replace("plan/1", "plan/2"), "format"),
        (lambda text: text.replace('"stage"', '"Stage"'), "stage Field required"),
        (lambda text: text.replace(".plan\"", ".exe\""), "file"),
        (lambda text: text.replace('"file":"saver', '"file":"../saver'), "file"),
        (lambda text: text.replace('"file":"saver', '"file":"/etc/saver'), "file"),
        (lambda text: text.replace("sm_87", "sm87"), "architecture"),
    ],
)  # fmt: skip
def test_a_spoilt_sidecar_is_named_with_its_fault(tmp_path, spoil, words):
    path = write_plan(tmp_path, key())
    text = path.read_text()
    assert spoil(text) != text
    path.write_text(spoil(text))
    with pytest.raises(PlanError) as caught:
        plans.load_sidecar(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_plans_lie_in_the_bundle_and_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside, own = plans.plan_folders(tmp_path / "bundle")
    assert beside == tmp_path / "bundle" / "plans"
    assert own.parent == tmp_path / "cache" / "tinysaver" / "plans"
    other = plans.plan_folders(tmp_path / "elsewhere" / "bundle")[1]
    assert other != own and other.name.startswith("bundle-")
    write_plan(own, key(form="fp32"))
    write_plan(beside, key(), stage="large")
    (beside / "broken.json").write_text("{")
    broken, first, second = plans.plans_of(tmp_path / "bundle")
    assert isinstance(broken, Damaged) and broken.sidecar_path.name == "broken.json"
    assert [first.name, second.name] == ["large.fp16", "saver.fp32"]


def test_without_a_folder_there_are_no_plans(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert list(plans.plans_of(tmp_path / "bundle")) == []


def test_a_models_hash_covers_its_external_data(make_bundle, stage):
    def digest(**weights):
        described = stage("echo")
        described["forms"]["fp32"].update(weights)
        return plans.model_digest(load_bundle(make_bundle(described, "negated")), 0, "fp32")

    one, other = "1" * 64, "2" * 64
    found = [
        digest(),
        digest(external_data=["a.bin"], external_sha256=[one]),
        digest(external_data=["a.bin"], external_sha256=[other]),
        digest(external_data=["b.bin"], external_sha256=[one]),
        digest(external_data=["a.bin", "b.bin"], external_sha256=[one, other]),
    ]
    assert len(set(found)) == len(found)
    assert found[0] == stage("echo")["forms"]["fp32"]["sha256"]
    # Plans are kept by this hash, so it must not change from release to release.
    text = json.dumps([found[0], ["a.bin", one]])
    assert found[1] == hashlib.sha256(text.encode()).hexdigest()


def test_a_stage_without_the_form_is_named(make_bundle):
    bundle = load_bundle(make_bundle("echo", "negated"))
    with pytest.raises(BundleError, match="stage negated has no form fp16; it has fp32"):
        plans.model_digest(bundle, 1, "fp16")


@pytest.mark.parametrize("board", [None, "NVIDIA Jetson AGX Orin"])
def test_this_machine_is_described_by_its_driver_and_board(monkeypatch, board):
    gpus = (Gpu("RTX", "sm_89", 1), Gpu("Orin", "sm_87", 2))
    monkeypatch.setattr(plans, "ask_driver", lambda: Driver("12.6", gpus))
    monkeypatch.setattr(plans, "board", lambda: board)
    machine = plans.this_machine("tensorrt", "10.3.0", device=1)
    expected = "Orin (NVIDIA Jetson AGX Orin)" if board else "Orin"
    assert (machine.gpu, machine.architecture, machine.cuda) == (expected, "sm_87", "12.6")


def test_a_sidecar_is_plain_json(tmp_path):
    content = json.loads(write_plan(tmp_path, key()).read_text())
    assert content["format"] == plans.FORMAT
    assert content["key"]["profiles"][1] == {"min": 2, "opt": 8, "max": 8}
