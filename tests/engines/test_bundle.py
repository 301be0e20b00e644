import errno
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from calibration import record, threshold
from engines import packing
from engines.bundle import main
from runtime.bundle import file_sha256, load_bundle
from runtime.cascade import Cascade

MODELS = Path(__file__).parent.parent / "models"
FASHION = Path(__file__).parent.parent.parent / "zoo" / "fashion"
COLOUR = ["--mean", "0.5,0.4,0.3", "--std", "0.25,0.25,0.5"]
GREY = ["--mean", "0.286", "--std", "0.353"]
IMAGE = (3, 6, 5)


def classifier(
    path, *, batch="n", image=IMAGE, classes=4, target=None, softmax=False, seed=0, weights=None
):
    """Write flatten, product, bias; as exporters write them if ``target`` is a constant shape."""
    pixels = 3 * 6 * 5
    rng = np.random.default_rng(seed)
    flatten = helper.make_node("Flatten", ["x"], ["flat"], name="flatten")
    if target:
        flatten = helper.make_node("Reshape", ["x", "target"], ["flat"], name="flatten")
    nodes = [
        flatten,
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"], name="head"),
        helper.make_node("Softmax" if softmax else "Identity", ["scores"], ["y"], name="last"),
    ]
    constants = [
        numpy_helper.from_array(rng.normal(size=(pixels, classes)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=classes).astype(np.float32), "b"),
        numpy_helper.from_array(np.array(target or [0], np.int64), "target"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, *image))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, classes))],
        constants,
    )
    save(graph, path, weights)
    return path


def save(graph, path, weights=None):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    external = {"save_as_external_data": True, "location": weights, "size_threshold": 100}
    onnx.save(model, path, **(external if weights else {}))


@pytest.fixture
def pair(tmp_path):
    """A saver and a large model that answer otherwise."""
    return (
        classifier(tmp_path / "small.onnx", seed=1),
        classifier(tmp_path / "big.onnx", seed=2),
    )


@pytest.fixture
def bundle(tmp_path):
    """Run the command; return its result, and the folder it was told to make."""

    def run(saver, large, *options, out="out"):
        folder = tmp_path / out
        paths = ["--saver", str(saver), "--large", str(large), "--out", str(folder)]
        return CliRunner().invoke(main, [*paths, *map(str, options or COLOUR)]), folder

    return run


@pytest.fixture
def made(bundle):
    """Return the folder of a bundle that must come into being."""

    def make(*arguments, **fields):
        result, folder = bundle(*arguments, **fields)
        assert result.exit_code == 0, result.output
        return folder

    return make


@pytest.fixture
def refused(bundle):
    """Return the message with which nothing was made."""

    def message(*arguments, **fields):
        result, folder = bundle(*arguments, **fields)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit), "a user's error has no traceback"
        assert not folder.exists()
        assert not list(folder.parent.glob(".out*")), "the unfinished folder is removed"
        return result.output

    return message


def frames(n=9, *, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 5, 3)).astype(np.uint8)


def network_input(images):
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.25, 0.25, 0.5])
    return ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


