"""The committed example of every file format loads, and says what docs/formats.md promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from calibration.budget import Budget
from calibration.cost_table import CostTable
from calibration.histogram_cache import Bins, CacheFile
from calibration.pool import Card
from calibration.provenance import load_provenance, overlaps
from calibration.ranges import HOST, value_range
from calibration.records import load_data, load_record
from calibration.samples import Samples
from kernels.prebuilt import ARCHITECTURES, Manifest
from runtime import bench_tables
from runtime.bundle import load_bundle, save_spec
from runtime.plans import Flags, Machine, PlanKey, Profile, Sidecar, load_sidecar, plan_file
from runtime.schema import CascadeSpec
from runtime.selfcheck import Verdict

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "formats"


def test_cascade_example_uses_every_field_of_the_schema():
    spec = load_bundle(EXAMPLES).spec
    for name in CascadeSpec.model_fields:
        assert getattr(spec, name), name
    setting = spec.settings["fp32/fp32"]
    assert setting.certificate and setting.certificate.covers and setting.gears and setting.path
    assert all(gear >= setting.thresholds for gear in setting.gears)


def test_cascade_example_is_written_as_it_was_read(tmp_path):
    written = save_spec(tmp_path, load_bundle(EXAMPLES).spec)
    assert written.read_text() == (EXAMPLES / "cascade.json").read_text()


def test_golden_example_has_frames_and_logits_of_every_stage():
    bundle = load_bundle(EXAMPLES)
    assert bundle.spec.golden
    with np.load(bundle.verified(bundle.spec.golden.file, bundle.spec.golden.sha256)) as golden:
        assert golden["frames"].shape[1:] == bundle.spec.input.shape
        for stage in bundle.spec.stages:
            logits = golden[f"logits/{stage.name}/fp32"]
            assert logits.shape == (len(golden["frames"]), len(bundle.spec.labels))
            assert logits.dtype == np.float32


def test_record_example_is_of_the_data_example():
    data = load_data(EXAMPLES / "data.npz")
    record = load_record(EXAMPLES / "record.npz")
    assert record.labels is not None
    assert data.labels is not None
    np.testing.assert_array_equal(record.labels, data.labels)
    assert record.logits.shape == (len(data.images), 10)


def test_provenance_example_names_every_sample_of_the_data_example():
    images = load_data(EXAMPLES / "data.npz").images
    found = overlaps(images, [EXAMPLES / "provenance.npz"])
    assert [item.samples for item in found] == [len(images)]
    entry = load_bundle(EXAMPLES).spec.provenance[0]
    assert load_provenance(EXAMPLES / entry.file).meta.purpose == entry.purpose


def test_model_card_example_fits_the_format():
    card = Card.model_validate_json((EXAMPLES / "model.json").read_text())
    assert card.stage().forms["fp32"].sha256 == card.sha256


def test_costs_example_costs_cascades_of_its_models():
    text = (EXAMPLES / "costs.json").read_text()
    costs = CostTable.model_validate_json(text).costs()
    assert costs.alone("large") == pytest.approx(0.00128 / 4)
    assert costs.cascade(("tiny", "large"), np.array([0.25])) < costs.alone("large")


def test_histograms_example_is_of_the_cascade_example_and_gives_a_range():
    stored = CacheFile.model_validate_json((EXAMPLES / "histograms.json").read_text())
    stage = load_bundle(EXAMPLES).spec.stages[0]
    images = load_data(EXAMPLES / "data.npz").images
    assert stored.key.model_sha256 == (stage.forms["fp32"].sha256,)
    assert stored.key.preprocessing_sha256 == stage.preprocessing.sha256
    assert stored.key.data_sha256 == Samples("", list(images), None).sha256
    found = {name: bins.histogram() for name, bins in stored.tensors.items()}
    assert Bins.of(found["relu"]) == stored.tensors["relu"]
    low, high = value_range(found["relu"], "mse", HOST)
    assert low == 0 and high == pytest.approx(0.7503, abs=1e-3)


def test_certifications_example_has_spent_two_of_four_looks():
    assert Budget(EXAMPLES / "certifications.jsonl").spent() == pytest.approx(0.025)


def test_cubins_example_is_of_every_cuda_major():
    manifest = Manifest.model_validate_json((EXAMPLES / "cubins.json").read_bytes())
    assert [entry.version[0] for entry in manifest.cubins] == list(ARCHITECTURES)
    for entry in manifest.cubins:
        assert entry.file == f"cu{entry.version[0]}/{entry.module}-{entry.architecture}.cubin"


def test_plan_example_has_the_name_and_the_fields_that_are_documented():
    plan = load_sidecar(EXAMPLES / "plan.json")
    assert plan.sidecar.file == plan_file(plan.sidecar.stage, plan.key)
    text = plan.sidecar.model_dump_json(indent=2) + "\n"
    assert text == (EXAMPLES / "plan.json").read_text()
    section = (
        (DOCS / "formats.md").read_text().split("## Plan and its sidecar")[1].split("\n## ")[0]
    )
    for schema in (Sidecar, PlanKey, Machine, Profile, Flags):
        for name in schema.model_fields:
            assert f"`{name}`" in section, name


def test_results_example_has_the_fields_of_an_answer_and_of_an_error():
    answer, error = map(json.loads, (EXAMPLES / "results.jsonl").read_text().splitlines())
    assert list(answer) == ["source", "index", "label", "name", "confidence", "stage"]
    assert list(error) == ["source", "index", "error"]


@pytest.mark.parametrize("name", ["bench.json", "bench-emulated.json"])
def test_bench_example_can_be_shown_and_has_the_documented_keys(name):
    report = json.loads((EXAMPLES / name).read_text())
    bench_tables.tables(report)
    section = (DOCS / "formats.md").read_text().split("## Bench report")[1].split("\n## ")[0]
    documented = {
        key
        for line in section.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`([a-z_]+)`", line.split("|")[1])
    }
    assert documented == set(report)
    for key in (*report["device"], *report["stage_split"][0], *(report["per_batch"] or ())):
        assert f"`{key}`" in section, key


def test_the_emulated_bench_example_has_no_times():
    report = json.loads((EXAMPLES / "bench-emulated.json").read_text())
    assert report["device"]["emulated"]
    assert report["speedup"] is report["overhead_ratio"] is report["cascade"]["throughput"] is None
    assert report["cascade"]["latency_ms"] == {"samples": 0}


def documented_keys(section):
    text = (DOCS / "formats.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`([a-z_]+)`", text))


def test_verify_example_has_the_documented_keys():
    report = json.loads((EXAMPLES / "verify.json").read_text())
    assert set(report) | set(report["checks"][0]) <= documented_keys("Self-check report")
    assert report["passed"] == len(report["checks"])


def test_verdict_example_loads_and_has_the_documented_keys():
    text = (EXAMPLES / "verified.json").read_text()
    assert Verdict.model_validate_json(text).model_dump_json(indent=2) + "\n" == text
    assert set(Verdict.model_fields) <= documented_keys("Self-check verdict")


def test_every_example_is_named_in_the_document():
    text = (DOCS / "formats.md").read_text()
    for path in EXAMPLES.iterdir():
        assert f"formats/{path.name})" in text, path.name
