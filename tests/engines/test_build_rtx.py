"""Real plans by TensorRT-RTX, which needs no GPU to build. That they run is not shown here."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.half import to_half
from engines.preparation import prepare
from engines.quantise import quantise_trt
from runtime.bundle import demo_folder, file_sha256, load_bundle, save_spec
from runtime.plan_fit import find_plans
from runtime.plans import Machine
from runtime.schema import ModelFile
from tests.engines import plan_models
from tests.engines.test_build_versions import request
from tests.tensorrt_double.libraries import ROOT, run_python

pytestmark = pytest.mark.slow

TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
STAGES = ("tiny", "large")
MAGIC = b"vtrt"

PROGRAM = """
import json, sys
from engines.build_messages import BuildRequest
from engines.builder import build
from engines.errors import EngineError

results = []
for asked in json.load(sys.stdin):
    phases = []
    try:
        answer = build(BuildRequest.model_validate(asked), phases.append).model_dump(mode="json")
    except EngineError as error:
        answer = str(error)
    results.append([answer, len(phases)])
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo bundle, its saver and large model in both forms."""
    ignored = shutil.ignore_patterns("data", "plans")
    folder = shutil.copytree(
        demo_folder(), tmp_path_factory.mktemp("rtx") / "fashion", ignore=ignored
    )
    bundle = load_bundle(folder)
    images = np.load(demo_folder() / "data" / "selection.npz")["images"][:64]
    stages = [
        stage.model_copy(update={"forms": {**stage.forms, **forms(folder, stage, images)}})
        for stage in bundle.spec.stages
    ]
    save_spec(folder, bundle.spec.model_copy(update={"stages": tuple(stages)}))
    return folder


@pytest.fixture
def bundle(made):
    """The same, without plans."""
    shutil.rmtree(made / "plans", ignore_errors=True)
    return made


def forms(folder, stage, images):
    """Write a model cast to FP16, and quantised to INT8 with the rest in FP16."""
    model = prepare(folder / stage.forms["fp32"].file)
    written = {}
    for form, proto in (
        ("fp16", to_half(model)),
        ("int8_trt", quantise_trt(model, ranges(model, stage, images))),
    ):
        path = folder / "models" / f"{stage.name}.{form}.onnx"
        onnx.save(proto, path)
        file = str(path.relative_to(folder))
        written[form] = ModelFile(file=file, sha256=file_sha256(path))
    return written


def ranges(model, stage, images):
    """Return the least and largest value of every tensor, on real images."""
    shown = copy.deepcopy(model)
    names = [name for node in model.graph.node for name in node.output]
    kinds = {item.name: item for item in onnx.shape_inference.infer_shapes(model).graph.value_info}
    shown.graph.output.extend(kinds[name] for name in names if name in kinds)
    session = onnxruntime.InferenceSession(shown.SerializeToString())
    (mean,), (std,) = stage.preprocessing.mean, stage.preprocessing.std
    feed = {"input": (images.transpose(0, 3, 1, 2) / np.float32(255) - mean) / std}
    outputs = [item.name for item in session.get_outputs()]
    found = {**feed, **dict(zip(outputs, session.run(None, feed), strict=True))}
    return {name: (float(value.min()), float(value.max())) for name, value in found.items()}


def build(bundle, *arguments):
    stages = [part for name in STAGES for part in ("--stage", name)]
    return run_python(
        *("-m", "engines.build", str(bundle), "--json", *stages, *arguments),
        environment={},
        cwd=ROOT,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_both_forms_of_saver_and_large_model_build_for_every_rtx_target(bundle, target):
    forms = ("--form", "fp16", "--form", "int8_trt")
    result = build(bundle, *forms, "--target", target, "--buckets", "1,32")
    assert result.returncode == 0, result.stderr
    assert [item["plan"] for item in json.loads(result.stdout)] == [
        "tiny.fp16",
        "large.fp16",
        "tiny.int8_trt",
        "large.int8_trt",
    ]
    version = importlib.metadata.version("tensorrt-rtx")
    card = Machine(library="tensorrt_rtx", version=version, gpu="a card", architecture=target)
    for form in ("fp16", "int8_trt"):
        (plan,) = find_plans(load_bundle(bundle), 0, form, card)
        assert plan.read().startswith(MAGIC)
        assert [tensor.shape for tensor in plan.sidecar.inputs] == [(-1, 1, 28, 28)]
        assert [tensor.dtype for tensor in plan.sidecar.outputs] == ["float32"]


def test_one_plan_serves_all_targets_and_is_found_again(bundle):
    arguments = ("--form", "fp16", "--target", "rtx", "--target", "sm_75", "--buckets", "4")
    first = build(bundle, *arguments)
    assert first.returncode == 0, first.stderr
    again = build(bundle, *arguments)
    assert {item["status"] for item in json.loads(again.stdout)} == {"up to date"}
    hits = [item["seconds"] * 1e3 for item in json.loads(again.stdout)]
    print(f"hits: {', '.join(f'{hit:.1f} ms' for hit in hits)}", file=sys.stderr)
    other = build(bundle, "--form", "fp16", "--target", "sm_86", "--buckets", "4", "--no-build")
    assert "for sm_75, sm_80, sm_86, sm_89, sm_120, sm_121, this asks for sm_86" in other.stderr


def test_turing_refuses_fp32_matrix_products_and_the_node_is_named(bundle):
    result = build(bundle, "--form", "fp32", "--target", "sm_75", "--buckets", "1")
    assert result.returncode == 1
    assert "tiny.fp32: TensorRT-RTX" in result.stderr
    assert "'/4/Gemm' for Turing (SM75): FP32 GEMM is not supported" in result.stderr
    assert "cudaError" not in result.stderr
    assert {path.suffix for path in (bundle / "plans").iterdir()} == {".lock"}


def cases(folder):
    """Requests for models that do not fit, and what is said of them."""
    fp32 = plan_models.fp32(folder)
    names = ("fixed", "flat", "truncated", "empty", "garbage")
    folders = {name: folder / name for name in names}
    for path in folders.values():
        path.mkdir()
    fixed = plan_models.fp32(folders["fixed"], image=(2, 1, 4, 4), logits=(2, 3))
    truncated = plan_models.no_model(folders["truncated"], fp32.read_bytes()[:60])
    garbage = plan_models.no_model(folders["garbage"], b"this is not onnx" * 9)
    asked = [{"name": "image", "shape": [1, 4, 4]}]
    return [
        (
            {"model": plan_models.unknown_operator(folder)},
            "node 0 (operator FooBar, name foo): ",
        ),
        ({"model": plan_models.no_model(folders["empty"])}, "not an ONNX model, or an empty one."),
        ({"model": garbage}, "not an ONNX model, or an empty one."),
        ({"model": truncated}, "MODEL_DESERIALIZE_FAILED"),
        ({"model": folder / "none.onnx"}, "Input file cannot be found"),
        ({"model": fixed}, "input input has shape [2, 1, 4, 4]; expected a dynamic batch axis"),
        ({"inputs": asked}, "inputs are input; the bundle names image."),
        ({"outputs": [{"name": "score"}]}, "outputs are logits; the bundle names score."),
        ({"inputs": [{"name": "input", "shape": [3, 4, 4]}]}, "expected [-1, 3, 4, 4] as the"),
        ({"outputs": [{"name": "logits", "shape": [10]}]}, "expected [-1, 10] as the bundle says"),
    ]


def test_models_that_do_not_fit_are_refused_in_words(tmp_path):
    expected = cases(tmp_path)
    requests = []
    for changes, _ in expected:
        model = {"model": changes.pop("model")} if "model" in changes else {}
        rtx = {"library": "tensorrt_rtx", "targets": ["sm_89"], **changes}
        requests.append(request(tmp_path, "fp32", **model, **rtx))
    sound = request(tmp_path, "fp32", library="tensorrt_rtx", targets=["sm_89"])
    program = run_python(
        "-c", PROGRAM, environment={}, cwd=ROOT, input=json.dumps([sound, *requests])
    )
    assert program.returncode == 0, program.stderr
    (answer, phases), *refusals = json.loads(program.stdout)
    assert answer["event"] == "built" and phases > 20
    for (refusal, _), (_, words) in zip(refusals, expected, strict=True):
        assert words in refusal