def answers(path, images):
    """Run a model as it was given, one image at a time."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    count = batch if isinstance(batch, int) else 1
    rows = [session.run(None, {"x": np.repeat(x[None], count, axis=0)})[0][0] for x in images]
    return np.argmax(rows, axis=1)


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


def test_an_option_given_for_some_stages_only_is_a_usage_error(tmp_path, pair, bundle):
    middle = classifier(tmp_path / "middle.onnx")
    result, _ = bundle(*pair, "--middle", middle, *COLOUR, "--size", "6x5", "--size", "6x5")
    assert result.exit_code == 2
    assert "--size: expected it once for all stages, or 3 times" in result.output


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("double", "input input: float64 [n, 1, 2, 2]: expected float32"),
        ("reads_features", "expected one input, the images; it has input, features"),
        ("five", "expected models of the same classes, got saver 4, large 5"),
        ("colour", "3 channel(s)"),
    ],
)
def test_a_model_of_another_interface_is_refused(refused, model, expected):
    options = [*GREY, "--macs", 16, "--colour", "grey"]
    assert expected in refused(MODELS / "echo.onnx", MODELS / f"{model}.onnx", *options)


def test_the_output_is_asked_for_where_there_are_several(refused, made):
    models = [MODELS / "echo.onnx", MODELS / "features.onnx"]
    options = [*GREY, "--macs", 16, "--size", 2, "--frames", 2]
    assert load_bundle(made(*models, *options)).spec.stages[1].logits == "logits"
    text = refused(*models, *options, "--logits", "nonsense", out="out2")
    assert "no output 'nonsense'; it has logits" in text


def test_an_input_of_another_name_is_refused(pair, refused):
    assert "no input 'data'; it has x" in refused(*pair, *COLOUR, "--input", "data")


def test_channels_that_stand_last_are_named(tmp_path, pair, refused):
    large = classifier(tmp_path / "nhwc.onnx", image=(6, 5, 3))
    assert "the channels stand last" in refused(pair[0], large)


def test_logits_of_another_rank_are_refused(tmp_path, pair, refused):
    pool = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    conv = helper.make_node("Conv", ["x", "w"], ["z"])
    pool.input[0] = "z"
    weights = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    save(
        helper.make_graph(
            [conv, pool],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", *IMAGE))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 4, 1, 1))],
            [weights],
        ),
        tmp_path / "pooled.onnx",
    )
    text = refused(pair[0], tmp_path / "pooled.onnx")
    assert "expected float32 [1, classes], got float32 [1, 4, 1, 1]" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--mean", "127,127,127", "--std", "1,1,1"], "looks like one for pixels up to 255"),
        (["--mean", "0.5", "--std", "1"], "mean and std of colour rgb have 3"),
        (["--mean", "0,0,0", "--std", "1,1,0"], "greater than 0"),
        ([*COLOUR, "--labels", "a,b,c"], "expected 4 names, one per class, got 3"),
        ([*COLOUR, "--labels", "a,b,,d"], "name 3 is empty"),
        ([*COLOUR, "--labels", "absent.txt"], "absent.txt: cannot be read"),
        ([*COLOUR, "--frames", "6x5", "--frame-colour", "nv12"], "even"),
    ],
)
def test_options_that_do_not_fit_are_refused(pair, refused, options, expected):
    assert expected in refused(*pair, *options)


def test_labels_come_from_a_file_or_the_command_line(tmp_path, pair, made):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog, hot\nhorse\nübergrößer Bär\n\n", encoding="utf-8")
    spec = load_bundle(made(*pair, *COLOUR, "--labels", names)).spec
    assert spec.labels == ("cat", "dog, hot", "horse", "übergrößer Bär")
    spec = load_bundle(made(*pair, *COLOUR, "--labels", "a, b,c,d", out="out2")).spec
    assert spec.labels == ("a", "b", "c", "d")


def test_frames_of_a_camera_may_be_nv12(pair, made):
    folder = made(*pair, *COLOUR, "--frames", "8x6", "--frame-colour", "nv12")
    spec = load_bundle(folder).spec
    assert (spec.input.shape, spec.input.matrix, spec.input.range) == (
        (12, 6, 1),
        "bt709",
        "limited",
    )
    nv12 = np.random.default_rng(0).integers(16, 235, (2, 12, 6, 1)).astype(np.uint8)
    assert len(Cascade.load(folder).run(nv12)) == 2


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_model_is_refused(tmp_path, pair, refused, content):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(content)
    assert "bad.onnx: " in refused(pair[0], bad)


def test_a_folder_that_holds_something_is_left_alone(tmp_path, pair, bundle):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    result, folder = bundle(*pair)
    assert result.exit_code == 1
    assert "exists already" in result.output
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_an_empty_folder_may_be_filled_and_parents_are_made(tmp_path, pair, made):
    (tmp_path / "out").mkdir()
    folder = made(*pair)
    assert (folder / "cascade.json").is_file()
    assert folder.stat().st_mode & 0o777 == 0o755, "others may read it"
    assert (made(*pair, out="deep/er/out") / "cascade.json").is_file()


@pytest.mark.parametrize("step", ["_write", "save_spec", "_escalate_all"])
def test_nothing_is_left_when_writing_fails(pair, bundle, monkeypatch, step):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "cascade.json")

    monkeypatch.setattr(packing, step, full)
    result, folder = bundle(*pair)
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert not folder.exists() and not list(folder.parent.glob(".out*"))


def test_an_error_of_the_disk_names_the_folder_that_the_user_knows(pair, bundle, monkeypatch):
    def full(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(packing, "_write", full)
    result, folder = bundle(*pair)
    assert f"{folder}/models/saver.onnx: No space left on device" in result.output


def test_nothing_is_left_when_interrupted(tmp_path, pair, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "_labels", interrupt)
    arguments = ["--saver", str(pair[0]), "--large", str(pair[1]), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, [*arguments, *COLOUR]).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.onnx", "small.onnx"]


def test_models_in_the_wrong_order_are_warned_of(bundle):
    models = [FASHION / "models" / f"{name}.onnx" for name in ("middle", "tiny")]
    result, _ = bundle(*models, *GREY)
    assert result.exit_code == 0
    assert "saver needs 3,938,176 MACs, large only 215,168" in result.stderr


def test_json_holds_what_was_written(tmp_path, pair, bundle):
    large = classifier(tmp_path / "fixed.onnx", batch=1, seed=2)
    result, folder = bundle(pair[0], large, *COLOUR, "--json")
    written = json.loads(result.stdout)
    assert written["bundle"] == str(folder)
    assert [stage["changes"] for stage in written["stages"]] == [[], ["batch made dynamic"]]
    assert (written["golden"], written["certificate"]) == (False, None)


def test_without_onnx_its_extra_is_named(pair, bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "engines.stage_model", raising=False)
    result, folder = bundle(*pair)
    assert result.exit_code == 1
    assert "pip install 'tinysaver-runtime[onnx]'" in result.output
    assert not folder.exists()


def test_a_bundle_is_recorded_and_certified_as_the_documents_say(tmp_path, made):
    mine = tmp_path / "mine.npz"
    with np.load(FASHION / "data" / "selection.npz") as data:
        images, labels = data["images"][:900], data["labels"][:900]
    np.savez(mine, images=images, labels=labels)
    models = [FASHION / "models" / f"{name}.onnx" for name in ("tiny", "middle")]
    folder = made(*models, *GREY, "--frames", 28, "--data", mine)
    records = tmp_path / "records"
    arguments = ["--bundle", str(folder), "--data", str(mine), "--out", str(records)]
    assert CliRunner().invoke(record.main, arguments).exit_code == 0
    arguments = [str(folder), "--records", str(records / "mine"), "--data", str(mine)]
    arguments += ["--epsilon", "0.03", "--delta", "0.05", "--allow-unknown-provenance"]
    result = CliRunner().invoke(threshold.main, arguments)
    assert result.exit_code == 0, result.output
    with Cascade.load(folder, require_certificate=True) as cascade:
        assert cascade.thresholds[0] < 1
        assert (cascade.run(images[:50]).stage == 0).any()
