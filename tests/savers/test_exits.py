"""Exits correct the saver by what the blocks up to them saw, and are trained the same each time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from runtime.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CHANNELS, CLASSES = (5, 7, 3, 9), 4
SIZES = [(8, 0), (8, 1), (32, 1), (32, 2), (48, 3)]


@pytest.fixture
def make_exits():
    """Return exits with weights that matter, heads too."""
    import torch

    from savers.exits import ExitSequence

    def make(width=32, layers=2, *, zeroed=False):
        torch.manual_seed(4)
        exits = ExitSequence(CHANNELS, CLASSES, width=width, layers=layers).eval()
        for head in () if zeroed else exits.heads:
            torch.nn.init.normal_(head.weight)
        return exits

    return make


@pytest.fixture
def data():
    """Return two views of 61 samples; the label shows in the last map."""
    import torch

    from savers.exit_training import Tensors

    rng = np.random.default_rng(3)
    labels = rng.integers(0, CLASSES, 61)
    pooled = [rng.standard_normal((2, 61, count)).astype(np.float32) for count in CHANNELS]
    pooled[-1][..., :CLASSES] += 4 * np.eye(CLASSES)[labels]
    saver = rng.standard_normal((2, 61, CLASSES)).astype(np.float32)
    return Tensors(
        tuple(map(torch.from_numpy, pooled)), torch.from_numpy(saver), torch.from_numpy(labels)
    )


@pytest.fixture
def first(data):
    """Return the first view of all samples: pooled maps and the saver's logits."""
    return [part[0] for part in data.pooled], data.saver[0]


def recipe(**fields):
    from savers.exit_training import ExitRecipe

    given = {"width": 16, "layers": 1, "features": "made up", "epochs": 3, "batch": 16}
    return ExitRecipe(**{**given, **fields})


@pytest.mark.parametrize(("width", "layers"), SIZES)
def test_zeroed_heads_answer_as_the_saver_did(make_exits, first, width, layers):
    pooled, saver = first
    answers = make_exits(width, layers, zeroed=True)(pooled, saver)
    assert answers.shape == (3, 61, CLASSES)
    for answer in answers:
        np.testing.assert_array_equal(answer.detach().numpy(), saver.numpy())


@pytest.mark.parametrize(("width", "layers"), SIZES)
def test_an_exit_does_not_see_the_blocks_after_it(make_exits, first, width, layers):
    import torch

    pooled, saver = first
    exits = make_exits(width, layers)
    before = exits(pooled, saver).detach()
    for position in range(1, len(CHANNELS)):
        changed = [part.clone() for part in pooled]
        changed[position] = torch.flip(changed[position], (0, 1)) - 1
        after = exits(changed, saver).detach()
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        seen = position if layers == 0 else len(CHANNELS)
        assert same == [not position <= number + 1 <= seen for number in range(3)]


@pytest.mark.parametrize("layers", [1, 2])
def test_every_exit_sees_the_saver_and_the_blocks_before_it(make_exits, first, layers):
    import torch

    pooled, saver = first
    exits = make_exits(16, layers)
    before = exits(pooled, saver)
    moved = exits([-pooled[0], *pooled[1:]], saver)
    assert all(not torch.allclose(a, b) for a, b in zip(before, moved, strict=True))


@pytest.mark.parametrize(("width", "layers"), SIZES)
@pytest.mark.parametrize("stops", [(1, 2, 3), (3,), (2, 3), (1, 3)])
def test_exits_one_stage_after_the_other_answer_as_all_at_once(
    make_exits, first, width, layers, stops
):
    from savers.exits import ExitHead

    pooled, saver = first
    exits = make_exits(width, layers)
    whole = exits(pooled, saver).detach()
    earlier, after = pooled[0], 0
    for stop in stops:
        head = ExitHead(exits, stop, after=after)
        logits, earlier = head(earlier, saver, *pooled[after + 1 : stop + 1])
        np.testing.assert_allclose(logits.detach(), whole[stop - 1], rtol=0, atol=1e-5)
        assert earlier.shape == (61, stop + 1, width)
        after = stop


def test_the_loss_is_cross_entropy_weighted_by_what_the_saver_did_not_know(make_exits, data):
    import torch

    from savers.exit_training import exit_loss

    batch = data.batch(torch.zeros(61, dtype=torch.long), torch.arange(61))
    answers = make_exits()(batch.pooled, batch.saver).detach()
    saver, labels = batch.saver.numpy().astype(float), batch.labels.numpy()
    softmax = np.exp(saver) / np.exp(saver).sum(1, keepdims=True)
    weights = 2 * (1 - softmax.max(1))
    expected = 0.0
    for logits in answers.numpy().astype(float):
        entropies = np.log(np.exp(logits).sum(1)) - logits[np.arange(61), labels]
        expected += (weights * entropies).mean()
    assert float(exit_loss(answers, batch)) == pytest.approx(expected, rel=1e-5)


def test_a_sample_that_the_saver_is_sure_of_weighs_nothing():
    import torch

    from savers.exit_training import sample_weights

    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [99.0, 0.0, 0.0, 0.0]])
    assert sample_weights(logits).tolist() == [1.5, 0.0]


def test_a_batch_takes_the_wanted_view_of_each_row(data):
    import torch

    batch = data.batch(torch.tensor([1, 0, 1]), torch.tensor([5, 6, 0]))
    for found, whole in zip((*batch.pooled, batch.saver), (*data.pooled, data.saver), strict=True):
        assert torch.equal(found, torch.stack([whole[1, 5], whole[0, 6], whole[1, 0]]))
    assert torch.equal(batch.labels, data.labels[[5, 6, 0]])


def test_training_lowers_the_loss(data):
    from savers.exit_training import train_exits

    losses: list[float] = []
    train_exits(data, recipe(epochs=40), advance=losses.append)
    assert len(losses) == 40
    assert losses[-1] < 0.7 * losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_one_others(data, tmp_path):
    import torch

    from savers.exit_training import train_exits

    def weights(seed):
        return train_exits(data, recipe(seed=seed)).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["heads.0.weight"], other["heads.0.weight"])


def test_what_was_trained_is_read_again_and_not_trained(data, tmp_path):
    import torch

    from savers.exit_training import trained_exits

    epochs: list[float] = []
    first = trained_exits(tmp_path, data, recipe(), advance=epochs.append)
    again = trained_exits(tmp_path, data, recipe(), advance=epochs.append)
    assert len(epochs) == 3
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("change", [{"epochs": 4}, {"features": "others"}, {"seed": 5}])
def test_exits_of_another_recipe_are_refused(data, tmp_path, change):
    from savers.exit_training import trained_exits

    trained_exits(tmp_path, data, recipe())
    with pytest.raises(InputError, match=r"exits-d16-l1\.pt: expected exits of this recipe"):
        trained_exits(tmp_path, data, dataclasses.replace(recipe(), **change))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_file_of_exits_is_refused(data, tmp_path, content):
    from savers.exit_training import trained_exits

    trained_exits(tmp_path, data, recipe())
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(InputError, match="Delete it to train again"):
        trained_exits(tmp_path, data, recipe())


def test_logits_of_all_exits_are_those_of_the_first_view(make_exits, data, first):
    from savers.exit_training import exit_logits

    exits = make_exits()
    found = exit_logits(exits, data, batch=13)
    np.testing.assert_allclose(found, exits(*first).detach(), rtol=0, atol=1e-5)
