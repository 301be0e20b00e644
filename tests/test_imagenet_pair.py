"""scripts/imagenet_pair: its photographs, its statements, and the whole on small networks."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from calibration.certificates import certify
from calibration.errors import CertificationRefused
from engines.half import to_half
from engines.preparation import prepare
from tests.tensorrt_double.libraries import run_python

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pair() -> ModuleType:
    """The script as a module."""
    path = ROOT / "scripts" / "imagenet_pair.py"
    spec = importlib.util.spec_from_file_location("scripts_imagenet_pair", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write_wheels(pair: ModuleType, folder: Path) -> None:
    """Write wheels that have a picture of another size for each one that the script names."""
    folder.mkdir(parents=True)
    number = 0
    for source in (*pair.RANGES, *pair.CERTIFICATE, pair.LABELS):
        name, _, version = source.package.partition("==")
        path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for pattern in source.files:
                count = {"foolbox": 20, "scikit-learn": 2}.get(name, 1)
                for copy in range(count):
                    number += 1
                    file = pattern.replace("*", f"{copy:02}")
                    if file.endswith(".json"):
                        content = json.dumps([f"class {k}" for k in range(12)]).encode()
                    else:
                        shown = picture(97 + 7 * number, 131, seed=number)
                        content = cv2.imencode(Path(file).suffix, shown)[1].tobytes()
                    wheel.writestr(file, content)


def test_what_certifies_is_of_other_packages_than_what_gives_ranges(pair: ModuleType) -> None:
    ranges = {source.package for source in pair.RANGES}
    assert not ranges & {source.package for source in pair.CERTIFICATE}


def test_every_package_is_pinned(pair: ModuleType) -> None:
    for source in (*pair.RANGES, *pair.CERTIFICATE, pair.LABELS):
        assert source.package.count("==") == 1


@pytest.mark.parametrize("size", [(41, 97), (1000, 411), (320, 320)])
def test_views_and_crops_are_frames_of_one_size(pair: ModuleType, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    photo = picture(*size)
    for frame in (pair.view(photo), *(pair.random_crop(photo, rng) for _ in range(50))):
        assert (frame.shape, frame.dtype) == ((320, 320, 3), np.uint8)


def test_a_view_is_the_middle(pair: ModuleType) -> None:
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[6:94, 56:144] = 255
    assert (pair.view(photo) == 255).mean() > 0.97
    photo[7:93, 57:143] = 0
    assert (pair.view(photo) == 0).mean() > 0.9


def test_crops_differ_and_are_the_same_each_time(pair: ModuleType) -> None:
    photo = picture(300, 200)
    first, again = (
        [pair.random_crop(photo, np.random.default_rng(seed)) for seed in range(5)] for _ in "ab"
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not any((first[0] == other).all() for other in first[1:])


def test_data_are_written_in_the_order_of_their_photographs(
    pair: ModuleType, tmp_path: Path
) -> None:
    write_wheels(pair, tmp_path / "wheels")
    assert pair.write_data(tmp_path, 3) == {"ranges": 5, "certificate": 29}
    with np.load(tmp_path / "crops.npz") as crops, np.load(tmp_path / "certificate.npz") as views:
        assert len(crops["images"]) == 3 * len(views["images"]) == 87
        colour = crops["images"].mean((1, 2)).reshape(29, 3, 3)
        spread = np.abs(colour - views["images"].mean((1, 2))[:, None]).mean()
        shuffled = np.abs(np.roll(colour, 7, axis=0) - views["images"].mean((1, 2))[:, None]).mean()
    assert spread < shuffled / 2
    assert (tmp_path / "labels.txt").read_text().splitlines()[:2] == ["class 0", "class 1"]


def test_a_file_that_a_wheel_lacks_is_named(pair: ModuleType, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "foolbox-3.3.4-py3-none-any.whl", "w") as wheel:
        wheel.writestr("foolbox/data/other.jpg", b"")
    source = pair.CERTIFICATE[0]
    with pytest.raises(pair.PairError, match=r"foolbox-3.3.4.*: no file foolbox/data/imagenet_"):
        list(pair.contents(source, tmp_path))
    with pytest.raises(pair.PairError, match=r"no wheel of gradio"):
        list(pair.contents(pair.CERTIFICATE[1], tmp_path))


def test_a_download_that_fails_says_what_pip_said(
    pair: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.sys, "executable", "/bin/false")
    with pytest.raises(pair.PairError, match=r"could not download foolbox==3\.3\.4"):
        pair.download(pair.CERTIFICATE[:1], tmp_path)


def test_the_least_disagreement_is_what_certification_gives(pair: ModuleType) -> None:
    """29 samples that all agree certify 10 %; 28 do not."""
    assert pair.smallest_epsilon(29) < pair.EPSILON < pair.smallest_epsilon(28)
    assert (pair.photos_for(0.01), pair.photos_for(pair.EPSILON)) == (299, 29)
    for n, passes in ((29, True), (28, False)):
        logits = np.eye(7, dtype=np.float32)[np.arange(n) % 7] * 9
        claim = {"epsilon": pair.EPSILON, "delta": pair.DELTA, "method": "harm_only"}
        if passes:
            assert certify(logits, logits, None, **claim).harm == 0
        else:
            with pytest.raises(CertificationRefused):
                certify(logits, logits, None, **claim)


def test_crops_of_a_photograph_stand_together_in_the_error(pair: ModuleType) -> None:
    """Four photographs, two of which agree in all their crops: as uncertain as four samples."""
    agrees = np.repeat([True, False, True, False], 100)
    share = pair.by_photo(agrees, 4)
    assert share.mean == 0.5
    assert share.error == pytest.approx(0.5 / np.sqrt(3))


def test_a_bundle_that_is_there_is_left_alone(pair: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    result = CliRunner().invoke(pair.main, ["--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "exists already" in result.output
    assert not (tmp_path / "wheels").exists()


def write_network(variant: str, path: Path, size: int) -> None:
    """Write a small network in place of the real one: one convolution, and colours decide."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(len(variant))
    width = {"lite0": 4, "lite2": 24}[variant]
    nodes = [
        helper.make_node("Conv", ["input", "a"], ["x"], name="stem", strides=[8, 8]),
        helper.make_node("Relu", ["x"], ["y"], name="act"),
        helper.make_node("GlobalAveragePool", ["y"], ["z"], name="pool"),
        helper.make_node("Flatten", ["z"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "b"], ["logits"], name="head"),
    ]
    # Both see nearly the same colours, so that they agree on most pictures.
    base = np.random.default_rng(3).normal(size=(4, 3, 8, 8)).mean((2, 3), keepdims=True)
    kernel = np.tile(base, (width // 4, 1, 8, 8)) + rng.normal(size=(width, 3, 8, 8)) / 50
    head = np.tile(np.random.default_rng(4).normal(size=(4, 12)), (width // 4, 1)) / width
    weights = {"a": kernel / 20, "b": head * 20}
    graph = helper.make_graph(
        nodes,
        variant,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("n", 3, size, size))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 12))],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.slow
def test_the_whole_runs_on_small_networks(
    pair: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheels(pair, tmp_path / "wheels")
    monkeypatch.setattr(pair, "export", write_network)
    arguments = ["--out", str(tmp_path), "--no-rtx", "--crops", "2", "--max-drop", "60"]
    result = CliRunner().invoke(pair.main, arguments)
    assert result.exit_code == 0, result.output
    assert "29 photographs, one view of each" in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert 1 <= len(report["combinations"]) <= 2, "INT8 only where it is faster here"
    assert report["combinations"]["fp32/fp32"]["large_agrees"] == [1.0, 0.0]
    assert all(value > 0 for value in report["ms_per_image"].values())
    assert (tmp_path / "bundle" / "cascade.json").is_file()


@pytest.mark.slow
def test_the_exported_network_is_the_packaged_one(tmp_path: Path) -> None:
    import onnxruntime as ort
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from engines.onnx_model import load_model
    from savers.efficientnet_lite import export, weights_file

    path = tmp_path / "lite0.onnx"
    export("lite0", path, size=64)
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(weights_file("lite0"))
    )
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"input": images})[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    model = load_model(path)
    assert "Pad" not in model.operators
    assert model.is_dynamic


@pytest.mark.slow
def test_both_networks_build_for_an_rtx_card(pair: ModuleType, tmp_path: Path) -> None:
    """As they are exported, cast to FP16, with a profile for each batch size; none is run."""
    (tmp_path / "models").mkdir()
    for variant, size in (("lite0", 160), ("lite2", 260)):
        model = tmp_path / "models" / f"{variant}.onnx"
        pair.export(variant, model, size)
        onnx.save(to_half(prepare(model)), model)
    (tmp_path / "labels.txt").write_text("\n".join(f"class {k}" for k in range(1000)))
    noise = np.random.default_rng(0).integers(0, 256, (2, pair.SIDE, pair.SIDE, 3), np.uint8)
    np.savez(tmp_path / "ranges.npz", images=noise)
    bundle = tmp_path / "bundle"
    pair.make_bundle(tmp_path, bundle)
    result = run_python(
        *("-m", "engines.build", str(bundle), "--json", "--form", "fp32"),
        *("--target", "sm_89", "--buckets", "1,8"),
        environment={},
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)) == 2
