"""Fields of cascade.json that are missing or do not fit, and what the schema computes."""

import hashlib
import json

import numpy as np
import pydantic
import pytest

from runtime.schema import CascadeSpec, Preprocessing, Setting, ThresholdPath, digest


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("name",), "name"),
        (("input",), "input"),
        (("labels",), "labels"),
        (("stages",), "stages"),
        (("gates",), "gates"),
        (("settings",), "settings"),
        (("input", "colour"), "input.colour"),
        (("stages", 1, "macs"), "stages.1.macs"),
        (("stages", 0, "forms", "fp32", "sha256"), "stages.0.forms.fp32.sha256"),
        (("settings", "fp32/fp32", "thresholds"), "settings.fp32/fp32.thresholds"),
    ],
)
def test_a_missing_field_is_named(write_bundle, content, path, named, refusal, changed):
    changed(content, path, "del")
    message = refusal(write_bundle(content))
    assert f"{named}: Field required" in message
    assert "See docs/formats.md" in message


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        (
            ("settings", "fp32/fp32", "thresholds"),
            [1.5],
            ["thresholds.0", "less than or equal to 1", "1.5"],
        ),
        (
            ("settings", "fp32/fp32", "thresholds"),
            [-0.1],
            ["thresholds.0", "greater than or equal to 0"],
        ),
        (("settings", "fp32/fp32", "thresholds"), [float("nan")], ["thresholds.0", "finite"]),
        (
            ("settings", "fp32/fp32", "thresholds"),
            [[0.5, 0.5, 0.5, 2]],
            ["thresholds.0", "3", "got 2"],
        ),
        (("settings", "fp32/fp32", "thresholds"), [[0.5, 0.5]], ["one threshold per class, 4"]),
        (("settings", "fp32/fp32", "thresholds"), [], ["0 thresholds for 1 gates"]),
        (("settings", "fp32/fp32", "thresholds"), [0.5, 0.5], ["2 thresholds for 1 gates"]),
        (("settings", "fp32/fp32", "gears"), [[0.5, 0.5]], ["2 thresholds for 1 gates"]),
        (
            ("settings", "fp32"),
            {"thresholds": [0.5]},
            ["'fp32' does not name one known form per stage"],
        ),
        (("settings", "fp32/fp16"), {"thresholds": [0.5]}, ["'fp32/fp16' does not name"]),
        (("settings", "fp32/fp32", "thresold"), 1, ["thresold: Extra inputs are not permitted"]),
        (("gates", 0, "score"), {"name": "luck"}, ["gates.0.score.name", "max_softmax", "'luck'"]),
        (
            ("gates", 0, "score"),
            {"temperature": 0},
            ["gates.0.score.temperature", "greater than 0"],
        ),
        (("gates", 0, "score"), {"temperature": -1}, ["greater than 0", "-1"]),
        (("gates", 0, "score"), {"name": "p_norm"}, ["p is given for the score p_norm"]),
        (("gates", 0, "score"), {"name": "p_norm", "p": 0.5}, ["greater than or equal to 1"]),
        (("gates", 0, "score"), {"p": 2}, ["p is given for the score p_norm, and only for it"]),
        (("gates", 0, "score"), {"name": "learned"}, ["output names the score tensor"]),
        (("gates",), [], ["2 stages need 1 gate(s), found 0"]),
        (("gates",), [{}, {}], ["2 stages need 1 gate(s), found 2"]),
        (("labels",), ["one"], ["labels", "at least 2 items"]),
        (("stages", 1, "name"), "echo", ["stage names repeat: ['echo', 'echo']"]),
        (("stages", 1, "name"), "a/b", ["stages.1.name", "pattern"]),
        (("stages", 1, "forms"), {}, ["stages.1.forms", "at least 1 item"]),
        (("stages", 1, "forms"), {"fp8": {}}, ["stages.1.forms.fp8", "'fp32'"]),
        (("stages", 1, "inputs"), [], ["stages.1.inputs", "at least 1 item"]),
        (("stages", 1, "macs"), 0, ["stages.1.macs", "greater than 0"]),
        (
            ("stages", 1, "forms", "fp32", "sha256"),
            "abc",
            ["stages.1.forms.fp32.sha256", "pattern", "'abc'"],
        ),
        (("stages", 1, "inputs", 0, "source"), "negated/features", ["earlier stage of ['echo']"]),
        (("stages", 1, "inputs", 0, "source"), "later/x", ["input input reads 'later/x'"]),
        (("stages", 0, "inputs", 0, "source"), "echo/logits", ["earlier stage of []"]),
        (
            ("stages", 0, "preprocessing", "mean"),
            [0.0, 0.0, 0.0],
            ["colour grey have 1 number(s) each"],
        ),
        (
            ("stages", 0, "preprocessing", "std"),
            [0.0],
            ["stages.0.preprocessing.std.0", "greater than 0"],
        ),
        (
            ("stages", 0, "preprocessing", "resize"),
            "zoom",
            ["'stretch', 'centre_crop' or 'letterbox'"],
        ),
        (
            ("stages", 0, "preprocessing", "size"),
            [0, 2],
            ["stages.0.preprocessing.size.0", "greater than 0"],
        ),
        (("input", "shape"), [2, 2, 3], ["colour grey has 1 channel(s), shape says (2, 2, 3)"]),
        (
            ("stages", 0, "preprocessing", "size"),
            [2, 32768],
            ["stages.0.preprocessing.size.1", "less than or equal to 32767"],
        ),
        (
            ("input",),
            {"shape": [8, 6, 1], "colour": "nv12", "matrix": "bt601", "range": "full"},
            ["input", "nv12: expected an even width", "got 8 rows of 6"],
        ),
        (("input", "shape"), [0, 2, 1], ["height and width", "(0, 2, 1)"]),
        (("input", "shape"), [-2, 2, 1], ["height and width", "(-2, 2, 1)"]),
        (("input", "colour"), "nv12", ["matrix and range are given for nv12"]),
        (("input", "range"), "full", ["matrix and range are given for nv12, and only for it"]),
        (("input", "matrix"), "bt601", ["matrix and range are given for nv12, and only for it"]),
        (("input", "dtype"), "float32", ["input.dtype", "'uint8'", "'float32'"]),
        (
            ("combination",),
            {"stage": "negated", "weight": 1},
            ["'negated'", "earlier stages ['echo']"],
        ),
        (("combination",), {"stage": "other", "weight": 1}, ["'other'", "earlier stages ['echo']"]),
        (
            ("combination",),
            {"stage": "echo", "weight": 0},
            ["combination.weight", "greater than 0"],
        ),
        (
            ("settings", "fp32/fp32", "path"),
            {"class_offsets": [[0, 0, 0]]},
            ["'fp32/fp32' has class_offsets of 3 classes, needs 4"],
        ),
        (
            ("settings", "fp32/fp32", "path"),
            {"class_offsets": [[0] * 4, [0] * 4]},
            ["settings.fp32/fp32.path", "each of 1 gate(s)"],
        ),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_what_was_found(
    write_bundle, content, path, value, parts, refusal, changed
):
    changed(content, path, value)
    message = refusal(write_bundle(content))
    assert message.startswith(str(write_bundle(content) / "cascade.json"))
    for part in (*parts, "See docs/formats.md"):
        assert part in message
    assert len(message) < 800


