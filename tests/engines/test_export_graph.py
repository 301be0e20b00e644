"""The exported graph answers as the cascade, and as the reference, row for row."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.export import export_onnx
from kernels import reference
from runtime.bundle import load_bundle
from runtime.cascade import Cascade

NAN, INF = np.nan, np.inf


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def exported(folder, **options):
    """Export a bundle; return the session."""
    return session(export_onnx(load_bundle(folder), folder / "cascade.onnx", **options).file)


def assert_as_the_cascade(folder, frames, *, batches=(1, 7, 32), **options):
    """Compare on whole batches of several sizes; return the answering stages."""
    graph = exported(folder, **options)
    stages = []
    with Cascade.load(folder, threads=1) as cascade:
        for start, batch in _cut(len(frames), batches):
            part = frames[start : start + batch]
            expected = cascade.run(part)
            label, confidence, answered = graph.run(None, {"frames": part})
            assert (label.dtype, confidence.dtype, answered.dtype) == (
                np.int32,
                np.float32,
                np.int8,
            )
            np.testing.assert_array_equal(label, expected.label)
            np.testing.assert_array_equal(answered, expected.stage)
            # float32: each exponential and sum of a few classes has a relative error of some 1e-7.
            np.testing.assert_allclose(confidence, expected.confidence, rtol=2e-6, atol=2e-6)
            stages += answered.tolist()
    return stages


def _cut(rows, batches):
    start, turn = 0, 0
    while start < rows:
        yield start, batches[turn % len(batches)]
        start += batches[turn % len(batches)]
        turn += 1


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.6, 0.97, 1.0])
def test_two_stages(make_bundle, random_frames, threshold):
    folder = make_bundle("echo", "negated", thresholds=[threshold])
    assert_as_the_cascade(folder, random_frames(211))


def test_three_stages_of_which_the_last_sees_how_many_rows_it_gets(make_bundle, random_frames):
    """The confidence of `rows` tells its batch: only escalated rows, and each of them once."""
    folder = make_bundle("echo", "negated", "rows", thresholds=[0.9, 0.8])
    assert set(assert_as_the_cascade(folder, random_frames(211, seed=3))) == {0, 1, 2}


def test_five_stages(make_bundle, stage, random_frames):
    names = [stage("echo" if i % 2 == 0 else "negated", name=f"model.{i}") for i in range(5)]
    folder = make_bundle(*names, thresholds=[0.9, 0.9, 0.7, 0.7])
    assert set(assert_as_the_cascade(folder, random_frames(211))) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("first", ["features", "negated"])
def test_a_later_stage_reads_the_tensors_of_its_own_rows(make_bundle, stage, random_frames, first):
    """The features come from the first stage, through another gate, or from the second."""
    second = {"features": "negated", "negated": "features"}[first]
    reader = stage("reads_features", sources={"input": "frames", "features": "features/features"})
    folder = make_bundle(first, second, reader, thresholds=[0.9, 0.8])
    assert set(assert_as_the_cascade(folder, random_frames(211, seed=5))) == {0, 1, 2}


def test_a_stage_that_reads_no_frames(make_bundle, write_model, random_frames):
    """Its batch comes from the tensors of the stage before alone."""
    flat = helper.make_node("Neg", ["features"], ["logits"])
    doubled = write_model("doubled", [flat], {"features": ("n", 4)})
    reader = {**doubled, "inputs": [{"tensor": "features", "source": "features/features"}]}
    folder = make_bundle("features", reader, thresholds=[0.9])
    write_model.copy_to(folder)
    assert set(assert_as_the_cascade(folder, random_frames(101))) == {0, 1}


@pytest.mark.parametrize("n", [0, 1, 2, 33])
def test_any_number_of_frames(make_bundle, random_frames, n):
    folder = make_bundle("echo", "negated", "features", thresholds=[0.9, 0.8])
    graph = exported(folder)
    frames = random_frames(n, seed=n)
    label, confidence, answered = graph.run(None, {"frames": frames})
    with Cascade.load(folder, threads=1) as cascade:
        expected = cascade.run(frames)
    assert label.tolist() == expected.label.tolist()
    assert answered.tolist() == expected.stage.tolist()
    assert len(confidence) == n


def test_stages_with_preprocessing_and_colours_of_their_own(make_bundle, stage, random_frames):
    """`wide` answers from the rows of a 4 x 6 image, `colour` from one channel."""
    large = {"size": [4, 6], "colour": "grey", "mean": [0.1], "std": [0.004]}
    sharper = {**large, "std": [0.003]}
    three = {"size": [2, 2], "colour": "rgb", "mean": [0.1, 0, 0], "std": [0.006, 1, 1]}
    folder = make_bundle(
        "echo",
        stage("wide", preprocessing=large),
        stage("colour", preprocessing=three),
        stage("wide", name="sharper", preprocessing=sharper),
        stage("negated"),
        thresholds=[0.9, 0.75, 0.9, 0.5],
        input={"shape": [2, 2, 3], "colour": "bgr"},
    )
    grey = random_frames(3 * 101, seed=8, most=40).reshape(101, 3, 2, 2)
    frames = np.ascontiguousarray(grey.transpose(0, 2, 3, 1))
    assert set(assert_as_the_cascade(folder, frames)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("score", "threshold"),
    [
        ({"temperature": 3.0}, 0.5),
        ({"name": "margin"}, 0.6),
        ({"name": "margin", "temperature": 0.5}, 0.6),
        ({"name": "entropy", "temperature": 2.0}, 0.3),
        ({"name": "p_norm", "p": 1.0}, 0.3),
        ({"name": "p_norm", "p": 2.0}, 0.7),
        ({"name": "learned", "output": "score"}, 0.01),
    ],
    ids=lambda item: "-".join(map(str, item.values())) if isinstance(item, dict) else "",
)
def test_every_score_with_one_threshold_and_with_one_per_class(
    make_bundle,
    random_frames,
    score,
    threshold,
):
    for limit in (threshold, [threshold, 0.0, 1.0, threshold / 2]):
        folder = make_bundle("features", "negated", thresholds=[limit], scores=[score])
        assert set(assert_as_the_cascade(folder, random_frames(211, seed=4))) == {0, 1}


def test_thresholds_per_class_of_max_softmax(make_bundle, random_frames):
    folder = make_bundle("echo", "negated", thresholds=[[0.9, 0.0, 1.0, 0.5]])
    assert set(assert_as_the_cascade(folder, random_frames(211))) == {0, 1}


@pytest.mark.parametrize("weight", [0.4, 3.0])
@pytest.mark.parametrize("name", ["features", "negated", "rows"])
def test_logits_of_an_earlier_stage_are_added_to_the_last(
    make_bundle, stage, random_frames, name, weight
):
    """Each stage has rows of its own, and logits that tell pixels or, in `rows`, their number."""
    combination = {"stage": name, "weight": weight}
    stages = ("features", "negated", "rows", stage("echo", name="last"))
    folder = make_bundle(*stages, thresholds=[0.95, 0.95, 0.6], combination=combination)
    answered = assert_as_the_cascade(folder, random_frames(211, seed=6))
    assert set(answered) == {0, 1, 2, 3}
    model = onnx.load(folder / "cascade.onnx")
    found = {item.key: item.value for item in model.metadata_props}["tinysaver.combination"]
    assert json.loads(found) == combination


def test_an_exact_hit_escalates(make_bundle):
    """Four equal logits have a confidence of 1/4, which is not above 1/4."""
    frames = np.full((3, 2, 2, 1), 9, np.uint8)
    frames[1, 0, 0] = 10
    graph = exported(make_bundle("echo", "negated", thresholds=[0.25]))
    assert graph.run(["stage"], {"frames": frames})[0].tolist() == [1, 0, 1]


def test_a_stage_without_rows_is_never_run(make_bundle, tmp_path, random_frames):
    folder = make_bundle("echo", "negated", "features", thresholds=[0.0, 0.5])
    file = export_onnx(load_bundle(folder), folder / "cascade.onnx").file
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    graph = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    graph.run(None, {"frames": random_frames(19)})
    with open(graph.end_profiling()) as stream:
        ran = {event["name"] for event in json.load(stream) if event["cat"] == "Node"}
    answers = {name.partition("/")[0] for name in ran if name.startswith("answer:")}
    assert answers == {"answer:echo"}


# Rows of logits that no well-behaved model gives, and ties.
AWKWARD = np.array(
    [
        [NAN, 1, 2, 3],
        [3, 2, NAN, 1],
        [NAN] * 4,
        [NAN, -INF, -INF, NAN],
        [-INF, NAN, -INF, -INF],
        [INF, 1, 2, 3],
        [INF, INF, 1, 1],
        [NAN, INF, 0, 0],
        [-INF, 1, 2, 3],
        [-INF, -INF, -INF, 4],
        [-INF] * 4,
        [5, 5, 1, 5],
        [0, 0, 0, 0],
        [1e38, -1e38, 0, 0],
        [-3e38, -3e38, -3e38, -3e38],
        [90, 0, 0, 0],
        [0, 1e-30, 0, 0],
    ],
    np.float32,
)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.45, 0.999, 1.0])
@pytest.mark.parametrize(
    "score",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"name": "margin"},
        {"name": "entropy"},
        {"name": "p_norm", "p": 1.0},
        {"name": "p_norm", "p": 2.5},
    ],
    ids=lambda score: "-".join(map(str, score.values())) or "plain",
)
def test_awkward_logits_are_decided_and_answered_as_by_the_reference(
    make_bundle,
    lookup,
    score,
    threshold,
):
    random = np.random.default_rng(7).normal(size=(200, 4)).astype(np.float32) * 3
    logits = np.concatenate([AWKWARD, random])
    folder = make_bundle(
        lookup("saver", logits),
        lookup("large", logits[::-1]),
        scores=[score],
        thresholds=[threshold],
    )
    lookup.copy_to(folder)
    graph = exported(folder)
    frames = np.repeat(np.arange(len(logits), dtype=np.uint8), 4).reshape(-1, 2, 2, 1)
    label, confidence, answered = graph.run(None, {"frames": frames})
    value, escalates, near = judged(logits, {"name": "max_softmax", **score}, threshold)
    assert near.mean() < 0.05
    np.testing.assert_array_equal(answered[~near], escalates[~near])
    first, second = reference.softmax(logits).label, reference.softmax(logits[::-1])
    np.testing.assert_array_equal(label, np.where(answered, second.label, first))
    expected = np.where(answered, second.confidence, value)
    np.testing.assert_allclose(confidence, expected, rtol=1e-5, atol=2e-6)


def test_a_learned_score_that_is_no_number_escalates(make_bundle, write_model):
    scores = np.float32([NAN, INF, -INF, -0.5, 0.0, 0.25, 0.5, 1.5])
    nodes = [
        helper.make_node("Flatten", ["input"], ["logits"]),
        helper.make_node("Gather", ["logits", "first"], ["pixel"], axis=1),
        helper.make_node("Cast", ["pixel"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["score"], axis=0),
    ]
    constants = {"table": scores, "first": np.int64(0)}
    outputs = {"logits": ("n", 4), "score": ("n",)}
    saver = write_model("saver", nodes, constants=constants, outputs=outputs)
    learned = {"name": "learned", "output": "score"}
    folder = make_bundle(saver, "negated", scores=[learned], thresholds=[0.25])
    write_model.copy_to(folder)
    frames = np.repeat(np.arange(8, dtype=np.uint8), 4).reshape(8, 2, 2, 1)
    stages = assert_as_the_cascade(folder, frames, batches=(8,))
    assert stages == [1, 1, 1, 1, 1, 1, 0, 0]


def judged(logits, score, threshold):
    """Score of each row, whether it escalates, and whether float32 may decide otherwise."""
    name, temperature = score["name"], score.get("temperature", 1.0)
    facts = reference.softmax(logits, temperature)
    value = reference.score(logits, name, temperature=temperature, p=score.get("p", 2.0))
    if name == "max_softmax":
        kept = reference.accept(facts.total, threshold)
        exact = np.isin(facts.total, [1.0, 4.0])
        return value, ~kept, (np.abs(facts.total * threshold - 1) <= 1e-5) & ~exact
    valid = ~np.isnan(facts.total)
    kept = (value > threshold) & valid
    return value, ~kept, (np.abs(value - threshold) <= 1e-5) & valid


@pytest.fixture
def lookup(write_model):
    """Describe a stage whose logits are rows of a table, by the first pixel."""

    def describe(name, table):
        nodes = [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Gather", ["flat", "first"], ["pixel"], axis=1),
            helper.make_node("Cast", ["pixel"], ["row"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "row"], ["logits"], axis=0),
        ]
        constants = {"table": np.float32(table), "first": np.int64(0)}
        return write_model(name, nodes, constants=constants)

    describe.copy_to = write_model.copy_to
    return describe


@pytest.fixture
def write_model(stage):
    """Make a model ``input [n, 1, 2, 2] -> logits [n, 4]``; return its stage of cascade.json."""
    made = {}

    def write(name, nodes, inputs=None, *, constants=None, opset=13, outputs=None, functions=()):
        inputs = inputs or {"input": ("n", 1, 2, 2)}
        infos = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()]
        outputs = outputs or {"logits": ("n", 4)}
        results = [
            helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outputs.items()
        ]
        weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
        graph = helper.make_graph(nodes, name, infos, results, weights)
        domains = [helper.make_opsetid("", opset)]
        domains += [helper.make_opsetid(item.domain, 1) for item in functions]
        model = helper.make_model(
            graph, opset_imports=domains, functions=list(functions), ir_version=8
        )
        onnx.checker.check_model(model)
        made[name] = model.SerializeToString()
        file = {"file": f"{name}.onnx", "sha256": hashlib.sha256(made[name]).hexdigest()}
        return {**stage("echo"), "name": name, "forms": {"fp32": file}}

    def copy_to(folder):
        for name, content in made.items():
            (folder / f"{name}.onnx").write_bytes(content)

    write.copy_to = copy_to
    return write
