"""``python -m savers.kronecker`` on a few images."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.pool import load_pool
from runtime.bundle import demo_folder
from runtime.images import load_arrays
from runtime.session import HostModel

pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return the program with a network that was trained for one step on 600 images."""
    import dataclasses

    import torch

    from savers import kronecker, workshop
    from savers.catalogue import ZOO
    from savers.dataset import Split
    from savers.distil import Trainer
    from savers.networks import NETWORKS
    from savers.views import Images

    images, labels = load_arrays(demo_folder() / "data" / "selection.npz")
    split = Split(images[:600], labels[:600])
    monkeypatch.setattr(workshop, "HELD_BACK", 100)
    monkeypatch.setattr(kronecker, "read_fashion_mnist", lambda folder: (split, split))
    monkeypatch.setattr(kronecker, "split_training_images", lambda full: {"train": full})
    recipe = dataclasses.replace(
        ZOO["vit-64"].recipe, epochs=1, monitor_size=50, teacher_weight=0.0, bfloat16=False
    )
    monkeypatch.setitem(ZOO, "vit-64", dataclasses.replace(ZOO["vit-64"], recipe=recipe))
    torch.manual_seed(1)
    Trainer(NETWORKS["vit-64"](), Images(split, recipe), recipe).run(tmp_path / "vit-64.ckpt")
    (tmp_path / "out" / "models").mkdir(parents=True)

    def invoke(*arguments: str):
        places = ("--checkpoint", tmp_path / "vit-64.ckpt", "--out", tmp_path / "out")
        work = ("--work", tmp_path / "work", "--epochs", "1", "--restarts", "0")
        whole = ["vit-64", *(str(item) for item in (*places, *work)), *arguments]
        return CliRunner().invoke(kronecker.main, whole)

    return invoke


def test_a_factored_model_is_written_with_a_card_factored_and_merged(run, tmp_path):
    chosen = ("--macs", "7800000", "--modules", "5.network.*", "--json")
    results = [
        run(*chosen, "--name", "factored", "--by-block", "--hidden-weight", "1"),
        run(*chosen, "--name", "merged", "--merged", "--by-block", "--hidden-weight", "1"),
    ]
    for result in results:
        assert result.exit_code == 0, result.output
    summary = json.loads(results[0].stdout)
    assert summary["macs"] <= 7_800_000 < summary["dense_macs"] == 8_132_288
    assert summary["parameters"] < summary["dense_parameters"] == 147_258
    pool = load_pool(tmp_path / "out" / "models")
    assert pool["factored"].macs == summary["macs"] and pool["merged"].macs == 8_132_288
    assert pool["factored"].recipe["teacher"] == "vit-64"
    assert list(pool["factored"].recipe["factors"]) == ["5.network.1", "5.network.3"]
    pixels = np.random.default_rng(1).normal(size=(3, 1, 28, 28)).astype(np.float32)
    logits = [
        HostModel(tmp_path / "out" / "models" / f"{name}.onnx", threads=1).run({"input": pixels})
        for name in ("factored", "merged")
    ]
    np.testing.assert_allclose(logits[0]["logits"], logits[1]["logits"], atol=1e-4)


@pytest.mark.parametrize("option", [("--by-block",), ("--hidden-weight", "1")])
def test_a_control_refuses_options_of_factoring(run, option):
    result = run("--macs", "7800000", "--control", "layers-dropped", *option)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "--control layers-dropped: expected neither --by-block nor" in result.output


def test_layers_are_dropped_of_transformers_alone():
    from runtime.errors import InputError
    from savers.kronecker_controls import layers_dropped
    from savers.kronecker_model import Order, recipe
    from savers.kronecker_network import Search
    from savers.kronecker_plan import Budget
    from savers.networks import NETWORKS

    order = Order("resnet-8", "*", Budget(macs=1), Search(), recipe(1, 1, 0.0), False)
    with pytest.raises(InputError, match="at least 2 blocks, resnet-8 has 0"):
        layers_dropped(order, NETWORKS["resnet-8"](), None)


def test_an_unknown_model_is_named():
    from savers import kronecker

    result = CliRunner().invoke(kronecker.main, ["vit-65", "--macs", "1"])
    assert result.exit_code == 1
    assert "vit-65: unknown; expected one of teacher, tiny" in result.output


@pytest.mark.parametrize("package", ["torch", "scipy"])
def test_a_missing_package_is_named_with_its_extra(package):
    program = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['kronecker', 'a', '--macs', '1']"
        "; from savers.kronecker import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"kronecker needs {package}, which is not installed" in result.stderr
    assert "tinysaver-runtime[train]" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --macs or --parameters, got neither"),
        (("--macs", "1000"), "1000 multiply-accumulates: cannot be met by factoring"),
        (("--macs", "7000000", "--modules", "neck*"), "expected a pattern of some of"),
        (
            ("--macs", "7000000", "--checkpoint", "none.ckpt"),
            "none.ckpt: not found. Train the model first, python -m savers.train zoo vit-64",
        ),
    ],
)
def test_what_cannot_be_done_is_said(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("control", ["scratch", "layers-dropped"])
def test_a_control_costs_what_the_factored_network_costs(run, tmp_path, control):
    """Which is one epoch of factors, and for scratch the epoch of the dense network too."""
    chosen = ("--macs", "7800000", "--modules", "5.network.*", "--control", control, "--json")
    result = run(*chosen)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    card = load_pool(tmp_path / "out" / "models")[f"vit-64-kronecker-{control}"]
    assert card.macs == summary["macs"] and card.recipe["method"] == control
    assert card.recipe["epochs"] == 2
    if control == "layers-dropped":
        assert card.macs < 8_132_288 / 1.5
    else:
        assert 7_700_000 < card.macs <= 7_800_000
