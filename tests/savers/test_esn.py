"""The program that adds exits: what it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import demo_folder, file_sha256
from runtime.images import load_arrays

pytestmark = pytest.mark.slow

POOL = demo_folder() / "models"


@pytest.fixture
def folder(tmp_path):
    """A folder with a pool of three models, 300 images that train and 300 that choose."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "provenance").mkdir()
    for name in ("tiny", "middle", "strided-8"):
        for file in (f"{name}.json", f"{name}.onnx"):
            shutil.copy(POOL / file, tmp_path / "pool")
    shutil.copy(demo_folder() / "provenance" / "training.npz", tmp_path / "provenance")
    images, labels = load_arrays(demo_folder() / "data" / "selection.npz")
    save(tmp_path / "training.npz", images[:300], labels[:300])
    save(tmp_path / "chosen.npz", images[300:600], labels[300:600])
    return tmp_path


@pytest.fixture
def esn(folder):
    """Run the program with the folder's models and images."""

    def run(*options, selection="chosen.npz", training="training.npz", large="middle"):
        from savers.esn import main

        arguments = ["--pool", folder / "pool", "--large", large, "--quick"]
        arguments += ["--training", folder / training, "--selection", folder / selection]
        arguments += ["--work", folder / "work", "--epsilon", "0.05", *options]
        return CliRunner().invoke(main, [str(item) for item in arguments])

    return run


def save(path, images, labels=None):
    arrays = {"images": images} if labels is None else {"images": images, "labels": labels}
    np.savez(path, **arrays)


def change(folder, name, alter):
    """Alter the ONNX file of a model of the pool, and its card with it."""
    path = folder / "pool" / f"{name}.onnx"
    model = onnx.load(path)
    alter(model.graph)
    onnx.save(model, path)
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, "sha256": file_sha256(path)}))


def nine_classes(graph):
    """Leave the last class out."""
    for item in graph.initializer:
        if item.name in ("4.weight", "4.bias"):
            kept = numpy_helper.to_array(item)[:9].copy()
            item.CopyFrom(numpy_helper.from_array(kept, item.name))
    del graph.output[0].type.tensor_type.shape.dim[1:]
    graph.output[0].type.tensor_type.shape.dim.add().dim_value = 9


def a_way_around(graph):
    """Add the mean of the image to the logits, so that nothing lies between all of both."""
    graph.node[-1].output[0] = "before"
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
            helper.make_node("Add", ["before", "column"], ["logits"]),
        ]
    )
    graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, (1,), [1]))


def test_exits_are_trained_chosen_compared_and_written(esn, folder):
    from runtime.cascade import Cascade

    out = folder / "bundle"
    options = ("--compare", "--middle", "strided-8", "--test", folder / "chosen.npz", "--json")
    result = esn(*options, "--exits", "1", "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["label"] == "selection estimate, not certified"
    assert found["large_macs"] == json.loads((POOL / "middle.json").read_text())["macs"]
    (chosen,) = found["chosen"]
    assert [row["stages"] for row in found["table"]] == [
        ["tiny", "rest"],
        ["tiny", "strided-8", "rest"],
        chosen["stages"],
    ]
    for row in found["table"]:
        assert sum(row["accept_rates"]) == pytest.approx(1)
        assert row["milliseconds"] > 0
        assert abs(row["test"]["drop"]) < 0.1
        reached = np.cumsum([0, *row["accept_rates"]])[:-1]
        assert row["macs"] == pytest.approx(np.dot(1 - reached, row["stage_macs"]))
    images, labels = load_arrays(folder / "chosen.npz")
    with Cascade.load(out, "cpu", threads=1) as cascade:
        assert list(cascade.stage_names) == chosen["stages"]
        right = cascade.run(images).label == labels
    assert right.mean() == pytest.approx(found["table"][-1]["test"]["accuracy"])
    # Everything was kept, so the same is found again, from the exits on disk.
    (weights,) = (folder / "work").glob("*/*.pt")
    before = weights.read_bytes()
    again = esn("--exits", "1")
    assert again.exit_code == 0, again.output
    assert "not certified" in again.output.lower()
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--saver", "none"), r"no model 'none'; it has middle, strided-8, tiny"),
        (("--saver", "middle"), r"expected each model once, got middle, middle"),
        (("--saver", "tiny", "--middle", "tiny"), r"expected each model once"),
        (("--width", "0"), r"0 is not in the range"),
    ],
)
def test_models_that_cannot_take_part_are_named(esn, options, message):
    result = esn(*options)
    assert result.exit_code != 0
    assert message in result.output


def test_a_saver_must_cost_less_than_the_large_model(esn):
    result = esn("--saver", "middle", large="tiny")
    assert result.exit_code == 1
    assert "a saver must cost less" in result.output


def test_a_saver_of_other_classes_is_refused(esn, folder):
    change(folder, "tiny", nine_classes)
    result = esn()
    assert result.exit_code == 1
    assert "tiny knows 9 classes, middle 10" in result.output


def test_a_large_model_that_cannot_be_cut_is_refused(esn, folder):
    change(folder, "middle", a_way_around)
    result = esn()
    assert result.exit_code == 1
    assert "middle.onnx: no place to cut it" in result.output
    assert "convolutional or residual" in result.output


def test_missing_selection_data_are_asked_for(esn):
    result = esn(selection="absent.npz")
    assert result.exit_code == 1
    assert "python -m savers.train zoo" in result.output


@pytest.mark.parametrize("name", ["test", "certificate"])
@pytest.mark.parametrize("option", ["selection", "training"])
def test_data_that_must_not_decide_are_refused(esn, folder, name, option):
    shutil.copy(folder / "chosen.npz", folder / f"{name}.npz")
    result = esn(**{option: f"{name}.npz"})
    assert result.exit_code == 1
    assert f"{name}.npz: expected a split that" in result.output


def test_images_that_were_trained_on_cannot_choose(esn):
    result = esn(selection="training.npz")
    assert result.exit_code == 1
    assert "300 of its images were trained on" in result.output


def test_images_without_labels_are_refused(esn, folder):
    images, _ = load_arrays(folder / "chosen.npz")
    save(folder / "chosen.npz", images)
    result = esn()
    assert result.exit_code == 1
    assert "chosen: no labels" in result.output


@pytest.mark.parametrize("name", ["training", "chosen"])
def test_labels_outside_the_classes_are_refused(esn, folder, name):
    images, labels = load_arrays(folder / f"{name}.npz")
    save(folder / f"{name}.npz", images, np.where(np.arange(len(labels)) == 3, 17, labels))
    result = esn()
    assert result.exit_code == 1
    assert f"{name}: expected labels from 0 to 9, one per logit of middle, got 17" in result.output


def test_kept_features_of_another_length_are_refused(esn, folder):
    assert esn("--exits", "1").exit_code == 0
    for path in (folder / "work").glob("features-*.npy"):
        np.save(path, np.load(path)[1:])
    result = esn("--exits", "1")
    assert result.exit_code == 1
    assert "Delete the file" in result.output