def test_many_faults_are_told_in_a_short_message(write_bundle, content, refusal):
    content["labels"] = list(range(1000))
    message = refusal(write_bundle(content))
    assert message.count("labels.") == 3 and len(message) < 600


def test_the_schema_is_frozen(full_spec):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        full_spec.name = "other"


def test_equal_preprocessing_has_an_equal_hash_and_any_change_another():
    fields = {"size": (28, 28), "colour": "grey", "mean": (0.286,), "std": (0.353,)}
    base = Preprocessing(**fields)
    assert base.sha256 == Preprocessing(**{**fields, "resize": "stretch"}).sha256 == digest(base)
    assert (
        Preprocessing(**{**fields, "mean": (0,)}).sha256
        == Preprocessing(**{**fields, "mean": (0.0,)}).sha256
    )
    changes = [{"size": (28, 29)}, {"mean": (0.2861,)}, {"std": (0.3,)}, {"resize": "letterbox"}]
    hashes = {Preprocessing(**{**fields, **change}).sha256 for change in changes}
    assert len(hashes | {base.sha256}) == 5
    text = '{"colour":"grey","mean":[0.286],"resize":"stretch","size":[28,28],"std":[0.353]}'
    assert base.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_threshold_path_starts_at_one_and_falls():
    vectors = ThresholdPath(offsets=(0.0, -1.5), start=9.0, stop=-2.2, points=500).vectors()
    assert (vectors.shape, vectors.dtype) == ((501, 2), np.float32)
    assert vectors[0].tolist() == [1.0, 1.0]
    assert (np.diff(vectors, axis=0) < 0).all()
    u = 9.0 - 11.2 * 250 / 499
    expected = [np.float32(1 / (1 + np.exp(-(u + offset)))) for offset in (0.0, -1.5)]
    assert vectors[251] == pytest.approx(expected, rel=1e-6)
    assert vectors[-1, 0] == pytest.approx(1 / (1 + np.exp(2.2)), rel=1e-6)


