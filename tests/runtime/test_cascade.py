"""The cascade: every row has the answer of the right stage, and no stage sees other rows."""

import math

import numpy as np
import onnxruntime as ort
import pytest

from kernels import reference
from runtime.bundle import demo_folder
from runtime.cascade import Cascade, Results

SIZES = [1, 2, 7, 31, 32, 33, 97, 101]


def load(folder, **options):
    return Cascade.load(folder, threads=1, **options)


def alone(models, name, pixels, **others):
    """Logits f64 [n, 4] of a model run by itself, on all samples at once."""
    session = ort.InferenceSession(str(models / f"{name}.onnx"))
    feed = {"input": pixels.astype(np.float32).reshape(-1, 1, 2, 2), **others}
    return session.run(["logits"], feed)[0].astype(np.float64)


def expected_results(logits, thresholds, force=None):
    """What the cascade must answer, from all logits of all stages, one sample at a time."""
    label, confidence, stage = [], [], []
    for row in range(len(logits[0])):
        for number, block in enumerate(logits):
            forced = np.ones(1, np.uint8) if force is not None and force[row] else None
            last = number == len(logits) - 1
            threshold = 0.0 if last else thresholds[number]
            gated = reference.gate(block[row : row + 1], threshold, force=None if last else forced)
            if last or gated.count == 0:
                break
        label.append(gated.label[0])
        confidence.append(gated.confidence[0])
        stage.append(number)
    return label, confidence, stage


def assert_results(results, expected):
    label, confidence, stage = expected
    assert results.label.tolist() == label
    assert results.stage.tolist() == stage
    assert results.confidence == pytest.approx(confidence, rel=1e-5)


def rows_run(results, stage):
    """How many rows ONNX Runtime ran at once in the stage `rows`, whose confidence is n/(n+3)."""
    confidence = results.confidence[results.stage == stage].astype(float)
    return np.rint(3 * confidence / (1 - confidence)).astype(int).tolist()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.97, 1.0])
def test_two_stages_answer_as_their_models_alone_with_the_reference_gate(
    make_bundle, models, random_frames, n, batch, threshold
):
    frames = random_frames(n, seed=n)
    with load(make_bundle("echo", "negated", thresholds=[threshold]), batch=batch) as cascade:
        results = cascade.run(frames)
    logits = [alone(models, "echo", frames), alone(models, "negated", frames)]
    assert_results(results, expected_results(logits, [threshold]))


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_three_stages_answer_as_their_models_alone(make_bundle, models, random_frames, batch):
    frames = random_frames(211, seed=3)
    folder = make_bundle("echo", "negated", "rows", thresholds=[0.9, 0.8])
    with load(folder, batch=batch) as cascade:
        results = cascade.run(frames)
    logits = [alone(models, name, frames) for name in ("echo", "negated", "rows")]
    label, confidence, stage = expected_results(logits, [0.9, 0.8])
    assert set(stage) == {0, 1, 2}
    assert results.stage.tolist() == stage
    answered = np.array(stage) < 2
    assert results.label[answered].tolist() == np.array(label)[answered].tolist()
    assert results.confidence[answered] == pytest.approx(np.array(confidence)[answered], rel=1e-5)


@pytest.mark.parametrize(("n", "batch"), [(1, 8), (8, 8), (9, 8), (31, 8), (97, 13), (5, 1)])
def test_the_large_model_sees_only_the_escalated_rows_as_one_dense_batch(
    make_bundle, random_frames, n, batch
):
    frames = random_frames(n, seed=n)
    with load(make_bundle("echo", "rows", thresholds=[0.9]), batch=batch) as cascade:
        results = cascade.run(frames)
        assert cascade.executor.stages[0].timings.rows == n
        assert cascade.executor.stages[1].timings.rows == (results.stage == 1).sum()
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        count = int((results.stage[part] == 1).sum())
        chunk = Results(
            *(a[part] for a in (results.label, results.confidence, results.stage)), None
        )
        assert rows_run(chunk, 1) == [count] * count


def test_a_stage_without_rows_is_never_run(make_bundle, random_frames):
    with load(make_bundle("echo", "negated", "rows", thresholds=[0.0, 0.5])) as cascade:
        for stage in cascade.executor.stages[1:]:
            stage.model.session = None
        assert cascade.run(random_frames(19)).stage.tolist() == [0] * 19


def test_an_exact_hit_goes_to_the_large_model(make_bundle):
    """Four equal logits have a confidence of 1/4, which is not above 1/4."""
    frames = np.full((3, 2, 2, 1), 9, np.uint8)
    frames[1, 0, 0] = 10
    with load(make_bundle("echo", "negated", thresholds=[0.25])) as cascade:
        assert cascade.run(frames).stage.tolist() == [1, 0, 1]


