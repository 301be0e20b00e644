"""Preprocessing in the exported graph gives the network inputs that the host gives."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from engines.errors import EngineError
from engines.export_frames import add_preprocessing, frame_size
from engines.export_nodes import Nodes
from runtime.preprocess import Preprocessor, network_input
from runtime.schema import FrameFormat, Preprocessing

CHANNELS = {"grey": 1, "rgb": 3, "bgr": 3}


def preprocessing(size, colour="rgb", **fields):
    """Make the network input equal to the grey levels, unless told otherwise."""
    channels = CHANNELS[colour]
    plain = {"mean": (0.0,) * channels, "std": (1 / 255,) * channels}
    return Preprocessing(size=size, colour=colour, **{**plain, **fields})


def by_graph(frames, source, wanted, opset=13):
    nodes = Nodes(opset)
    pixels = nodes.add("Cast", "pixels", "frames", to=TensorProto.FLOAT)
    result = add_preprocessing(
        nodes, pixels, frames.shape[1:3], pixels=source.pixels, network=network_input(wanted)
    )
    graph = nodes.graph(
        "preprocessing",
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", *frames.shape[1:]])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString()).run(None, {"frames": frames})[0]


def assert_as_the_host(frames, source, wanted, *, tolerance=1e-3, opset=13):
    """Compare inputs that are grey levels, unless mean and std are given."""
    described = FrameFormat(shape=frames.shape[1:], **source)
    found = by_graph(frames, described, wanted, opset)
    expected = Preprocessor(wanted, described)(frames)
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


def noise(height, width, channels, *, n=2):
    random = np.random.default_rng([height, width])
    return random.integers(0, 256, (n, height, width, channels)).astype(np.uint8)


@pytest.mark.parametrize("resize", ["stretch", "centre_crop", "letterbox"])
@pytest.mark.parametrize(
    ("frame", "size"),
    [
        ((2, 3), (5, 7)),
        ((1, 1), (3, 4)),
        ((33, 57), (28, 28)),
        ((57, 33), (28, 14)),
        ((28, 28), (61, 31)),
        ((5, 300), (64, 64)),
        ((32, 48), (16, 24)),
        ((61, 33), (14, 28)),
        ((8, 11), (8, 8)),
        ((4, 8), (8, 8)),
        ((480, 641), (224, 224)),
    ],
)
def test_resizes(frame, size, resize):
    wanted = preprocessing(size, resize=resize, mean=(0.4, 0.5, 0.6))
    assert_as_the_host(noise(*frame, 3), {"colour": "rgb"}, wanted)


def test_frames_of_a_camera_are_as_exact():
    frames = noise(1080, 1920, 3, n=1)
    assert_as_the_host(frames, {"colour": "rgb"}, preprocessing((260, 224)))


@pytest.mark.parametrize("source", CHANNELS)
@pytest.mark.parametrize("target", CHANNELS)
@pytest.mark.parametrize("size", [(7, 5), (4, 9)])
def test_colours_normalised(source, target, size):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    channels = CHANNELS[target]
    wanted = preprocessing(size, target, mean=mean[:channels], std=std[:channels])
    frames = noise(7, 5, CHANNELS[source], n=3)
    assert_as_the_host(frames, {"colour": source}, wanted, tolerance=2e-5)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("levels", ["limited", "full"])
@pytest.mark.parametrize("size", [(8, 6), (5, 9), (3, 3)])
@pytest.mark.parametrize("target", CHANNELS)
def test_nv12(matrix, levels, size, target):
    source = {"colour": "nv12", "matrix": matrix, "range": levels}
    assert_as_the_host(noise(12, 6, 1), source, preprocessing(size, target, resize="letterbox"))


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_every_opset(opset):
    wanted = preprocessing((5, 5), "grey", resize="letterbox")
    assert_as_the_host(noise(9, 14, 3), {"colour": "bgr"}, wanted, opset=opset)


def test_no_frames_are_no_inputs():
    frames = np.empty((0, 9, 14, 3), np.uint8)
    source = FrameFormat(shape=(9, 14, 3), colour="rgb")
    assert by_graph(frames, source, preprocessing((5, 5))).shape == (0, 3, 5, 5)


def test_a_bundle_with_a_size_needs_none():
    frames = FrameFormat(shape=(4, 6, 3), colour="rgb")
    assert frame_size(frames, None) == (4, 6)
    assert frame_size(frames, (4, 6)) == (4, 6)
    with pytest.raises(EngineError, match=r"takes frames of 4x6 .* got 6x4"):
        frame_size(frames, (6, 4))


def test_a_bundle_for_any_size_needs_one():
    frames = FrameFormat(shape=(0, 0, 3), colour="rgb")
    assert frame_size(frames, (4, 6)) == (4, 6)
    with pytest.raises(EngineError, match="--frame-size 1080x1920"):
        frame_size(frames, None)


def test_a_size_that_nv12_cannot_have_is_refused():
    frames = FrameFormat(shape=(0, 0, 1), colour="nv12", matrix="bt601", range="limited")
    assert frame_size(frames, (9, 4)) == (9, 4)
    with pytest.raises(EngineError, match="--frame-size: nv12: expected an even width"):
        frame_size(frames, (10, 4))
