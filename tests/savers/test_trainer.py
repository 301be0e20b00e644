"""What a step of training is, and that going on from a checkpoint changes nothing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from runtime.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def split():
    from savers.dataset import Split

    rng = np.random.default_rng(5)
    labels = np.arange(47, dtype=np.int32) % 10
    return Split(rng.integers(0, 256, (47, 8, 8, 1)).astype(np.uint8), labels)


@pytest.fixture
def recipe():
    from savers.recipe import Recipe

    return Recipe(epochs=3, seed=7, batch=16, monitor_size=0, learning_rate=0.01, bfloat16=False)


def network(seed: int = 3, width: int = 8):
    import torch

    from savers.transformer import patch_transformer

    torch.manual_seed(seed)
    return patch_transformer(8, patch=4, width=width, depth=2)


def images(split, recipe):
    from savers.views import Images

    return Images(split, recipe)


def assert_same(a, b) -> None:
    for name, value in a.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), b.state_dict()[name].numpy(), err_msg=name)


def test_an_epoch_is_the_loop_that_its_recipe_describes(split, recipe):
    """Plain SGD with momentum on shifted images, written out."""
    import torch

    from savers.distil import Trainer
    from savers.views import normalise

    recipe = dataclasses.replace(
        recipe, epochs=1, mirror=False, weight_decay=0.0, teacher_weight=0.5, temperature=3.0
    )
    teacher = torch.from_numpy(np.random.default_rng(8).normal(size=(47, 10)).astype(np.float32))
    trained = Trainer(network(), images(split, recipe), recipe, teacher=teacher).run()

    expected, rng = network(), np.random.default_rng(recipe.seed)
    order = rng.permutation(rng.permutation(47))
    momenta = [torch.zeros_like(value) for value in expected.parameters()]
    for step in range(2):
        rows = order[16 * step : 16 * step + 16]
        padded = np.pad(split.images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        places = [divmod(int(view) // 2, 3) for view in rng.integers(0, 18, 16)]
        shifted = [
            padded[row, y : y + 8, x : x + 8] for row, (y, x) in zip(rows, places, strict=True)
        ]
        logits = expected(normalise(np.stack(shifted)))
        answers = (teacher[rows] / 3).softmax(1)
        labels = torch.from_numpy(split.labels[rows]).long()
        hard = -logits.log_softmax(1)[torch.arange(16), labels].mean()
        soft = (answers * (answers.log() - (logits / 3).log_softmax(1))).sum(1).mean()
        gradients = torch.autograd.grad(0.5 * hard + 0.5 * 9 * soft, list(expected.parameters()))
        # Two steps: the rate has risen at the first, and has yet to fall at the second.
        rate = recipe.learning_rate
        with torch.no_grad():
            for value, momentum, gradient in zip(
                expected.parameters(), momenta, gradients, strict=True
            ):
                momentum.mul_(0.9).add_(gradient)
                value.sub_(rate * (gradient + 0.9 * momentum))
    for a, b in zip(trained.parameters(), expected.parameters(), strict=True):
        # Two steps in float32, with sums in another order.
        np.testing.assert_allclose(a.detach(), b.detach(), atol=1e-5)


class Stop(Exception):
    pass


def stop_after_one(epoch) -> None:
    raise Stop


def both_ways(make, kept):
    """Return what a training gives whole, and stopped after an epoch and gone on with."""
    whole = make().run()
    with pytest.raises(Stop):
        make().run(kept, stop_after_one)
    epochs = []
    resumed = make().run(kept, epochs.append)
    assert [epoch.number for epoch in epochs] == [2, 3]
    return whole, resumed


def test_training_with_everything_goes_on_as_if_never_stopped(split, recipe, tmp_path):
    from savers.distil import Trainer

    recipe = dataclasses.replace(
        recipe,
        optimiser="adamw",
        cutout=3,
        bfloat16=True,
        teacher_weight=0.7,
        hidden_weight=0.5,
        average=0.9,
        gatekeeper=0.4,
        monitor_size=9,
    )

    def make():
        return Trainer(
            network(),
            images(split, recipe),
            recipe,
            teacher=network(4),
            hidden=[("2", "2"), ("3.attention", "3.attention")],
        )

    assert_same(*both_ways(make, tmp_path / "a.ckpt"))


def test_what_a_network_varies_goes_on_as_if_never_stopped(split, recipe, tmp_path):
    from savers.distil import Trainer

    drawn = []

    def make():
        model = network()

        def vary(rng):
            drawn.append(int(rng.integers(1, 100)))
            model[2].network[0].eps = 1e-3 * drawn[-1]

        return Trainer(model, images(split, recipe), recipe, vary=vary)

    assert_same(*both_ways(make, tmp_path / "a.ckpt"))
    assert drawn[:6] == drawn[6:] and len(set(drawn[:6])) > 1


def test_tokens_are_learned_one_label_each(recipe, tmp_path):
    import torch
    from torch import nn

    from savers.distil import Trainer
    from savers.views import Sequences

    # The token after is the token plus one: an embedding and a matrix suffice.
    tokens = np.random.default_rng(1).integers(0, 7, (64, 5))
    recipe = dataclasses.replace(recipe, epochs=60, monitor_size=10, optimiser="adamw")

    def make():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Embedding(7, 12), nn.Linear(12, 7))
        return Trainer(model, Sequences(tokens, (tokens + 1) % 7), recipe)

    trainer = make()
    trainer.run()
    assert trainer.monitored_accuracy == 1.0


def test_frozen_parameters_stay(split, recipe):
    from savers.distil import Trainer

    model, before = network(), network()
    for part in (model[0], model[3]):
        part.requires_grad_(False)
    Trainer(model, images(split, recipe), recipe).run()
    assert_same(before[0], model[0])
    assert_same(before[3], model[3])
    assert not np.array_equal(
        before[2].network[1].weight.detach(), model[2].network[1].weight.detach()
    )


def test_the_average_is_a_running_mean(split, recipe):
    from savers.distil import Trainer

    seen = []
    recipe = dataclasses.replace(recipe, epochs=2, average=0.9)
    plain = dataclasses.replace(recipe, average=0.0)
    model = network()

    def vary(rng):
        seen.append(model[6].weight.detach().numpy().copy())

    trained = Trainer(model, images(split, recipe), recipe, vary=vary).run()
    last = Trainer(network(), images(split, plain), plain).run()
    expected, *weights = [*seen, last[6].weight.detach().numpy()]
    for step, weight in enumerate(weights):
        decay = (2 + step) / (11 + step)
        expected = decay * expected + (1 - decay) * weight
    np.testing.assert_allclose(trained[6].weight.detach(), expected, atol=1e-6)


def test_hidden_states_draw_towards_the_teachers(split, recipe):
    import torch

    from savers.distil import Trainer
    from savers.losses import ask, hidden_loss

    recipe = dataclasses.replace(recipe, epochs=20, hidden_weight=10.0, optimiser="adamw")
    student, teacher = network(), network(4)
    inputs = images(split, recipe).plain(np.arange(47))

    def apart() -> float:
        with torch.no_grad():
            pair = (ask(model, inputs, ["3"]).hidden for model in (student, teacher))
            return float(hidden_loss(*pair))

    before = apart()
    Trainer(student, images(split, recipe), recipe, teacher=teacher, hidden=[("3", "3")]).run()
    assert apart() < 0.5 * before


def test_gatekeeper_by_hand():
    import torch

    from savers.losses import gatekeeper_loss

    # Probabilities 0.8, 0.2 twice: right once (CE -log 0.8), wrong once (KL to uniform).
    logits = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()
    divergence = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    expected = (0.3 * -math.log(0.8) + 0.7 * divergence) / 2
    found = gatekeeper_loss(logits, torch.tensor([0, 1]), 0.3)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_a_checkpoint_from_before_a_field_existed_is_still_good(split, recipe, tmp_path):
    import torch

    from savers.distil import Trainer

    def make():
        return Trainer(network(), images(split, recipe), recipe)

    whole = make().run()
    with pytest.raises(Stop):
        make().run(tmp_path / "a.ckpt", stop_after_one)
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for name in ("hidden_weight", "average", "gatekeeper"):
        del state["recipe"][name]
    del state["hidden"], state["averaged"]
    torch.save(state, tmp_path / "a.ckpt")
    assert_same(whole, make().run(tmp_path / "a.ckpt"))


def test_a_damaged_checkpoint_and_one_of_another_network_are_refused(split, recipe, tmp_path):
    from savers.distil import Trainer

    kept = tmp_path / "a.ckpt"
    Trainer(network(), images(split, recipe), recipe).run(kept)
    with pytest.raises(InputError, match="expected a checkpoint of this network"):
        Trainer(network(width=12), images(split, recipe), recipe).run(kept)
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"a\.ckpt: .* damaged"):
        Trainer(network(), images(split, recipe), recipe).run(kept)
    kept.write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.ckpt: .* damaged"):
        Trainer(network(), images(split, recipe), recipe).run(kept)


def test_a_teacher_with_other_classes_is_refused(split, recipe):
    import torch

    from savers.distil import Trainer

    recipe = dataclasses.replace(recipe, teacher_weight=0.5)
    trainer = Trainer(network(), images(split, recipe), recipe, teacher=torch.zeros(47, 100))
    with pytest.raises(InputError, match="network's 10 classes, got 100"):
        trainer.run()


def test_hidden_states_of_another_width_or_name_are_refused(split, recipe):
    from savers.distil import Trainer

    recipe = dataclasses.replace(recipe, hidden_weight=0.5)

    def run(pair) -> None:
        Trainer(
            network(), images(split, recipe), recipe, teacher=network(4, 12), hidden=[pair]
        ).run()

    with pytest.raises(InputError, match=r"expected the teacher's \[16, 4, 12\], got \[16, 4, 8\]"):
        run(("2", "2"))
    with pytest.raises(InputError, match="'neck'"):
        run(("neck", "2"))


def test_fewer_samples_than_a_batch_are_refused(split, recipe):
    from savers.distil import Trainer

    with pytest.raises(InputError, match="47 samples: expected at least a batch of 16 besides 40"):
        few = dataclasses.replace(recipe, monitor_size=40)
        Trainer(network(), images(split, few), few)


def test_digits_are_cut_the_same_way_each_time():
    from savers.digits import read_digits

    first, second = read_digits(), read_digits()
    assert (first.train.images.shape, first.test.images.shape) == ((1297, 8, 8, 1), (500, 8, 8, 1))
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert first.train.images.max() == 240
    together = np.concatenate([first.train.labels, first.test.labels])
    assert np.bincount(together).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(first.test.labels).min() >= 40