def test_rows_with_nan_logits_escalate_and_take_the_answer_of_the_large_model(make_bundle):
    frames = np.array([[255, 0, 9, 9], [9, 0, 0, 0], [255, 7, 3, 5]], np.uint8).reshape(3, 2, 2, 1)
    with load(make_bundle("nan", "negated", thresholds=[0.0])) as cascade:
        results = cascade.run(frames)
    assert results.stage.tolist() == [1, 0, 1]
    assert results.label.tolist() == [1, 0, 2]


def test_rows_with_nan_logits_in_the_last_stage_have_confidence_zero(make_bundle):
    frames = np.array([[255, 0, 9, 9], [9, 0, 0, 0]], np.uint8).reshape(2, 2, 2, 1)
    with load(make_bundle("echo", "nan", thresholds=[1.0])) as cascade:
        results = cascade.run(frames)
    assert (results.label.tolist(), results.confidence[0]) == ([0, 0], 0.0)


def test_zero_frames_give_empty_results(make_bundle):
    with load(make_bundle("echo", "negated")) as cascade:
        for stage in cascade.executor.stages:
            stage.model.session = None
        results = cascade.run(np.empty((0, 2, 2, 1), np.uint8))
    assert len(results) == 0
    assert (results.label.dtype, results.confidence.dtype) == (np.int32, np.float32)
    assert results.stage.dtype == np.int8


