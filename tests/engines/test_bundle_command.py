"""``engines.bundle`` as a command: what it refuses, prints, and leaves behind."""

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from calibration import record, threshold
from engines import packing
from engines.bundle import main
from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from tests.engines.bundle_files import (
    COLOUR,
    GREY,
    IMAGE,
    classifier,
    save,
)

MODELS = Path(__file__).parent.parent / "models"
FASHION = Path(__file__).parent.parent.parent / "zoo" / "fashion"


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
