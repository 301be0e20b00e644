"""The exported file of the demo bundle, what it says of itself, and the program that writes it."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from engines.errors import EngineError
from engines.export import export_onnx, main
from runtime.bundle import Bundle, demo_folder, load_bundle
from runtime.cascade import Cascade
from runtime.errors import BundleError

FORMS = "fp32/fp32/fp32"


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def with_thresholds(bundle, *thresholds):
    changes = {"thresholds": thresholds, "gears": ()}
    setting = bundle.spec.settings[FORMS].model_copy(update=changes)
    return Bundle(bundle.folder, bundle.spec.model_copy(update={"settings": {FORMS: setting}}))


@pytest.fixture(scope="module")
def demo():
    return load_bundle(demo_folder())


@pytest.fixture(scope="module")
def demo_file(demo, tmp_path_factory):
    return export_onnx(demo, tmp_path_factory.mktemp("export") / "fashion.onnx").file


@pytest.fixture(scope="module")
def images():
    with np.load(demo_folder() / "data" / "selection.npz") as stored:
        return stored["images"][:359]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the program in an empty folder; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        result = CliRunner().invoke(main, ["onnx", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    return call


@pytest.mark.parametrize("batch", [1, 7, 32, 359])
def test_the_demo_answers_as_its_cascade(demo, demo_file, images, batch):
    frames = images if batch > 1 else images[:60]
    graph = session(demo_file)
    stages = set()
    with Cascade.load(demo, batch=batch) as cascade:
        for start in range(0, len(frames), batch):
            part = frames[start : start + batch]
            expected = cascade.run(part)
            label, confidence, stage = graph.run(None, {"frames": part})
            assert label.tolist() == expected.label.tolist()
            assert stage.tolist() == expected.stage.tolist()
            np.testing.assert_allclose(confidence, expected.confidence, atol=1e-5)
            stages |= set(stage.tolist())
    assert stages == {0, 1, 2}


def test_quantised_stages_answer_as_their_cascade(demo, images, tmp_path):
    forms = ("fp32", "int8_host", "int8_host")
    exported = export_onnx(demo, tmp_path / "cascade.onnx", forms=forms)
    label, _, stage = session(exported.file).run(None, {"frames": images})
    with Cascade.load(demo, forms=forms, batch=len(images)) as cascade:
        expected = cascade.run(images)
    assert set(stage.tolist()) == {0, 1, 2}
    assert label.tolist() == expected.label.tolist()
    assert stage.tolist() == expected.stage.tolist()
    assert exported.certification.startswith("transferred: accuracy drop <= 0.5 points")


@pytest.mark.parametrize(
    ("thresholds", "stage"), [((0.0, 0.0), 0), ((1.0, 0.0), 1), ((1.0, 1.0), 2)]
)
def test_all_rows_are_answered_by_one_stage(demo, images, tmp_path, thresholds, stage):
    bundle = with_thresholds(demo, *thresholds)
    graph = session(export_onnx(bundle, tmp_path / "cascade.onnx").file)
    frames = images[:33]
    label, confidence, found = graph.run(None, {"frames": frames})
    with Cascade.load(bundle) as cascade:
        expected = cascade.run(frames)
    assert found.tolist() == [stage] * 33 == expected.stage.tolist()
    assert label.tolist() == expected.label.tolist()
    np.testing.assert_allclose(confidence, expected.confidence, atol=1e-5)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1), (0.9999, 0)])
def test_a_threshold_that_a_frame_hits_exactly_escalates_it(
    demo, images, tmp_path, factor, expected
):
    graph = session(export_onnx(with_thresholds(demo, 0.0, 0.0), tmp_path / "all.onnx").file)
    confidence = graph.run(["confidence"], {"frames": images[:40]})[0]
    # Of these, 1 / s rounds to a t with s * t = 1 in float32.
    total = np.float32(1) / confidence
    row = np.flatnonzero((total * confidence == 1) & (1 / total == confidence) & (total > 1.01))[0]
    bundle = with_thresholds(demo, float(confidence[row]) * factor, 0.0)
    graph = session(export_onnx(bundle, tmp_path / "cascade.onnx").file)
    assert graph.run(["stage"], {"frames": images[:40]})[0][row] == expected


def test_the_file_says_what_it_is_and_that_its_certificate_is_transferred(demo, demo_file):
    model = onnx.load(demo_file)
    said = {item.key: item.value for item in model.metadata_props}
    content = (demo.folder / "cascade.json").read_bytes()
    assert said["tinysaver.bundle_sha256"] == hashlib.sha256(content).hexdigest()
    assert json.loads(said["tinysaver.thresholds"]) == list(demo.spec.settings[FORMS].thresholds)
    assert json.loads(said["tinysaver.labels"]) == list(demo.spec.labels)
    assert json.loads(said["tinysaver.stages"]) == ["tiny", "middle", "large"]
    assert said["tinysaver.forms"] == FORMS
    assert said["tinysaver.certification"] == (
        "transferred: accuracy drop <= 0.5 points with 98.75 % confidence, from 8,000 samples"
    )


def test_the_graph_is_valid_and_its_names_begin_with_their_stage(demo_file):
    model = onnx.load(demo_file)
    onnx.checker.check_model(model, full_check=True)
    assert [item.name for item in model.graph.input] == ["frames"]
    assert [item.name for item in model.graph.output] == ["label", "confidence", "stage"]
    assert {item.name.partition("/")[0] for item in model.graph.initializer} >= {"tiny"}
    assert not [item for item in model.graph.initializer if item.name.startswith("large/")]


def test_a_fixed_batch(demo, images, tmp_path):
    exported = export_onnx(demo, tmp_path / "cascade.onnx", batch=4)
    graph = session(exported.file)
    assert [item.shape for item in graph.get_inputs()] == [[4, 28, 28, 1]]
    assert [item.shape for item in graph.get_outputs()] == [[4]] * 3
    with Cascade.load(demo) as cascade:
        expected = cascade.run(images[:4])
    assert graph.run(["label"], {"frames": images[:4]})[0].tolist() == expected.label.tolist()
    assert exported.check.samples > 0


def test_a_wide_stage_is_i32(demo, images, tmp_path):
    graph = session(export_onnx(demo, tmp_path / "cascade.onnx", wide_stage=True).file)
    assert graph.run(["stage"], {"frames": images[:9]})[0].dtype == np.int32


@pytest.fixture
def with_golden(make_bundle, random_frames):
    """Make a bundle of `echo` and `negated` whose golden logits are those of other frames."""

    def make(shift, **fields):
        frames = random_frames(12, seed=1, most=40)
        pixels = np.roll(frames.reshape(12, 4).astype(np.float32), shift, axis=1)
        logits = {"logits/echo/fp32": pixels, "logits/negated/fp32": -pixels}
        folder = make_bundle("echo", "negated")
        np.savez(folder / "golden.npz", frames=frames, **logits)
        sha256 = hashlib.sha256((folder / "golden.npz").read_bytes()).hexdigest()
        golden = {"file": "golden.npz", "sha256": sha256}
        return make_bundle("echo", "negated", thresholds=[0.9], golden=golden, **fields)

    return make


def golden_frames(folder):
    with np.load(folder / "golden.npz") as stored:
        return stored["frames"]


def test_a_graph_that_answers_golden_samples_otherwise_is_not_written(with_golden, tmp_path):
    out = tmp_path / "cascade.onnx"
    with pytest.raises(EngineError, match=r"answers golden sample \d with label"):
        export_onnx(load_bundle(with_golden(shift=1)), out)
    assert not out.exists()
    assert export_onnx(load_bundle(with_golden(shift=0)), out).check.samples > 6


def test_golden_samples_check_the_sum_of_logits(with_golden, tmp_path):
    """Three times the pixels less the pixels: the last stage's answer is another than its own."""
    folder = with_golden(0, combination={"stage": "echo", "weight": 3.0})
    check = export_onnx(load_bundle(folder), tmp_path / "cascade.onnx").check
    stages = session(tmp_path / "cascade.onnx").run(["stage"], {"frames": golden_frames(folder)})[0]
    assert check.samples > 6 and (stages == 1).any()