def test_results_belong_to_the_caller(make_bundle, random_frames):
    with load(make_bundle("echo", "negated", thresholds=[0.9])) as cascade:
        frames = random_frames(50)
        before = frames.copy()
        first = cascade.run(frames)
        copies = [array.copy() for array in (first.label, first.confidence, first.stage)]
        cascade.run(random_frames(50, seed=9))
    for array, copy in zip((first.label, first.confidence, first.stage), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize("batch", [4, 256])
def test_a_later_stage_reads_the_tensors_of_its_own_rows(
    make_bundle, stage, models, random_frames, batch
):
    """Features come from the first stage, through a second gate that took rows out between."""
    reader = stage("reads_features", sources={"input": "frames", "features": "features/features"})
    folder = make_bundle("features", "negated", reader, thresholds=[0.9, 0.8])
    frames = random_frames(113, seed=5)
    with load(folder, batch=batch) as cascade:
        results = cascade.run(frames)
    pixels = [alone(models, name, frames) for name in ("echo", "negated", "negated")]
    expected = expected_results(pixels, [0.9, 0.8])
    assert set(expected[2]) == {0, 1, 2}
    assert_results(results, expected)


@pytest.mark.parametrize("batch", [4, 256])
def test_a_third_stage_reads_the_tensors_of_the_second(
    make_bundle, stage, models, random_frames, batch
):
    """The second stage holds only escalated rows, so a row's place in it is not its own number."""
    second = stage("features")
    reader = stage("reads_features", sources={"input": "frames", "features": "features/features"})
    folder = make_bundle("negated", second, reader, thresholds=[0.9, 0.8])
    frames = random_frames(113, seed=6)
    with load(folder, batch=batch) as cascade:
        results = cascade.run(frames)
    pixels = [alone(models, name, frames) for name in ("negated", "echo", "negated")]
    expected = expected_results(pixels, [0.9, 0.8])
    assert set(expected[2]) == {0, 1, 2}
    assert_results(results, expected)


def test_stages_with_different_preprocessing_see_their_own(make_bundle, stage, random_frames):
    """`wide` answers from the means of the rows of a 4 x 6 image, here stretched from 2 x 2."""
    pixels = {"size": [4, 6], "colour": "grey", "mean": [0.0], "std": [1 / 255]}
    folder = make_bundle(
        "echo", stage("wide", preprocessing=pixels), "negated", thresholds=[0.9, 0.55]
    )
    frames = random_frames(59, seed=8, most=40)
    with load(folder, batch=16) as cascade:
        results = cascade.run(frames)
    first = frames.reshape(59, 4).astype(float)
    upper, lower = first[:, :2].mean(1), first[:, 2:].mean(1)
    rows = np.stack([upper, 0.75 * upper + 0.25 * lower, 0.25 * upper + 0.75 * lower, lower], 1)
    expected = expected_results([first, rows, -first], [0.9, 0.55])
    assert set(expected[2]) == {0, 1, 2}
    assert_results(results, expected)


def test_a_stage_may_use_other_normalisation_of_the_same_size(make_bundle, stage, models):
    halved = {"size": [2, 2], "colour": "grey", "mean": [0.0], "std": [2 / 255]}
    folder = make_bundle("echo", stage("negated", preprocessing=halved), thresholds=[1.0])
    frames = np.array([[8, 2, 4, 4]], np.uint8).reshape(1, 2, 2, 1)
    with load(folder) as cascade:
        confidence = cascade.run(frames).confidence[0]
    assert confidence == pytest.approx(1 / (1 + math.exp(-3) + 2 * math.exp(-1)), rel=1e-5)


def test_colour_frames_reach_a_grey_saver_and_a_colour_model(make_bundle, stage):
    unit = {"size": [2, 2], "colour": "rgb", "mean": [0.0] * 3, "std": [1 / 255] * 3}
    folder = make_bundle(
        "echo",
        stage("colour", preprocessing=unit),
        input={"shape": [2, 2, 3], "colour": "bgr"},
        thresholds=[0.99],
    )
    frames = np.zeros((2, 2, 2, 3), np.uint8)
    frames[0, 1, 0] = [200, 0, 0]  # all blue: bright for the saver, nothing for the red channel
    frames[1] = 20
    frames[1, 0, 1, 2] = 29  # a little more red: 2.7 grey levels more for the saver
    with load(folder) as cascade:
        results = cascade.run(frames)
    assert results.stage.tolist() == [0, 1]
    assert results.label.tolist() == [2, 1]
    assert results.confidence[1] == pytest.approx(1 / (1 + 3 * math.exp(-9)), rel=1e-5)


@pytest.mark.parametrize("batch", [5, 256])
def test_force_sends_rows_on_through_every_gate(make_bundle, models, random_frames, batch):
    frames = random_frames(43, seed=2, most=200)
    force = (np.arange(43) % 3 == 0).astype(np.uint8) * 255
    with load(
        make_bundle("echo", "negated", "features", thresholds=[0.5, 0.5]), batch=batch
    ) as cascade:
        results = cascade.run(frames, force=force)
    logits = [alone(models, name, frames) for name in ("echo", "negated", "echo")]
    assert_results(results, expected_results(logits, [0.5, 0.5], force))
    assert (results.stage[force > 0] == 2).all()


@pytest.mark.parametrize(
    ("score", "threshold"),
    [
        ({"temperature": 3.0}, 0.5),
        ({"name": "margin"}, 0.6),
        ({"name": "entropy"}, 0.5),
        ({"name": "p_norm", "p": 2.0}, 0.7),
    ],
)
def test_a_gate_uses_its_score(make_bundle, random_frames, score, threshold):
    frames = random_frames(61, seed=4)
    folder = make_bundle("echo", "negated", thresholds=[threshold], scores=[score])
    with load(folder) as cascade:
        results = cascade.run(frames)
    options = {"name": "max_softmax", **score}
    value = reference.score(frames.reshape(61, 4), options.pop("name"), **options)
    expected = (value <= np.float32(threshold)).astype(int)
    assert 0 < expected.sum() < 61
    assert results.stage.tolist() == expected.tolist()
    assert results.confidence[expected == 0] == pytest.approx(value[expected == 0], rel=1e-5)


def test_a_learned_gate_reads_the_score_of_the_model(make_bundle):
    """The score of `features` is its first pixel / 255."""
    frames = np.array([[102, 0, 0, 200], [51, 200, 0, 0], [0, 0, 7, 0]], np.uint8)
    folder = make_bundle(
        "features", "negated", thresholds=[0.25], scores=[{"name": "learned", "output": "score"}]
    )
    with load(folder) as cascade:
        results = cascade.run(frames.reshape(3, 2, 2, 1))
    assert results.stage.tolist() == [0, 1, 1]
    assert results.label[0] == 3
    assert results.confidence[0] == pytest.approx(0.4)


def test_the_demo_bundle_answers_as_its_models_alone(selection_frames):
    """Rows within rounding of a threshold or of a tie may differ: the batches are others."""
    with load(demo_folder(), batch=32) as cascade:
        results = cascade.run(selection_frames)
        spec, thresholds = cascade.bundle.spec, cascade.thresholds
        paths = [stage.path for stage in cascade.executor.stages]
    logits = []
    for stage, path in zip(spec.stages, paths, strict=True):
        mean, std = stage.preprocessing.mean[0], stage.preprocessing.std[0]
        inputs = (selection_frames.transpose(0, 3, 1, 2) / 255 - mean) / std
        session = ort.InferenceSession(str(path))
        logits.append(session.run(None, {"input": inputs.astype(np.float32)})[0])
    label, confidence, stage = map(np.array, expected_results(logits, thresholds))
    assert set(stage) == set(range(len(spec.stages)))
    same = (results.label == label) & (results.stage == stage)
    assert (~same).sum() <= 1
    np.testing.assert_allclose(results.confidence[same], confidence[same], atol=1e-4)


@pytest.mark.parametrize("name", ["fashion", "fashion-four"])
def test_bundles_of_the_zoo_are_what_was_certified(name, selection_frames):
    with load(demo_folder().parent / name, batch=32) as cascade:
        assert cascade.certification.state == "certified"
        gears = cascade.gears
        results = cascade.run(selection_frames)
    assert set(results.stage) == set(range(len(gears[0]) + 1))
    assert gears[-1] == (1.0,) * len(gears[0])


@pytest.fixture
def selection_frames():
    with np.load(demo_folder() / "data" / "selection.npz") as stored:
        return stored["images"][:307]
