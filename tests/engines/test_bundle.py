"""Bundles of one's own ONNX files: what is kept, changed and packed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import packing
from runtime.bundle import file_sha256, load_bundle
from runtime.cascade import Cascade
from tests.engines.bundle_files import (
    COLOUR,
    GREY,
    IMAGE,
    answers,
    classifier,
    frames,
    network_input,
    save,
)

MODELS = Path(__file__).parent.parent / "models"
FASHION = Path(__file__).parent.parent.parent / "zoo" / "fashion"


def test_every_image_goes_to_the_large_model_until_there_is_a_certificate(pair, made):
    with Cascade.load(made(*pair)) as cascade:
        results = cascade.run(frames())
    assert (results.stage == 1).all()
    assert (results.label == answers(pair[1], network_input(frames()))).all()
    assert results.certification.state == "not certified"


def test_lower_thresholds_let_the_saver_answer(pair, made):
    with Cascade.load(made(*pair)) as cascade:
        cascade.thresholds = [0.0]
        assert (cascade.run(frames()).label == answers(pair[0], network_input(frames()))).all()


def test_a_good_file_is_copied_as_it_is(pair, made):
    spec = load_bundle(made(*pair)).spec
    assert [stage.forms["fp32"].sha256 for stage in spec.stages] == [file_sha256(p) for p in pair]
    assert [stage.name for stage in spec.stages] == ["saver", "large"]
    assert [stage.macs for stage in spec.stages] == [360, 360]
    assert spec.labels == ("0", "1", "2", "3")
    assert spec.input.shape == (0, 0, 3)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("target", [None, "fixed"])
def test_a_fixed_batch_is_made_dynamic_and_answers_the_same(tmp_path, pair, made, batch, target):
    large = classifier(tmp_path / "fixed.onnx", batch=batch, target=target and [batch, -1], seed=2)
    with Cascade.load(made(pair[0], large)) as cascade:
        assert (cascade.run(frames()).label == answers(large, network_input(frames()))).all()


def test_each_packed_model_is_run_alone_and_in_a_batch(pair, made, monkeypatch):
    ran = []

    class Spy(packing.StageRunner):
        def run(self, images):
            ran.append(len(images))
            return super().run(images)

    monkeypatch.setattr(packing, "StageRunner", Spy)
    made(*pair)
    reference, alone, together = [1] * 3, [1] * 3, [3]
    assert ran == (reference + alone + together) * 2


def test_a_batch_that_only_seems_dynamic_is_made_so(tmp_path, pair, made):
    large = classifier(tmp_path / "traced.onnx", target=[1, -1], seed=2)
    with Cascade.load(made(pair[0], large)) as cascade:
        assert (cascade.run(frames()).label == answers(large, network_input(frames()))).all()


def test_the_node_that_fixes_the_batch_is_named(tmp_path, pair, refused):
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["z"]),
        helper.make_node("Concat", ["z", "row"], ["two"], name="neck/cat", axis=0),
        helper.make_node("ReduceMean", ["two"], ["y"], axes=[0]),
    ]
    arrays = {"w": np.ones((90, 4), np.float32), "row": np.ones((1, 4), np.float32)}
    save(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, *IMAGE))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))],
            [numpy_helper.from_array(v, k) for k, v in arrays.items()],
        ),
        tmp_path / "mixed.onnx",
    )
    text = refused(pair[0], tmp_path / "mixed.onnx")
    assert "mixed.onnx: node neck/cat (Concat) gives the batch a fixed size" in text


def test_a_model_that_mixes_the_images_of_a_batch_is_refused(refused):
    echo, rows = MODELS / "echo.onnx", MODELS / "rows.onnx"
    text = refused(echo, rows, *GREY, "--macs", 16)
    assert "rows.onnx" in text and "mixes the images of a batch" in text


def test_probabilities_are_refused_and_the_advice_helps(tmp_path, pair, refused, made):
    large = classifier(tmp_path / "soft.onnx", softmax=True, seed=2)
    text = refused(pair[0], large)
    assert "holds probabilities" in text
    assert "node last (Softmax): --logits scores" in text
    options = [*COLOUR, "--logits", "y", "--logits", "scores"]
    folder = made(pair[0], large, *options)
    with Cascade.load(folder) as cascade:
        assert (cascade.run(frames()).label == answers(large, network_input(frames()))).all()
    packed = onnx.load(folder / "models" / "large.onnx")
    assert "Softmax" not in [node.op_type for node in packed.graph.node]


def test_a_branch_keeps_what_it_reads_when_the_output_changes(tmp_path, pair, made):
    """Its tensors of the outer graph are not among the inputs of its node."""
    scores = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    product = helper.make_node("Gemm", ["flat", "w"], ["z"])
    branch = helper.make_graph([product], "branch", [], [scores])
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch),
        helper.make_node("Softmax", ["scores"], ["y"]),
    ]
    weights = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    constants = [numpy_helper.from_array(weights, "w")]
    constants.append(numpy_helper.from_array(np.array(True), "yes"))
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", *IMAGE))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 4))
    save(helper.make_graph(nodes, "g", [images], [output], constants), tmp_path / "if.onnx")
    options = [*COLOUR, "--logits", "y", "--logits", "scores", "--macs", 360]
    with Cascade.load(made(pair[0], tmp_path / "if.onnx", *options)) as cascade:
        images = network_input(frames())
        assert (cascade.run(frames()).label == answers(tmp_path / "if.onnx", images)).all()


def test_a_fixed_batch_and_a_tensor_inside_go_together(tmp_path, pair, made):
    large = classifier(tmp_path / "soft.onnx", batch=4, target=[4, -1], softmax=True, seed=2)
    options = [*COLOUR, "--logits", "y", "--logits", "scores"]
    with Cascade.load(made(pair[0], large, *options)) as cascade:
        assert (cascade.run(frames()).label == answers(large, network_input(frames()))).all()


def test_a_size_that_is_open_is_fixed_where_it_is_given(tmp_path, pair, refused, made):
    large = classifier(tmp_path / "open.onnx", image=(3, "h", "w"), seed=2)
    assert "the height is open. Pass --size HxW" in refused(pair[0], large)
    folder = made(pair[0], large, *COLOUR, "--size", "6x5")
    with Cascade.load(folder) as cascade:
        assert (cascade.run(frames()).label == answers(large, network_input(frames()))).all()


def test_a_size_that_contradicts_the_model_is_refused(pair, refused):
    assert "height 6, but --size says 7" in refused(*pair, *COLOUR, "--size", "7x5")


def test_logits_whose_number_is_not_declared_are_declared(tmp_path, pair, made):
    path = classifier(tmp_path / "open.onnx", seed=2)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"
    del model.graph.value_info[:]
    onnx.save(model, path)
    folder = made(pair[0], path)
    declared = onnx.load(folder / "models" / "large.onnx").graph.output[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in declared.dim] == ["n", 4]
    assert len(Cascade.load(folder).run(frames())) == 9


def test_weights_in_other_files_are_copied_inside(tmp_path, made):
    """Both models call them the same."""
    paths = []
    for seed, name in enumerate(("small", "big")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "model.onnx"
        paths.append(classifier(path, seed=seed, weights="model.onnx.data"))
    folder = made(*paths)
    spec = load_bundle(folder).spec
    assert spec.stages[1].forms["fp32"].external_data == ("models/large/model.onnx.data",)
    with Cascade.load(folder) as cascade:
        assert (cascade.run(frames()).label == answers(paths[1], network_input(frames()))).all()


def test_a_changed_model_keeps_its_weights_in_other_files(tmp_path, pair, made):
    options = {"batch": 1, "target": [1, 90], "seed": 2, "classes": 40}
    large = classifier(tmp_path / "big.onnx", weights="w.bin", **options)
    small = classifier(tmp_path / "wide.onnx", classes=40)
    folder = made(small, large)
    assert (folder / "models" / "large" / "w.bin").stat().st_size >= 90 * 40 * 4
    assert (folder / "models" / "large" / "large.onnx").stat().st_size < 2000
    with Cascade.load(folder) as cascade:
        assert (cascade.run(frames()).label == answers(large, network_input(frames()))).all()


def test_models_that_share_their_weights_share_them_in_the_bundle(tmp_path, made):
    paths = [classifier(tmp_path / f"{name}.onnx", seed=1, weights="w.bin") for name in "ab"]
    folder = made(*paths)
    small, large = (stage.forms["fp32"] for stage in load_bundle(folder).spec.stages)
    assert (
        small.external == large.external == {"models/saver/w.bin": file_sha256(tmp_path / "w.bin")}
    )
    assert (small.file, large.file) == ("models/saver/saver.onnx", "models/saver/large.onnx")
    with Cascade.load(folder) as cascade:
        assert (cascade.run(frames()).label == answers(paths[1], network_input(frames()))).all()


def test_weights_of_one_name_in_two_folders_stay_apart(tmp_path, made):
    paths = []
    for seed, name in ((1, "a"), (2, "b")):
        (tmp_path / name).mkdir()
        paths.append(classifier(tmp_path / name / "m.onnx", seed=seed, weights="w.bin"))
    small, large = (stage.forms["fp32"] for stage in load_bundle(made(*paths)).spec.stages)
    assert list(small.external) == ["models/saver/w.bin"]
    assert list(large.external) == ["models/large/w.bin"]


def test_a_file_of_small_weights_that_were_taken_in_is_not_left_behind(tmp_path, pair, made):
    large = classifier(tmp_path / "big.onnx", batch=1, target=[1, 90], seed=2, weights="w.bin")
    folder = made(pair[0], large)
    assert load_bundle(folder).spec.stages[1].forms["fp32"].external_data == ()
    assert [path.name for path in (folder / "models" / "large").iterdir()] == ["large.onnx"]
    with Cascade.load(folder) as cascade:
        assert (cascade.run(frames()).label == answers(large, network_input(frames()))).all()


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_golden_samples_are_stored_and_checked_at_load(tmp_path, pair, made, kind):
    cv2 = pytest.importorskip("cv2")
    data = tmp_path / "data.npz"
    if kind == "npz":
        np.savez(data, images=frames(11))
    else:
        data = tmp_path / "pictures"
        data.mkdir()
        for number, frame in enumerate(frames(3)):
            cv2.imwrite(str(data / f"{number}.png"), frame)
        (data / "broken.png").write_bytes(b"not a picture")
    folder = made(*pair, *COLOUR, "--data", data)
    with np.load(folder / "golden.npz") as golden:
        assert len(golden["frames"]) == (8 if kind == "npz" else 3)
    Cascade.load(folder).close()
    spec = load_bundle(folder).spec
    assert spec.golden is not None and spec.golden.sha256 == file_sha256(folder / "golden.npz")


def test_golden_samples_have_the_size_of_the_first(tmp_path, pair, made):
    cv2 = pytest.importorskip("cv2")
    for number, frame in enumerate((*frames(3), frames(1)[0, :4])):
        cv2.imwrite(str(tmp_path / f"{number}.png"), frame)
    with np.load(made(*pair, *COLOUR, "--data", tmp_path) / "golden.npz") as golden:
        assert golden["frames"].shape == (3, 6, 5, 3)


def test_golden_samples_that_are_absent_are_said_to_be(pair, bundle):
    result, folder = bundle(*pair)
    assert "golden samples  none: no self-check at load" in result.stdout
    assert load_bundle(folder).spec.golden is None


def test_data_without_a_picture_are_refused(tmp_path, pair, refused):
    empty = tmp_path / "pictures"
    empty.mkdir()
    assert "no picture that can be read" in refused(*pair, *COLOUR, "--data", empty)
    assert "not found" in refused(*pair, *COLOUR, "--data", tmp_path / "absent.npz")


def test_stages_between_are_numbered_and_options_may_be_given_for_each(tmp_path, pair, made):
    middle = classifier(tmp_path / "middle.onnx", seed=5)
    options = ["--middle", middle, "--middle", middle, *COLOUR, "--resize", "centre_crop"]
    for name in ("stretch", "letterbox", "stretch"):
        options += ["--resize", name]
    spec = load_bundle(made(*pair, *options)).spec
    assert [stage.name for stage in spec.stages] == ["saver", "middle1", "middle2", "large"]
    resize = [stage.preprocessing.resize for stage in spec.stages]
    assert resize == ["centre_crop", "stretch", "letterbox", "stretch"]
    assert spec.settings["fp32/fp32/fp32/fp32"].thresholds == (1, 1, 1)
