"""Frames, force, thresholds, forms and devices: what is taken, and what is refused how."""

import math
import re

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from runtime.errors import BundleError, InputError


def load(folder, **options):
    return Cascade.load(folder, threads=1, **options)


@pytest.fixture
def distinct(make_bundle, stage):
    """Three stages whose names differ, for checks of force per gate."""
    second = stage("echo", name="again")
    return make_bundle("echo", second, "negated", thresholds=[0.5, 0.5])


def test_force_per_gate_opens_only_that_gate(distinct):
    frames = np.zeros((6, 2, 2, 1), np.uint8)
    frames[:, 0, 0] = 200
    force = np.zeros((2, 6), np.uint8)
    force[0, [1, 4]] = 1
    force[1, [2, 4]] = 1
    with load(distinct, batch=4) as cascade:
        results = cascade.run(frames, force=force)
    assert results.stage.tolist() == [0, 1, 0, 0, 2, 0]


@pytest.mark.parametrize(
    ("force", "got"),
    [
        (np.zeros(3, np.uint8), r"uint8 \[3\]"),
        (np.zeros(4, bool), r"bool \[4\]"),
        (np.zeros((1, 4), np.uint8), r"uint8 \[1, 4\]"),
        (np.zeros((2, 4, 1), np.uint8), r"uint8 \[2, 4, 1\]"),
    ],
)
def test_force_of_another_shape_or_type_is_refused(distinct, force, got):
    with load(distinct) as cascade, pytest.raises(InputError) as caught:
        cascade.run(np.zeros((4, 2, 2, 1), np.uint8), force=force)
    assert re.search(rf"force: expected u8 \[4\] or u8 \[2, 4\], got {got}", str(caught.value))


NV12 = {"colour": "nv12", "matrix": "bt601", "range": "full"}


@pytest.mark.parametrize("shape", [[3, 2, 1], [0, 0, 1]])
def test_nv12_frames_are_taken_with_their_planes_below_each_other(make_bundle, shape):
    """Grey levels are the logits of `echo`: luma, where chroma has no colour."""
    frames = np.full((4, 3, 2, 1), 128, np.uint8)
    frames[:, :2] = 0
    for row, (y, x) in enumerate(((1, 0), (0, 0), (1, 1), (0, 1))):
        frames[row, y, x] = 200
    bundle = make_bundle("echo", "negated", input={"shape": shape, **NV12})
    with load(bundle) as cascade:
        assert cascade.run(frames).label.tolist() == [2, 0, 3, 1]


def test_rows_that_no_nv12_frame_has_are_refused(make_bundle):
    bundle = make_bundle("echo", "negated", input={"shape": [0, 0, 1], **NV12})
    with load(bundle) as cascade, pytest.raises(InputError) as caught:
        cascade.run(np.zeros((2, 4, 6, 1), np.uint8))
    assert "frames: nv12: expected an even width" in str(caught.value)
    assert "got 4 rows of 6. Crop them to even sides." in str(caught.value)


@pytest.mark.parametrize(
    ("frames", "got", "advice"),
    [
        (np.zeros((2, 2, 1), np.uint8), "uint8 [2, 2, 1]", "frame[None]"),
        (np.zeros((5, 2, 2), np.uint8), "uint8 [5, 2, 2]", "frames[..., None]"),
        (np.zeros((2, 2), np.uint8), "uint8 [2, 2]", "make a bundle for this size"),
        (np.zeros((1, 2, 2, 1)), "float64 [1, 2, 2, 1]", "0..255 in numpy.uint8"),
        (np.zeros((1, 2, 2, 1), np.int8), "int8 [1, 2, 2, 1]", "0..255 in numpy.uint8"),
        (np.zeros((1, 2, 2, 1), bool), "bool [1, 2, 2, 1]", "0..255 in numpy.uint8"),
        (np.zeros((1, 3, 2, 1), np.uint8), "uint8 [1, 3, 2, 1]", "Resize the frames"),
        (np.zeros((1, 2, 2, 3), np.uint8), "uint8 [1, 2, 2, 3]", ""),
        (np.zeros((1, 1, 2, 2), np.uint8), "uint8 [1, 1, 2, 2]", ""),
        (np.zeros((0, 3, 2, 1), np.uint8), "uint8 [0, 3, 2, 1]", "Resize the frames"),
        ("text", "<U4 []", ""),
    ],
)
def test_frames_that_do_not_fit_are_refused_with_advice(make_bundle, frames, got, advice):
    with load(make_bundle("echo", "negated")) as cascade, pytest.raises(InputError) as caught:
        cascade.run(frames)
    message = str(caught.value)
    assert f"frames: expected u8 [N, 2, 2, 1] (grey), got {got}." in message
    assert advice in message
    assert isinstance(caught.value, ValueError)


