"""``python -m calibration.int8``: the forms it makes, what it says of them, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import calibration.forms
from calibration.npz import read_npz
from calibration.provenance import load_provenance, sample_digests
from calibration.record import main as record
from calibration.records import load_data
from calibration.threshold import main as threshold
from engines.half import emulated
from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from tests.calibration.int8_world import (
    FORMS,
    Command,
    Invoke,
    content,
    inputs,
    network,
    noisy,
    save_split,
)
from tests.engines.form_graphs import named, run


def scaled(made: onnx.ModelProto, weight: str, factor: float) -> onnx.ModelProto:
    for tensor in made.graph.initializer:
        if tensor.name == weight:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, weight))
    return made


def selection(int8: Command) -> tuple[np.ndarray, np.ndarray]:
    data = load_data(int8.bundle / "data" / "selection.npz")
    assert data.labels is not None
    return data.images, data.labels


def test_forms_that_pay_are_written_with_all_that_belongs_to_them(int8: Command) -> None:
    int8()
    bundle = int8.load()
    tiny, large = bundle.spec.stages
    assert set(tiny.forms) == {"fp32", "fp16", "int8_trt"}
    assert set(large.forms) == {"fp32", *FORMS}
    assert large.forms["int8_host"].file == "models/large.int8_host.onnx"
    for index, stage in enumerate(bundle.spec.stages):
        for form in stage.forms:
            onnx.checker.check_model(onnx.load(bundle.model(index, form)), full_check=True)
    assert set(bundle.spec.settings) == {
        "fp32/fp32", "fp32/int8_host", "int8_trt/int8_trt", "fp16/fp16",
    }  # fmt: skip
    assert all(setting.certificate is None for setting in bundle.spec.settings.values())
    assert bundle.spec.golden is not None
    path = bundle.verified(bundle.spec.golden.file, bundle.spec.golden.sha256)
    names = {f"logits/{s.name}/{form}" for s in bundle.spec.stages for form in s.forms}
    assert set(read_npz(path, ())) == {"frames", *names}


def test_a_combination_of_forms_loads_and_runs(int8: Command) -> None:
    int8()
    images, labels = selection(int8)
    with Cascade.load(int8.bundle, forms=("fp32", "int8_host"), threads=1) as cascade:
        results = cascade.run(images)
    assert 0.85 < (results.label == labels).mean() < 1
    assert 0 < (results.stage == 1).mean() < 1
    assert str(results.certification) == "not certified"


def test_a_form_that_is_slower_than_fp32_is_no_success(int8: Command) -> None:
    tiny, large = int8.report()["stages"]
    assert tiny["forms"]["int8_host"]["success"] is False
    assert tiny["forms"]["int8_host"]["verdict"] == "slower than FP32 (0.50x): FP32 is kept"
    assert large["forms"]["int8_host"]["verdict"] == "2.00x as fast as FP32"
    assert not (int8.bundle / "models" / "tiny.int8_host.onnx").exists()


def test_where_no_integer_form_pays_the_host_keeps_fp32(int8: Command) -> None:
    int8.speedups["large"] = 1.02
    report = int8.report()
    verdict = report["stages"][1]["forms"]["int8_host"]["verdict"]
    assert verdict == "hardly faster than FP32 (1.02x): FP32 is kept"
    assert [item["forms"] for item in report["combinations"]] == [
        "int8_trt/int8_trt", "fp16/fp16",
    ]  # fmt: skip
    assert "int8_host" not in int8.load().spec.stages[1].forms


def test_what_is_reported_is_what_the_written_forms_give(int8: Command) -> None:
    report = int8.report()
    images, labels = selection(int8)
    fp32 = run(network(), inputs(images))
    path = int8.bundle / "models" / "large.int8_host.onnx"
    found = run(onnx.load(path), inputs(images))
    form = report["stages"][1]["forms"]["int8_host"]
    assert form["accuracy"] == (found.argmax(1) == labels).mean()
    assert form["agreement"] == (found.argmax(1) == fp32.argmax(1)).mean()
    lost = (fp32.argmax(1) == labels).mean() - form["accuracy"]
    assert form["drop"] == pytest.approx(lost, abs=1e-12)
    assert form["changed"] is None
    assert form["bytes"] == path.stat().st_size
    assert report["stages"][1]["fp32"]["accuracy"] == (fp32.argmax(1) == labels).mean()


def test_changed_decisions_are_those_of_the_fp32_threshold(int8: Command) -> None:
    changed = int8.report()["stages"][0]["forms"]["int8_trt"]["changed"]
    images = inputs(selection(int8)[0])
    kept = []
    made = onnx.load(int8.bundle / "models" / "tiny.int8_trt.onnx")
    for tiny in (noisy(network(), 0.2), emulated(made)):
        logits = run(tiny, images)
        confidence = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
        kept.append(confidence > 0.8)
    assert changed == (kept[0] != kept[1]).mean() > 0


def test_the_input_is_never_clipped(int8: Command) -> None:
    int8("--method", "percentile", "--percentile", 60, "--max-drop", 100, "--images", 400)
    made = onnx.load(int8.bundle / "models" / "large.int8_trt.onnx")
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in made.graph.initializer}
    (pair,) = [item for item in made.graph.node if item.input[0] == "x"]
    largest = np.abs(inputs(selection(int8)[0])).max()
    assert weights[pair.input[1]] == pytest.approx(largest / 127)


def test_golden_logits_of_forms_for_a_gpu_are_rounded_as_half(int8: Command) -> None:
    int8()
    golden = read_npz(int8.bundle / "golden.npz", ())
    made = onnx.load(int8.bundle / "models" / "large.fp16.onnx")
    x = inputs(golden["frames"])
    np.testing.assert_array_equal(golden["logits/large/fp16"], run(emulated(made), x))
    assert (run(made, x) != golden["logits/large/fp16"]).any()


def test_the_report_for_people_says_everything(int8: Command) -> None:
    shown = int8().stdout
    assert re.search(r"8-bit dot products: \w+", shown)
    assert "mse ranges from 100 images of selection" in shown
    assert "accuracy, at most 3 points lost" in shown
    assert "tiny int8_host: slower than FP32 (0.50x): FP32 is kept" in shown
    assert "large int8_trt: for TensorRT: not timed here" in shown
    assert "No combination of forms is certified yet" in shown
    assert f"--bundle {int8.bundle} --forms fp32/int8_host" in shown


def test_a_busy_machine_is_told(int8: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for load, told in ((1e4, True), (0.5, False)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0, 0))
        assert ("times are rough" in int8("--dry-run").stdout) is told


def test_thresholds_are_those_that_threshold_would_forecast(
    int8: Command, invoke: Invoke, tmp_path: Path
) -> None:
    int8()
    data = int8.bundle / "data" / "selection.npz"
    invoke(record, "--bundle", int8.bundle, "--data", data, "--forms", "fp32/int8_host",
           "--out", tmp_path / "records", "--threads", 1)  # fmt: skip
    result = invoke(
        threshold, int8.bundle, "--records", tmp_path / "records" / "selection", "--forecast",
        "--epsilon", 0.05, "--size", 400, "--draws", 20, "--json",
    )  # fmt: skip
    forecast = json.loads(result.stdout)
    setting = int8.load().spec.settings["fp32/int8_host"]
    assert list(setting.thresholds) == forecast["thresholds"][forecast["levels"].index(0.5)]
    assert setting.path == int8.load().spec.settings["fp32/fp32"].path


def test_a_combination_is_certified_by_the_usual_commands(
    int8: Command, invoke: Invoke, tmp_path: Path
) -> None:
    int8()
    data = tmp_path / "certificate.npz"
    save_split(data, 1500, seed=77)
    invoke(record, "--bundle", int8.bundle, "--data", data, "--forms", "fp32/int8_host",
           "--out", tmp_path / "records", "--threads", 1)  # fmt: skip
    invoke(threshold, int8.bundle, "--records", tmp_path / "records" / "certificate",
           "--data", data, "--epsilon", 0.05)  # fmt: skip
    with Cascade.load(int8.bundle, forms=("fp32", "int8_host"), threads=1) as cascade:
        assert cascade.certification.state == "certified"
    # The same forms again, even with another cache, leave the certificate and every byte alone.
    before = content(int8.bundle)
    int8("--cache", tmp_path / "elsewhere")
    assert content(int8.bundle) == before
    int8("--method", "min_max")
    setting = int8.load().spec.settings["fp32/int8_host"]
    assert setting.certificate is None


def test_images_that_gave_ranges_cannot_certify(
    int8: Command, invoke: Invoke, tmp_path: Path
) -> None:
    ranges = tmp_path / "ranges.npz"
    save_split(ranges, 100, seed=88)
    int8("--data", ranges, "--selection", int8.bundle / "data" / "selection.npz")
    (entry,) = [e for e in int8.load().spec.provenance if e.purpose == "ranges"]
    stored = load_provenance(int8.bundle / entry.file)
    images = load_data(ranges).images
    np.testing.assert_array_equal(stored.digests, np.unique(sample_digests(images)))
    invoke(record, "--bundle", int8.bundle, "--data", ranges, "--forms", "fp32/int8_host",
           "--out", tmp_path / "records", "--threads", 1)  # fmt: skip
    result = invoke(threshold, int8.bundle, "--records", tmp_path / "records" / "ranges",
                    "--data", ranges, "--epsilon", 0.05, code=1)  # fmt: skip
    assert "100 of 100 for ranges" in result.stderr


def test_images_that_only_measured_are_provenance_too(int8: Command, tmp_path: Path) -> None:
    measuring = tmp_path / "more.npz"
    save_split(measuring, 60, seed=89)
    int8("--selection", measuring)
    (entry,) = [e for e in int8.load().spec.provenance if e.purpose == "ranges"]
    digests = sample_digests(load_data(measuring).images)
    assert np.isin(digests, load_provenance(int8.bundle / entry.file).digests).all()


def test_another_method_needs_no_second_pass(
    int8: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = int8.report("--method", "mse")
    assert [stage["histograms"]["cached"] for stage in first["stages"]] == [False, False]
    monkeypatch.setattr(calibration.forms, "observe", None)
    for method in ("min_max", "entropy", "percentile"):
        again = int8.report("--method", method)
        assert [stage["histograms"]["cached"] for stage in again["stages"]] == [True, True]
    with pytest.raises(TypeError):
        int8("--seed", 1)  # other images


def test_a_dry_run_and_another_folder_leave_the_bundle_alone(int8: Command, tmp_path: Path) -> None:
    before = content(int8.bundle)
    assert int8.report("--dry-run")["written"] is None
    assert content(int8.bundle) == before
    int8("--out", tmp_path / "new")
    assert content(int8.bundle) == before
    with Cascade.load(tmp_path / "new", forms=("fp32", "int8_host"), threads=1) as cascade:
        assert cascade.forms == ("fp32", "int8_host")
    int8("--out", tmp_path / "new", code=2)


def test_only_the_form_that_is_asked_for_is_made(int8: Command) -> None:
    int8("--form", "fp16")
    assert [set(stage.forms) for stage in int8.load().spec.stages] == [{"fp32", "fp16"}] * 2
    int8("--form", "int8_trt", "--form", "int8_host")
    assert set(int8.load().spec.stages[1].forms) == {"fp32", *FORMS}


def test_seven_bit_weights_are_asked_for_or_chosen_without_vnni(
    int8: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert int8.report("--weight-bits", 7, "--dry-run")["weight_bits"] == 7
    for flag, bits in ((None, 7), ("avx_vnni", 8)):
        monkeypatch.setattr("calibration.int8.dot_product_instructions", lambda flag=flag: flag)
        assert int8.report("--dry-run")["weight_bits"] == bits


def test_sensitive_nodes_are_kept_until_the_budget_holds(
    of_large: Callable[..., Command],
) -> None:
    # One channel is so large that the others share two or three integers with it.
    large = network()
    for name in ("w2", "b2"):
        (tensor,) = [t for t in large.graph.initializer if t.name == name]
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0] *= 300
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    (w3,) = [t for t in large.graph.initializer if t.name == "w3"]
    values = onnx.numpy_helper.to_array(w3).copy()
    values[0] /= 300
    w3.CopyFrom(onnx.numpy_helper.from_array(values, "w3"))
    int8 = of_large(large)
    report = int8.report("--method", "min_max", "--max-drop", 1)
    form = report["stages"][1]["forms"]["int8_host"]
    assert form["success"] and form["drop"] <= 0.01
    assert form["kept"] and set(form["kept"].values()) == {"sensitive"}
    made = onnx.load(int8.bundle / "models" / "large.int8_host.onnx")
    for kept in form["kept"]:
        assert "DequantizeLinear" not in named(made, kept).input[1]


def test_a_form_that_cannot_hold_the_budget_is_not_made(int8: Command) -> None:
    report = int8.report("--max-drop", 0, "--method", "percentile", "--percentile", 50)
    for stage in report["stages"]:
        form = stage["forms"]["int8_host"]
        if form["drop"] > 0:
            assert form["success"] is False and form["verdict"] == "loses too much: not made"
            assert form["bytes"] is None
            break
    else:
        pytest.fail("every form held a budget of nothing at half of its range")


def test_overflow_in_half_keeps_the_nodes_that_data_show(
    of_large: Callable[..., Command],
) -> None:
    large = scaled(scaled(scaled(network(), "w1", 1e5), "b1", 1e5), "w2", 1e-5)
    # Both branches of the residual are large, and the product at the end small again.
    large = scaled(large, "w3", 1e-5)
    int8 = of_large(large)
    report = int8.report()
    fp16 = report["stages"][1]["forms"]["fp16"]
    assert fp16["success"] and fp16["agreement"] > 0.99
    assert "FP16 ends at 65,504" in fp16["kept"]["node_c1"]
    assert "node_y" not in fp16["kept"] or "m reaches" in fp16["kept"]["node_y"]
    assert "kept node_c1: " in int8("--dry-run").stdout


def test_constant_activations_are_no_problem(of_large: Callable[..., Command]) -> None:
    dead = scaled(scaled(network(), "w2", 0), "b2", 0)
    report = of_large(dead).report()
    assert all(form["success"] for form in report["stages"][1]["forms"].values())


def test_where_nothing_can_be_promised_everything_escalates(int8: Command) -> None:
    report = int8.report("--epsilon", 0.002)
    assert all(item["thresholds"] == [1.0] for item in report["combinations"])
    assert "nothing can be promised" in report["combinations"][0]["note"]
    assert load_bundle(int8.bundle).spec.settings["fp16/fp16"].thresholds == (1.0,)
