"""What is said of a running cascade's accuracy, and that no other cascade borrows a certificate."""

import json

import pytest

from runtime.cascade import Cascade
from runtime.certification import Certification, certification
from runtime.errors import BundleError
from runtime.schema import CascadeSpec, Preprocessing

DATA_SHA = "0123456789abcdef" * 4
PASSED = 3
PATH = {"explicit": [[1.0], [0.96875], [0.875], [0.75], [0.5]]}
KEY = "fp32/fp32"


def covered(stage, *, engine="onnxruntime", form="fp32"):
    return {
        "name": stage["name"],
        "model_sha256": stage["forms"][form]["sha256"],
        "engine": engine,
        "form": form,
        "preprocessing_sha256": Preprocessing(**stage["preprocessing"]).sha256,
    }


def certificate_for(content, *, forms=("fp32", "fp32"), **changes):
    stages = [covered(s, form=f) for s, f in zip(content["stages"], forms, strict=True)]
    facts = {
        "quantity": "accuracy_drop",
        "epsilon": 0.005,
        "delta": 0.0125,
        "method": "wsr",
        "n": 8000,
        "harm": 30,
        "help": 8,
        "thresholds": [0.75],
        "scores": [{}],
        "path": PATH,
        "passed": PASSED,
        "order_seed": 1,
        "escalation_rates": [0.25],
        "covers": {"data_sha256": DATA_SHA, "stages": stages, "provenance": "checked"},
    }
    return {**facts, **changes}


@pytest.fixture
def content(cascade_json, stage):
    """A certified cascade of two stages; the first has a second form, with the same file."""
    saver = stage("echo")
    saver["forms"]["int8_host"] = saver["forms"]["fp32"]
    described = cascade_json(saver, "negated", thresholds=[0.75])
    described["settings"][KEY]["certificate"] = certificate_for(described)
    return described


def state_of(content, *, forms=("fp32", "fp32"), engine="onnxruntime", thresholds=(0.75,)):
    spec = CascadeSpec.model_validate_json(json.dumps(content))
    return certification(spec, forms, engine=engine, thresholds=thresholds).state


def test_the_certified_computation_is_certified(content):
    assert state_of(content) == "certified"


def test_other_weights_beside_the_same_onnx_file_are_not_certified(content):
    form = content["stages"][1]["forms"]["fp32"]
    form.update(external_data=["w.bin"], external_sha256=[DATA_SHA])
    assert state_of(content) == "not certified"
    spec = CascadeSpec.model_validate_json(json.dumps(content))
    certified = content["settings"][KEY]["certificate"]["covers"]["stages"]
    certified[1]["model_sha256"] = spec.stages[1].forms["fp32"].digest
    assert state_of(content) == "certified"
    form["external_sha256"] = [DATA_SHA[::-1]]
    assert state_of(content) == "not certified"


def test_another_engine_is_transferred(content):
    assert state_of(content, engine="tensorrt") == "transferred"


def test_one_stage_on_another_engine_is_transferred(content):
    certified = content["settings"][KEY]["certificate"]["covers"]["stages"]
    certified[1]["engine"] = "tensorrt"
    assert state_of(content) == "transferred"


def test_sending_everything_on_was_the_first_point_that_passed(content):
    assert state_of(content, thresholds=(1.0,)) == "certified"
    content["settings"][KEY]["certificate"]["path"] = {"explicit": PATH["explicit"][1:]}
    content["settings"][KEY]["certificate"]["passed"] = PASSED - 1
    assert state_of(content) == "certified"
    assert state_of(content, thresholds=(1.0,)) == "overridden"


@pytest.mark.parametrize("thresholds", [(0.5,), (0.8,), ([0.75] * 4,), ()])
def test_other_thresholds_are_overridden(content, thresholds):
    assert state_of(content, thresholds=thresholds) == "overridden"


def test_a_setting_that_differs_from_its_certificate_is_overridden(content, write_bundle):
    content["settings"][KEY]["thresholds"] = [0.5]
    with Cascade.load(write_bundle(content), threads=1) as cascade:
        assert cascade.certification.state == "overridden"


def test_a_gear_on_the_certified_part_of_the_path_is_certified(content):
    content["settings"][KEY]["gears"] = [[0.9], [0.875]]
    assert state_of(content, thresholds=(0.875,)) == "certified"
    assert state_of(content, thresholds=(0.96875,)) == "overridden"  # on the path, but no gear


@pytest.mark.parametrize("gear", [0.8, 0.9])
def test_a_gear_that_was_not_tested_is_not_certified(content, gear):
    content["settings"][KEY]["gears"] = [[gear]]
    assert state_of(content, thresholds=(gear,)) == "overridden"


@pytest.mark.parametrize("weight", [0.5, 0.25, None])
@pytest.mark.parametrize("certified", [0.5, None])
def test_only_the_certified_combination_is_certified(content, weight, certified):
    described = [item and {"stage": "echo", "weight": item} for item in (weight, certified)]
    content["combination"], content["settings"][KEY]["certificate"]["combination"] = described
    assert state_of(content) == ("certified" if weight == certified else "not certified")
    assert state_of(content, thresholds=(1.0,)) == state_of(content)


