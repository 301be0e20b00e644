"""``python -m calibration.record``: logits are those of the model, and are not made twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import Result
from onnx import TensorProto, helper, numpy_helper

from calibration.pool import load_pool, save_card
from calibration.record import main
from calibration.records import load_data, load_record
from runtime.bundle import file_sha256, load_bundle, save_spec
from runtime.schema import Gate, Score

Invoke = Callable[..., Result]
World = Any


def record(invoke: Invoke, world: World, *options: object, split: str = "selection") -> Any:
    result = invoke(
        main, "--pool", world.pool, "--data", world.data(split), "--out", world.records, "--json",
        *options,
    )  # fmt: skip
    return json.loads(result.stdout)


def statuses(summary: Any) -> dict[str, str]:
    return {item["model"]: item["status"] for item in summary["records"]}


def matrix(path: Path) -> np.ndarray:
    return np.asarray(numpy_helper.to_array(onnx.load(path).graph.initializer[0]))


def test_records_hold_the_logits_of_each_model(invoke: Invoke, world: World) -> None:
    summary = record(invoke, world)
    data = load_data(world.data("selection"))
    inputs = (data.images.reshape(len(data.images), -1) / 255 - 0.5) / 0.25
    assert statuses(summary) == dict.fromkeys(["large", "middle", "tiny"], "recorded")
    for name in ("tiny", "large"):
        stored = load_record(world.records / "selection" / f"{name}.npz")
        # Sums of 12 products of magnitude up to 20, in float32.
        expected = inputs @ matrix(world.pool / f"{name}.onnx")
        np.testing.assert_allclose(stored.logits, expected, atol=1e-4)
        np.testing.assert_array_equal(stored.labels, data.labels)
        assert (stored.meta.data, stored.meta.data_sha256) == ("selection", data.sha256)
        assert (stored.meta.form, stored.meta.engine) == ("fp32", "onnxruntime")


def test_accuracy_is_that_of_the_records(invoke: Invoke, world: World) -> None:
    summary = record(invoke, world)
    stored = load_record(world.records / "selection" / "tiny.npz")
    shown = {item["model"]: item["accuracy"] for item in summary["records"]}
    assert shown["tiny"] == (stored.logits.argmax(1) == stored.labels).mean()
    assert shown["tiny"] < shown["middle"] < shown["large"]


def test_the_certificate_split_is_recorded_without_a_look(invoke: Invoke, world: World) -> None:
    summary = record(invoke, world, split="certificate")
    assert [item["accuracy"] for item in summary["records"]] == [None] * 3
    result = invoke(
        main, "--pool", world.pool, "--data", world.data("certificate"), "--out", world.records
    )
    assert "decides nothing but the certificate" in result.stderr
    assert "%" not in result.stdout


def test_what_is_up_to_date_is_not_run_again(invoke: Invoke, world: World) -> None:
    record(invoke, world, "--model", "tiny")
    path = world.records / "selection" / "tiny.npz"
    before = path.stat().st_mtime_ns
    assert statuses(record(invoke, world)) == {
        "tiny": "up to date", "middle": "recorded", "large": "recorded"
    }  # fmt: skip
    assert path.stat().st_mtime_ns == before
    assert statuses(record(invoke, world, "--force")) == dict.fromkeys(
        ["tiny", "middle", "large"], "recorded"
    )


def test_a_damaged_record_and_one_of_other_data_are_made_again(
    invoke: Invoke, world: World
) -> None:
    record(invoke, world)
    folder = world.records / "selection"
    whole = (folder / "tiny.npz").read_bytes()
    (folder / "tiny.npz").write_bytes(whole[:100])
    assert statuses(record(invoke, world))["tiny"] == "recorded"
    assert (folder / "tiny.npz").read_bytes() == whole
    np.savez(world.data("selection"), images=world.images("selection")[:40])
    assert set(statuses(record(invoke, world)).values()) == {"recorded"}
    assert load_record(folder / "tiny.npz").labels is None


def test_a_bundle_records_the_same_logits_as_its_pool(invoke: Invoke, world: World) -> None:
    record(invoke, world)
    bundle = world.make_bundle("tiny", "large")
    out = world.root / "other"
    options = ("--bundle", bundle, "--data", world.data("selection"), "--out", out, "--json")
    summary = json.loads(invoke(main, *options).stdout)
    assert statuses(summary) == {"tiny": "recorded", "large": "recorded"}
    for name in ("tiny", "large"):
        first = load_record(world.records / "selection" / f"{name}.npz")
        second = load_record(out / "selection" / f"{name}.npz")
        np.testing.assert_array_equal(first.logits, second.logits)
        assert first.meta == second.meta
    assert set(statuses(json.loads(invoke(main, *options).stdout)).values()) == {"up to date"}


def test_a_form_the_stage_lacks_is_an_error(invoke: Invoke, world: World) -> None:
    options = (
        "--bundle",
        world.make_bundle("tiny", "large"),
        "--data",
        world.data("selection"),
        "--out",
        "x",
    )
    result = invoke(main, *options, "--forms", "fp32/int8_host", code=1)
    assert "stage large has no form int8_host" in result.stderr
    result = invoke(main, *options, "--forms", "fp32", code=1)
    assert "expected 2 of fp32" in result.stderr


def test_a_record_of_another_form_is_not_overwritten(invoke: Invoke, world: World) -> None:
    record(invoke, world)
    path = world.records / "selection" / "tiny.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["meta"] = np.array(str(arrays["meta"]).replace('"fp32"', '"int8_host"'))
    np.savez(path, **arrays)
    before = path.read_bytes()
    options = ("--pool", world.pool, "--data", world.data("selection"), "--out", world.records)
    assert "holds a record of form int8_host" in invoke(main, *options, code=1).stderr
    assert path.read_bytes() == before
    invoke(main, *options, "--force")
    assert load_record(path).meta.form == "fp32"


def test_an_unknown_model_is_named(invoke: Invoke, world: World) -> None:
    result = invoke(
        main, "--pool", world.pool, "--data", world.data("selection"), "--model", "huge", code=1
    )
    assert "no model huge; it has large, middle, tiny" in result.stderr


def test_a_model_with_another_hash_is_refused(invoke: Invoke, world: World) -> None:
    (world.pool / "tiny.onnx").write_bytes(b"garbage")
    result = invoke(main, "--pool", world.pool, "--data", world.data("selection"), code=1)
    assert "tiny.onnx: content differs from its card" in result.stderr


def test_images_of_another_size_are_refused(invoke: Invoke, world: World) -> None:
    bundle = world.make_bundle("tiny", "large")
    np.savez(world.root / "wide.npz", images=np.zeros((2, 4, 5, 1), np.uint8))
    result = invoke(main, "--bundle", bundle, "--data", world.root / "wide.npz", code=1)
    assert "images: expected [4, 3, 1] as the bundle says, got [4, 5, 1]" in result.stderr


def test_truncated_data_and_an_unwritable_output_are_errors(invoke: Invoke, world: World) -> None:
    options = ("--pool", world.pool, "--data", world.data("selection"), "--out")
    (world.root / "file").write_text("in the way")
    assert "cannot be written" in invoke(main, *options, world.root / "file", code=1).stderr
    world.data("selection").write_bytes(world.data("selection").read_bytes()[:500])
    assert "not an npz file" in invoke(main, *options, world.records, code=1).stderr


def test_pool_and_bundle_exclude_each_other(invoke: Invoke, world: World) -> None:
    result = invoke(main, "--data", world.data("selection"), code=2)
    assert "either --pool or --bundle" in result.stderr


def add_score(world: World, name: str) -> None:
    """Give a model of the pool a learned gate: the sigmoid of its first logit, [n, 1]."""
    path = world.pool / f"{name}.onnx"
    model = onnx.load(path)
    model.graph.node.extend(
        [
            helper.make_node("Gather", ["logits", "first"], ["logit"], axis=1),
            helper.make_node("Sigmoid", ["logit"], ["score"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    model.graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1]))
    card = load_pool(world.pool)[name]
    onnx.save(model, path)
    save_card(world.pool, card.model_copy(update={"sha256": file_sha256(path)}))


def test_the_score_of_a_learned_gate_is_recorded(invoke: Invoke, world: World) -> None:
    add_score(world, "tiny")
    record(invoke, world)
    folder = world.records / "selection"
    stored = load_record(folder / "tiny.npz")
    assert stored.score is not None and stored.score.shape == (1500,)
    np.testing.assert_allclose(stored.score, 1 / (1 + np.exp(-stored.logits[:, 0])), atol=1e-6)
    assert load_record(folder / "large.npz").score is None


def test_a_bundle_records_the_score_that_its_gate_reads(invoke: Invoke, world: World) -> None:
    add_score(world, "tiny")
    record(invoke, world)
    bundle = world.make_bundle("tiny", "large")
    out = world.root / "again"
    options = ("--bundle", bundle, "--data", world.data("selection"), "--out", out)
    invoke(main, *options)
    assert load_record(out / "selection" / "tiny.npz").score is None
    gate = Gate(score=Score(name="learned", output="score"))
    save_spec(bundle, load_bundle(bundle).spec.model_copy(update={"gates": (gate,)}))
    invoke(main, *options)
    first = load_record(world.records / "selection" / "tiny.npz").score
    second = load_record(out / "selection" / "tiny.npz").score
    assert first is not None and second is not None
    np.testing.assert_allclose(first, second, atol=1e-6)