@pytest.mark.parametrize("score", [{"name": "margin"}, {"name": "p_norm", "p": 3.0}])
def test_golden_samples_check_other_scores_too(demo, tmp_path, score):
    described = json.loads(demo.spec.model_dump_json(exclude_none=True))
    described["gates"] = [{"score": score}] * 2
    described["settings"] = {FORMS: {"thresholds": [0.6, [0.5] * 10]}}
    spec = type(demo.spec).model_validate_json(json.dumps(described))
    exported = export_onnx(Bundle(demo.folder, spec), tmp_path / "cascade.onnx")
    assert exported.check.samples + exported.check.skipped == 8
    assert exported.certification == "not certified"


def test_a_bundle_without_golden_samples_says_that_nothing_was_compared(make_bundle, tmp_path):
    exported = export_onnx(load_bundle(make_bundle("echo", "negated")), tmp_path / "cascade.onnx")
    assert str(exported.check).endswith(
        "answers not checked, since the bundle has no golden samples"
    )


def test_the_program_writes_the_file_and_tells_what_it_holds(run, tmp_path):
    output = run(demo_folder(), "--out", "cascade.onnx", "--batch", "2")
    assert "u8 [2, 28, 28, 1]" in output
    assert "7 golden samples get the right label and stage, 1 too close to say" in output
    assert "transferred: accuracy drop <= 0.5 points" in output
    assert session(tmp_path / "cascade.onnx")


def test_the_program_gives_json(run, tmp_path):
    told = json.loads(run(demo_folder(), "--out", "cascade.onnx", "--json"))
    content = (tmp_path / "cascade.onnx").read_bytes()
    assert told["sha256"] == hashlib.sha256(content).hexdigest()
    assert told["nbytes"] == len(content)
    assert told["frames"] == ["n", 28, 28, 1]
    assert told["check"] == {"samples": 7, "skipped": 1, "reason": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--forms", "fp32/fp16/fp32"], "no thresholds for the forms fp32/fp16/fp32"),
        (["--frame-size", "9x9"], "takes frames of 28x28"),
        (["--out", "nowhere/cascade.onnx"], "nowhere/cascade.onnx: No such file or directory"),
    ],
)
def test_the_program_refuses_what_cannot_be(run, tmp_path, options, message):
    assert message in run(demo_folder(), "--out", "cascade.onnx", *options, code=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", ["0", "some", "-1"])
def test_a_batch_is_a_number_or_dynamic(run, batch):
    assert "expected a number of frames, or 'dynamic'" in run(
        demo_folder(), "--out", "x", f"--batch={batch}", code=2
    )


def test_a_model_that_was_changed_is_refused(make_bundle, tmp_path):
    folder = make_bundle("echo", "negated")
    (folder / "negated.onnx").write_bytes((folder / "echo.onnx").read_bytes())
    with pytest.raises(BundleError, match="content differs"):
        export_onnx(load_bundle(folder), tmp_path / "cascade.onnx")