def test_a_form_with_a_setting_but_without_certificate_says_so(content):
    content["settings"]["int8_host/fp32"] = {"thresholds": [0.75]}
    assert state_of(content, forms=("int8_host", "fp32")) == "not certified for this form"


def test_a_form_without_setting_is_not_certified_for_this_form(content):
    assert state_of(content, forms=("int8_host", "fp32")) == "not certified for this form"


def test_a_certificate_of_another_form_is_not_certified_for_this_form(content):
    """The certificate was copied to other forms; here even the files are the same."""
    content["settings"]["int8_host/fp32"] = content["settings"][KEY]
    assert state_of(content, forms=("int8_host", "fp32")) == "not certified for this form"


def test_each_form_has_its_own_certificate(content):
    forms = ("int8_host", "fp32")
    setting = {"thresholds": [0.5], "certificate": certificate_for(content, forms=forms)}
    content["settings"]["int8_host/fp32"] = setting
    assert state_of(content, forms=forms) == "certified"
    assert state_of(content) == "certified"


def test_no_certificate_anywhere_is_not_certified(content):
    del content["settings"][KEY]["certificate"]
    assert state_of(content) == "not certified"
    assert state_of(content, forms=("int8_host", "fp32")) == "not certified"


def test_a_certificate_of_bare_logits_covers_no_cascade(content):
    content["settings"][KEY]["certificate"]["covers"] = None
    assert state_of(content) == "not certified"


@pytest.mark.parametrize("index", [0, 1])
def test_another_model_is_not_certified(content, index):
    content["stages"][index]["forms"]["fp32"] = {"file": "nan.onnx", "sha256": DATA_SHA}
    assert state_of(content) == "not certified"


@pytest.mark.parametrize("index", [0, 1])
def test_other_preprocessing_is_not_certified(content, index):
    content["stages"][index]["preprocessing"]["std"] = [1 / 256]
    assert state_of(content) == "not certified"


@pytest.mark.parametrize("score", [{"temperature": 2.0}, {"name": "margin"}, {"name": "entropy"}])
def test_another_score_or_temperature_is_not_certified(content, score):
    content["gates"][0]["score"] = score
    assert state_of(content) == "not certified"


def test_another_number_of_stages_is_not_certified(content):
    del content["settings"][KEY]["certificate"]["covers"]["stages"][1]
    assert state_of(content) == "not certified"


def test_the_state_is_one_line_with_the_promise(content, make_bundle):
    spec = CascadeSpec.model_validate_json(json.dumps(content))
    certificate = spec.settings[KEY].certificate
    promise = "accuracy drop <= 0.5 points with 98.75 % confidence, from 8,000 samples"
    assert str(Certification("certified", certificate)) == f"certified: {promise}"
    assert str(Certification("transferred", certificate)) == f"transferred: {promise}"
    assert str(Certification("not certified")) == "not certified"
    label_free = certificate.model_copy(update={"quantity": "disagreement"})
    text = str(Certification("certified", label_free))
    assert "large model" in text and "<= 0.5 %" in text and "accuracy" not in text


@pytest.mark.parametrize("state", ["overridden", "not certified", "not certified for this form"])
def test_a_promise_that_does_not_hold_is_told_as_the_bundles(content, state):
    spec = CascadeSpec.model_validate_json(json.dumps(content))
    text = str(Certification(state, spec.settings[KEY].certificate))
    assert text.startswith(f"{state}; the bundle's certificate says: accuracy drop")


def test_results_say_what_is_known_of_their_accuracy(content, write_bundle, random_frames):
    with Cascade.load(write_bundle(content), threads=1) as cascade:
        assert cascade.run(random_frames(3)).certification.state == "certified"
        cascade.thresholds = [0.5]
        assert cascade.run(random_frames(3)).certification.state == "overridden"
        cascade.thresholds = [0.75]
        results = cascade.run(random_frames(3))
        assert results.certification.state == "certified"
        assert results.certification.certificate.n == 8000


def test_a_required_certificate_lets_the_certified_cascade_run(content, write_bundle):
    folder = write_bundle(content)
    with Cascade.load(folder, require_certificate=True, threads=1) as cascade:
        assert cascade.certification.state == "certified"


@pytest.mark.parametrize("forms", [("fp32", "fp32"), ("int8_host", "fp32")])
def test_a_required_certificate_refuses_what_is_not_certified(content, write_bundle, forms):
    content["settings"]["int8_host/fp32"] = {"thresholds": [0.75]}
    content["stages"][1]["preprocessing"]["mean"] = [0.25]
    with pytest.raises(
        BundleError, match=r"a certificate is required, but .* not certified"
    ) as caught:
        Cascade.load(write_bundle(content), forms=forms, require_certificate=True, threads=1)
    assert "python -m calibration.threshold --help" in str(caught.value)
