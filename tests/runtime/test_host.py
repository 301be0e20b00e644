"""ONNX files that do not load or do not fit, and what a stage of the CPU device does with rows."""

import re

import numpy as np
import onnxruntime as ort
import pytest

from runtime.bundle import file_sha256, load_bundle
from runtime.errors import BundleError
from runtime.host import HostExecutor, HostStage
from runtime.session import HostModel, available_threads

DAMAGES = {
    "empty": lambda content: b"",
    "zeros": lambda content: b"\0" * 300,
    "text": lambda content: b"this is not a model",
    "cut": lambda content: content[:-7],
    "half": lambda content: content[: len(content) // 2],
    "garbage": lambda content: np.random.default_rng(0).bytes(4099),
}


def executor_of(folder, *, batch=8):
    bundle = load_bundle(folder)
    return HostExecutor(bundle, ["fp32"] * len(bundle.spec.stages), batch=batch, threads=1)


def refusal(folder):
    with pytest.raises(BundleError) as caught:
        executor_of(folder)
    return str(caught.value)


def stage_of(folder, index=0, *, batch=8):
    return HostStage(load_bundle(folder), index, "fp32", batch=batch, threads=1)


def replace_model(folder, name, content):
    """Put other bytes in a model file, and their hash in cascade.json."""
    path, spec = folder / name, folder / "cascade.json"
    before = file_sha256(path)
    path.write_bytes(content)
    spec.write_text(spec.read_text().replace(before, file_sha256(path)))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["echo.onnx", "features.onnx"])
def test_a_file_that_is_no_model_is_refused_by_name(make_bundle, damage, name):
    folder = make_bundle("echo", "features")
    replace_model(folder, name, damage((folder / name).read_bytes()))
    message = refusal(folder)
    assert message.startswith(f"{folder / name}: ONNX Runtime {ort.__version__} cannot load it")
    assert "Expected an ONNX model; export it again." in message
    assert "\n" not in message


def test_a_model_with_another_hash_is_not_even_loaded(make_bundle):
    folder = make_bundle("echo", "negated")
    (folder / "negated.onnx").write_bytes((folder / "echo.onnx").read_bytes())
    assert "content differs from what cascade.json describes" in refusal(folder)


