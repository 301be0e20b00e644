"""The training loop on a few images: needs torch, so it belongs to the long jobs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import demo_folder
from runtime.images import load_arrays
from runtime.session import HostModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def split():
    from savers.dataset import Split

    images, labels = load_arrays(demo_folder() / "data" / "selection.npz")
    return Split(images[:1500], labels[:1500])


@pytest.fixture
def recipe():
    from savers.recipe import Recipe

    return Recipe(epochs=4, seed=7, batch=64, monitor_size=300, learning_rate=0.05)


def fit(split, recipe, checkpoint: Path, *, teacher=None, network="tiny"):
    import torch

    from savers.distil import Trainer
    from savers.networks import NETWORKS
    from savers.views import Images

    torch.manual_seed(recipe.seed)
    epochs = []
    trainer = Trainer(NETWORKS[network](), Images(split, recipe), recipe, teacher=teacher)
    trained = trainer.run(checkpoint, epochs.append)
    return trained, trainer, epochs


def weights(network) -> list[np.ndarray]:
    return [value.numpy() for value in network.state_dict().values()]


def test_training_learns_from_labels(split, recipe, tmp_path):
    _, trainer, epochs = fit(split, recipe, tmp_path / "a.ckpt")
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[-1].loss < epochs[0].loss
    # 300 monitor images, ten classes: chance is 0.1 with a standard error of 0.02.
    assert trainer.monitored_accuracy > 0.4


def test_what_a_model_was_monitored_on_is_held_back_from_what_continues_it(
    split, recipe, monkeypatch
):
    from savers import workshop
    from savers.distil import Trainer
    from savers.networks import NETWORKS
    from savers.views import Images

    monkeypatch.setattr(workshop, "HELD_BACK", recipe.monitor_size)
    trainer = Trainer(NETWORKS["tiny"](), Images(split, recipe), recipe)
    held, rest = workshop.held_back(split, recipe)
    np.testing.assert_array_equal(held, trainer._monitor)
    np.testing.assert_array_equal(rest, trainer._rows)


def test_the_time_of_several_trainings_is_known_if_that_of_each_is():
    from savers.distil import total_seconds

    assert total_seconds([]) == 0
    assert total_seconds([2.0, 0.0, 3.5]) == 5.5
    assert total_seconds([2.0, None]) is None


def test_training_tells_its_time_over_interruptions(split, recipe, tmp_path):
    import torch

    from savers import checkpoint

    kept = tmp_path / "a.ckpt"
    _, trainer, _ = fit(split, recipe, kept)
    assert trainer.seconds > 0
    _, again, epochs = fit(split, recipe, kept)
    assert not epochs and again.seconds == trainer.seconds
    # Two of four epochs are from before epochs were timed.
    state = torch.load(kept, weights_only=True)
    state.pop("recipe")
    checkpoint.save(kept, recipe, {**state, "seconds": [1.0, 3.0]})
    assert fit(split, recipe, kept)[1].seconds == 8.0
    checkpoint.save(kept, recipe, {**state, "seconds": []})
    assert fit(split, recipe, kept)[1].seconds is None


def test_training_learns_from_a_teacher_alone(split, recipe, tmp_path):
    import torch

    wrong = dataclasses.replace(recipe, teacher_weight=1.0)
    teacher = 12.0 * torch.nn.functional.one_hot(torch.from_numpy(split.labels).long(), 10)
    liar = split._replace(labels=(split.labels + 1) % 10)
    _, trainer, _ = fit(liar, wrong, tmp_path / "a.ckpt", teacher=teacher.float())
    assert trainer.monitored_accuracy < 0.1


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(split, recipe, tmp_path):
    whole, _, _ = fit(split, recipe, tmp_path / "whole.ckpt")

    class Stop(Exception):
        pass

    from savers.distil import Trainer
    from savers.networks import NETWORKS
    from savers.views import Images

    def stop_after_two(epoch):
        if epoch.number == 2:
            raise Stop

    import torch

    torch.manual_seed(recipe.seed)
    interrupted = Trainer(NETWORKS["tiny"](), Images(split, recipe), recipe)
    with pytest.raises(Stop):
        interrupted.run(tmp_path / "cut.ckpt", stop_after_two)
    resumed, _, epochs = fit(split, recipe, tmp_path / "cut.ckpt")
    assert [epoch.number for epoch in epochs] == [3, 4]
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_patience_ends_training(split, recipe, tmp_path):
    hopeless = dataclasses.replace(recipe, epochs=30, learning_rate=0.0, patience=2)
    _, _, epochs = fit(split, hopeless, tmp_path / "a.ckpt")
    assert len(epochs) < 30


def test_exported_onnx_gives_the_logits_of_the_network(split, recipe, tmp_path):
    import torch

    from savers.distil import predict
    from savers.views import normalise
    from savers.workshop import export_onnx

    network, _, _ = fit(split, dataclasses.replace(recipe, epochs=1), tmp_path / "a.ckpt")
    (tmp_path / "a.onnx").write_bytes(export_onnx(network))
    model = HostModel(tmp_path / "a.onnx", threads=1)
    for rows in (1, 5):
        pixels = normalise(split.images[:rows])
        found = model.run({"input": pixels.numpy()})["logits"]
        with torch.no_grad():
            expected = predict(network, pixels).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_macs_of_the_zoo_are_what_its_cards_say():
    import onnx

    from calibration.pool import load_pool
    from engines.macs import count_macs as count_nodes
    from savers.catalogue import ZOO
    from savers.networks import NETWORKS, count_macs

    folder = demo_folder() / "models"
    pool = load_pool(folder)
    for name, card in pool.items():
        if name in ZOO:
            assert count_macs(NETWORKS[ZOO[name].network]()) == card.macs, name
        else:
            graph = onnx.load(folder / card.file)
            assert count_nodes(graph, {"input": (1, 1, 28, 28)}).total == card.macs, name
    assert pool["tiny"].macs <= 300_000
    assert 1e6 <= pool["middle"].macs <= 4e6
    assert 50e6 <= pool["large"].macs <= 60e6


def test_macs_by_hand():
    from torch import nn

    from savers.networks import count_macs

    network = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Flatten(), nn.Linear(2 * 14 * 14, 5))
    assert count_macs(network) == 2 * 14 * 14 * 9 + 2 * 14 * 14 * 5


def test_a_student_needs_both_teacher_and_weight(split, recipe):
    from savers.distil import Trainer
    from savers.networks import NETWORKS
    from savers.views import Images

    pupil = dataclasses.replace(recipe, teacher_weight=0.5)
    with pytest.raises(ValueError, match="go together"):
        Trainer(NETWORKS["tiny"](), Images(split, recipe), pupil)


def test_views_shift_and_mirror():
    from savers.views import MEAN, STD, Views

    image = np.arange(784, dtype=np.uint64).astype(np.uint8).reshape(1, 28, 28, 1)
    views = Views(image, 1)
    assert views.count == 18
    plain = views.pixels(np.array([0]), np.array([8]))[0, 0].numpy() * STD + MEAN
    np.testing.assert_allclose(255 * plain, image[0, :, :, 0], atol=1e-3)
    mirrored = views.pixels(np.array([0]), np.array([9]))[0, 0].numpy() * STD + MEAN
    np.testing.assert_allclose(255 * mirrored, image[0, :, ::-1, 0], atol=1e-3)
    shifted = views.pixels(np.array([0]), np.array([0]))[0, 0].numpy() * STD + MEAN
    np.testing.assert_allclose(255 * shifted[1:, 1:], image[0, :-1, :-1, 0], atol=1e-3)
    assert np.abs(shifted[0]).max() < 1e-6


def test_teacher_logits_are_the_mean_over_an_image_and_its_mirror_image(split):
    import torch

    from savers.distil import predict, teacher_logits
    from savers.networks import NETWORKS
    from savers.views import normalise

    torch.manual_seed(3)
    network = NETWORKS["tiny"]()
    images = split.images[:9]
    found = teacher_logits(network, images).numpy()
    both = predict(network, normalise(images)) + predict(network, normalise(images[:, :, ::-1]))
    # bfloat16 keeps 8 bits: a relative error of 2^-8 per layer, four layers.
    np.testing.assert_allclose(found, both.numpy() / 2, atol=0.05)
