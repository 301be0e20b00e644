"""The forms that come along with the demo bundle."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from calibration.npz import read_npz
from engines.half import emulated
from engines.onnx_file import default_opset
from runtime import bench, run
from runtime.bundle import demo_folder, load_bundle
from runtime.cascade import Cascade
from runtime.golden import GOLDEN_TOLERANCE
from runtime.images import load_arrays
from runtime.preprocess import Preprocessor
from runtime.session import HostModel

BUNDLE = load_bundle(demo_folder())
HOST_FORMS = ("fp32", "int8_host", "int8_host")
MADE = [
    (stage.name, form) for stage in BUNDLE.spec.stages for form in stage.forms if form != "fp32"
]


def test_every_stage_has_the_forms_of_a_gpu_and_those_that_pay_on_a_cpu() -> None:
    tiny, middle, large = (set(stage.forms) for stage in BUNDLE.spec.stages)
    assert tiny == {"fp32", "fp16", "int8_trt"}  # in integers it is slower than in FP32
    assert middle == large == {"fp32", "fp16", "int8_trt", "int8_host"}


@pytest.mark.parametrize(("name", "form"), MADE)
def test_a_form_gives_its_golden_logits_on_any_cpu(name: str, form: str) -> None:
    index = [stage.name for stage in BUNDLE.spec.stages].index(name)
    golden = BUNDLE.spec.golden
    assert golden is not None
    stored = read_npz(BUNDLE.verified(golden.file, golden.sha256), ("frames",))
    path = BUNDLE.model(index, form)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (default_opset(model) or 0) <= 17
    content = (model if form == "int8_host" else emulated(model)).SerializeToString()
    preprocess = Preprocessor(BUNDLE.spec.stages[index].preprocessing, BUNDLE.spec.input)
    session = HostModel(path, threads=1, content=content)
    logits = session.run({"input": preprocess(stored["frames"])})["logits"]
    expected = stored[f"logits/{name}/{form}"]
    np.testing.assert_allclose(logits, expected, atol=GOLDEN_TOLERANCE[form], rtol=0)


def test_the_integer_cascade_runs_and_the_fp32_one_is_certified_as_before() -> None:
    frames, labels = load_arrays(demo_folder() / "data" / "selection.npz")
    assert labels is not None
    with Cascade.load(BUNDLE, forms=HOST_FORMS, threads=1) as cascade:
        results = cascade.run(frames[:1000])
    assert (results.label == labels[:1000]).mean() > 0.93
    with Cascade.load(BUNDLE, require_certificate=True) as cascade:
        assert cascade.certification.state == "certified"


def test_forms_travel_in_three_megabytes() -> None:
    files = [BUNDLE.model(i, form) for i, s in enumerate(BUNDLE.spec.stages) for form in s.forms
             if form != "fp32"]  # fmt: skip
    assert sum(path.stat().st_size for path in files) < 3_000_000


def test_bench_and_run_take_forms(tmp_path) -> None:
    forms = "/".join(HOST_FORMS)
    report = tmp_path / "report.json"
    options = ["--forms", forms, "--quick", "--iterations", "4", "--warmup", "0", "--json", report]
    result = CliRunner().invoke(bench.main, [str(item) for item in options])
    assert result.exit_code == 0, result.output
    assert f"forms {forms}" in result.output
    data = demo_folder() / "data" / "selection.npz"
    small = tmp_path / "few.npz"
    np.savez(small, images=load_arrays(data)[0][:5])
    result = CliRunner().invoke(run.main, [str(small), "--forms", forms])
    assert result.exit_code == 0 and result.stdout.count('"label"') == 5


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        ("int9", "expected one of fp32, fp16, int8_host, int8_trt for each stage"),
        ("fp32/fp32", "forms: expected 3, one per stage"),
        ("int8_host/fp32/fp32", "no form int8_host"),
        ("fp32/fp32/int8_host", "no thresholds for fp32/fp32/int8_host"),
    ],
)
def test_forms_that_do_not_fit_are_named(forms: str, words: str) -> None:
    data = str(demo_folder() / "data" / "selection.npz")
    result = CliRunner().invoke(run.main, [data, "--forms", forms])
    assert result.exit_code == 1 and words in result.stderr