@pytest.mark.parametrize(
    ("model", "expected", "got"),
    [
        ("wide", "input: expected tensor(float) [n, 1, 2, 2]", "tensor(float) [n, 1, 4, 6]"),
        ("colour", "input: expected tensor(float) [n, 1, 2, 2]", "tensor(float) [n, 3, 2, 2]"),
        ("fixed", "[n, 1, 2, 2] with a dynamic batch", "tensor(float) [1, 1, 2, 2]"),
        ("double", "expected tensor(float) [n, 1, 2, 2]", "tensor(double) [n, 1, 2, 2]"),
        ("five", "logits: expected tensor(float) [n, 4]", "tensor(float) [n, 5]"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_a_model_that_does_not_fit_the_bundle_is_refused(make_bundle, model, expected, got, last):
    folder = make_bundle("echo", model) if last else make_bundle(model, "echo")
    message = refusal(folder)
    assert message.startswith(f"{folder / model}.onnx: tensor ")
    assert expected in message and f"got {got}" in message
    assert "Export the model for this bundle, or mend cascade.json." in message


def test_labels_that_do_not_fit_the_model_are_refused(make_bundle):
    folder = make_bundle("echo", "negated", labels=["a", "b", "c"])
    message = refusal(folder)
    assert "tensor logits: expected tensor(float) [n, 3]" in message
    assert "got tensor(float) [n, 4]" in message


def test_other_input_names_are_refused_with_both(make_bundle, stage):
    described = stage("echo", sources={"pixels": "frames"})
    message = refusal(make_bundle(described, "negated"))
    assert "inputs: expected ['pixels'] as cascade.json says, the model has ['input']" in message


def test_an_input_the_bundle_does_not_feed_is_refused(make_bundle):
    message = refusal(make_bundle("features", "reads_features"))
    assert "expected ['input'] as cascade.json says, the model has ['features', 'input']" in message


def test_a_missing_logits_output_is_refused_with_those_there_are(make_bundle, stage):
    message = refusal(make_bundle("echo", stage("features", logits="probabilities")))
    assert "outputs: expected 'probabilities' as cascade.json says" in message
    assert "['features', 'logits', 'mean', 'places', 'score']" in message


@pytest.mark.parametrize(
    ("source", "got"),
    [
        ("features/nothing", "no such output"),
        ("features", "no such output"),
        ("features/score", "[8, 1]"),
        ("features/mean", "no such output"),
    ],
)
def test_a_stage_that_reads_what_is_not_there_is_refused(make_bundle, stage, source, got):
    reader = stage("reads_features", sources={"input": "frames", "features": source})
    message = refusal(make_bundle("features", reader))
    assert f"input features reads {source}: expected [8, 4], got {got}" in message


@pytest.mark.parametrize(("output", "got"), [("absent", "no such output"), ("features", "[n, 4]")])
def test_a_learned_gate_without_a_score_per_row_is_refused(make_bundle, output, got):
    scores = [{"name": "learned", "output": output}]
    message = refusal(make_bundle("features", "negated", scores=scores))
    assert f"the gate reads output {output!r}: expected [n] or [n, 1], got {got}" in message


def test_a_missing_model_file_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match=re.escape(f"{tmp_path / 'absent.onnx'}: ONNX Runtime")):
        HostModel(tmp_path / "absent.onnx", threads=1)


def test_a_model_runs_alone(models):
    model = HostModel(models / "features.onnx", threads=1)
    assert model.inputs == {"input": ("n", 1, 2, 2)}
    found = model.run({"input": np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)})
    assert found["logits"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found["features"].tolist() == [[0, 2, 4, 6], [8, 10, 12, 14]]


@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_a_stage_runs_the_rows_it_was_fed_and_no_others(make_bundle, random_frames, rows):
    stage = stage_of(make_bundle("rows", "negated"))
    stage.feed(random_frames(rows))
    logits = stage.run(rows)
    np.testing.assert_allclose(logits[:, 0], np.log(rows), rtol=1e-6)
    assert len(logits) == rows and (stage.outputs["logits"][rows:] == 0).all()


def test_a_stage_may_run_any_number_of_rows_in_any_order(make_bundle, random_frames):
    folder = make_bundle("negated", "rows")
    negated, counting = stage_of(folder, 0), stage_of(folder, 1)
    for rows in (8, 1, 5, 8, 3, 1):
        frames = random_frames(rows, seed=rows)
        negated.feed(frames)
        assert negated.run(rows).tolist() == (-frames.reshape(rows, 4).astype(float)).tolist()
        counting.feed(frames)
        np.testing.assert_allclose(counting.run(rows)[:, 0], np.log(rows), rtol=1e-6)


def test_a_stage_classifies_on_its_own(make_bundle):
    stage = stage_of(make_bundle("echo", "negated"), 1)
    frames = np.array([[3, 1, 2, 9], [7, 7, 0, 7]], np.uint8).reshape(2, 2, 2, 1)
    label, confidence = stage.classify(frames)
    assert label.tolist() == [1, 2]
    assert confidence[1] == pytest.approx(1 / (1 + 3 * np.exp(-7)), rel=1e-6)


def test_a_stage_knows_whether_frames_are_all_it_reads(make_bundle, stage):
    reader = stage("reads_features", sources={"input": "frames", "features": "features/features"})
    executor = executor_of(make_bundle("features", reader))
    assert [item.spec.reads_frames for item in executor.stages] == [True, False]


def test_outputs_that_nobody_reads_do_no_harm(make_bundle, random_frames):
    """`features` has also outputs that fit no buffer of rows."""
    stage = stage_of(make_bundle("features", "negated"))
    frames = random_frames(3)
    assert 0 < (frames != 0).sum() < 12
    stage.feed(frames)
    assert stage.run(3).tolist() == frames.reshape(3, 4).tolist()


def results_for(rows):
    return np.full(rows, -7, np.int32), np.full(rows, -7, np.float32), np.full(rows, -7, np.int8)


def test_an_execution_accounts_for_the_rows_of_each_stage(make_bundle):
    executor = executor_of(make_bundle("echo", "negated"))
    frames = np.zeros((5, 2, 2, 1), np.uint8)
    frames[[1, 3], 0, 0] = 200
    results = results_for(5)
    executor.execute(frames, [0.5], results)
    assert [stage.timings.rows for stage in executor.stages] == [5, 3]
    assert results[2].tolist() == [1, 0, 1, 0, 1]
    assert all(stage.timings.session > 0 for stage in executor.stages)
    executor.reset_timings()
    assert [stage.timings.rows for stage in executor.stages] == [0, 0]


def test_a_stage_that_gets_no_rows_is_not_run(make_bundle, random_frames):
    executor = executor_of(make_bundle("echo", "negated"))
    executor.stages[1].model.session = None
    results = results_for(4)
    executor.execute(random_frames(4), [0.0], results)
    assert results[2].tolist() == [0, 0, 0, 0]


def test_available_threads_are_those_the_process_may_use():
    assert available_threads() >= 1