def test_an_explicit_threshold_path_is_taken_as_it_is():
    path = ThresholdPath(explicit=((1.0, 1.0), (0.5, 0.25)))
    assert path.vectors().tolist() == [[1.0, 1.0], [0.5, 0.25]]


def test_a_certificate_of_several_gates_has_no_single_threshold(full_spec):
    certificate = full_spec.settings["fp32/fp32/fp32"].certificate
    with pytest.raises(ValueError, match="this cascade has 2 thresholds, not one"):
        _ = certificate.threshold
    single = certificate.model_copy(update={"thresholds": (0.75,)})
    assert single.threshold == 0.75


@pytest.mark.parametrize(
    "gear", [(0.8, 0.5), (0.9, 0.4), (0.9, [0.5, 0.5, 0.4, 0.5]), ([0.9] * 4, 0.3), (0.9,)]
)
def test_a_gear_below_the_certified_thresholds_is_refused(full_spec, gear):
    setting = full_spec.settings["fp32/fp32/fp32"].model_dump()
    Setting.model_validate({**setting, "gears": [(0.9, [0.5, 0.6, 0.5, 1.0]), (0.8125, 0.5)]})
    with pytest.raises(pydantic.ValidationError, match="below the certified thresholds"):
        Setting.model_validate({**setting, "gears": [gear]})


def test_a_certificate_by_class_has_no_single_threshold(full_spec):
    certificate = full_spec.settings["fp32/fp32/fp32"].certificate
    single = certificate.model_copy(update={"thresholds": ([0.75, 0.5],)})
    with pytest.raises(ValueError, match="2 thresholds, one per class"):
        _ = single.threshold


def test_fields_that_came_later_leave_a_digest_alone_until_they_are_used():
    path = ThresholdPath()
    before = {k: v for k, v in path.model_dump(mode="json").items() if k != "class_offsets"}
    text = json.dumps(before, sort_keys=True, separators=(",", ":"))
    assert digest(path, later=["class_offsets"]) == hashlib.sha256(text.encode()).hexdigest()
    assert digest(path) != digest(path, later=["class_offsets"])
    by_class = ThresholdPath(class_offsets=((0.0, 0.0),))
    assert digest(by_class, later=["class_offsets"]) == digest(by_class)


def test_a_spec_made_in_python_is_checked_as_one_from_a_file(content, changed):
    changed(content, ("settings", "fp32/fp32", "thresholds"), [1.5])
    with pytest.raises(pydantic.ValidationError):
        CascadeSpec.model_validate(content)