def test_frames_of_any_size_are_taken_where_the_bundle_names_none(make_bundle):
    folder = make_bundle("echo", "negated", input={"shape": [0, 0, 1], "colour": "grey"})
    frames = np.zeros((3, 8, 4, 1), np.uint8)
    frames[:, 4:, 2:] = 99
    with load(folder) as cascade:
        assert cascade.run(frames).label.tolist() == [3, 3, 3]
        for shape in [(3, 0, 4, 1), (3, 8, 0, 1), (3, 8, 4, 3)]:
            with pytest.raises(InputError, match=r"expected u8 \[N, height, width, 1\]"):
                cascade.run(np.zeros(shape, np.uint8))


def test_lists_of_frames_are_taken_as_arrays(make_bundle, random_frames):
    frames = random_frames(3)
    with load(make_bundle("echo", "negated")) as cascade:
        assert cascade.run(list(frames)).label.tolist() == cascade.run(frames).label.tolist()


def test_a_refused_batch_leaves_the_cascade_usable(make_bundle, random_frames):
    with load(make_bundle("echo", "negated")) as cascade:
        with pytest.raises(InputError):
            cascade.run(np.zeros(3))
        assert len(cascade.run(random_frames(3))) == 3


def test_thresholds_per_class_are_chosen_by_the_answer_of_the_saver(make_bundle):
    frames = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]], np.uint8).reshape(3, 2, 2, 1)
    folder = make_bundle("echo", "negated", thresholds=[[0.5, 0.9, 1.0, 0.0]])
    with load(folder) as cascade:
        assert cascade.run(frames).stage.tolist() == [0, 1, 1]
        cascade.thresholds = [np.array([0.9, 0.5, 0.5, 0.5])]
        assert cascade.run(frames).stage.tolist() == [1, 0, 0]
        assert cascade.thresholds == ([0.9, 0.5, 0.5, 0.5],)


def test_new_thresholds_apply_to_the_next_run(make_bundle, random_frames):
    with load(make_bundle("echo", "negated")) as cascade:
        cascade.thresholds = [0.0]
        assert set(cascade.run(random_frames(9)).stage) == {0}
        cascade.thresholds = [1]
        assert set(cascade.run(random_frames(9)).stage) == {1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "expected 1, one per gate, got 0"),
        ([0.5, 0.5], "expected 1, one per gate, got 2"),
        ([1.5], r"expected numbers in \[0, 1\]"),
        ([-0.1], r"expected numbers in \[0, 1\]"),
        ([math.nan], r"expected numbers in \[0, 1\]"),
        ([[0.5, 0.5]], r"one or one per class \(4\)"),
        ([[0.5, 0.5, 0.5, 2.0]], r"expected numbers in \[0, 1\]"),
    ],
)
def test_thresholds_that_do_not_fit_are_refused_and_the_old_ones_stay(make_bundle, values, message):
    with load(make_bundle("echo", "negated", thresholds=[0.75])) as cascade:
        with pytest.raises(InputError, match=message):
            cascade.thresholds = values
        assert cascade.thresholds == (0.75,)


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": -1}, {"threads": 0}])
def test_batch_and_threads_below_one_are_refused(make_bundle, options):
    with pytest.raises(InputError, match="batch and threads: expected at least 1, got"):
        Cascade.load(make_bundle("echo", "negated"), **options)


@pytest.mark.parametrize("device", ["tpu", "", "cpu:1", "auto:0", "cuda:", "cuda:x", "CUDA"])
def test_an_unknown_device_is_refused(make_bundle, device):
    with pytest.raises(InputError, match=f"^device: expected .* cuda:1, got {device!r}"):
        load(make_bundle("echo", "negated"), device=device)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_auto_and_cpu_run_here(make_bundle, random_frames, device):
    with load(make_bundle("echo", "negated"), device=device) as cascade:
        assert len(cascade.run(random_frames(2))) == 2


def test_an_opened_bundle_can_be_given(make_bundle):
    bundle = load_bundle(make_bundle("echo", "negated"))
    with load(bundle) as cascade:
        assert cascade.bundle is bundle
        assert cascade.stage_names == ("echo", "negated")


@pytest.mark.parametrize(
    "forms", [["fp32"], ["fp32", "fp16"], ["fp32", "fp32", "fp32"], ["x", "y"]]
)
def test_forms_that_the_cpu_does_not_run_are_refused(make_bundle, forms):
    with pytest.raises(
        InputError, match="forms: expected 2, one per stage, each of fp32, int8_host"
    ):
        load(make_bundle("echo", "negated"), forms=forms)


def test_a_form_that_is_not_in_the_bundle_is_refused(make_bundle):
    with pytest.raises(BundleError, match="stage echo has no form int8_host; it has fp32"):
        load(make_bundle("echo", "negated"), forms=["int8_host", "fp32"])


def test_forms_without_thresholds_are_refused_with_those_there_are(make_bundle, stage):
    saver = stage("echo")
    saver["forms"]["int8_host"] = saver["forms"]["fp32"]
    folder = make_bundle(saver, "negated")
    with pytest.raises(BundleError) as caught:
        load(folder, forms=["int8_host", "fp32"])
    assert "no thresholds for int8_host/fp32; it has fp32/fp32" in str(caught.value)
    assert "calibration.search" in str(caught.value)
