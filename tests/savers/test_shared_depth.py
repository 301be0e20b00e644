"""Networks of shared depth: one set of weights for any number of steps, in torch and as ONNX."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from runtime.errors import InputError
from runtime.host import HostExecutor
from runtime.session import HostModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

STEPS = (3, 7)


@pytest.fixture
def design():
    from savers.depth_design import Design

    return Design("step-randomised", 6, 12, 3, 20)


@pytest.fixture
def network(design):
    import torch

    torch.manual_seed(3)
    return design.images(8, classes=10, patch=4)


@pytest.fixture(scope="module")
def digits():
    from savers.digits import read_digits

    return read_digits()


@pytest.fixture
def recipe():
    from savers.depth_tasks import digits_recipe

    return dataclasses.replace(digits_recipe(5, epochs=2), batch=100)


def pixels(digits, rows):
    from savers.depth_tasks import digits_recipe

    return digits.examples(digits.test, digits_recipe(0)).plain(np.arange(rows))


def logits(network, inputs):
    import torch

    with torch.no_grad():
        return network.eval()(inputs).numpy()


def tensors(network):
    return {name: value.data_ptr() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("partly", [False, True])
def test_any_number_of_steps_has_the_same_tensors(design, partly):
    network = dataclasses.replace(design, partly=partly).images(8, classes=10, patch=4)
    small, large = network.at(1), network.at(97)
    assert tensors(small) == tensors(large) == tensors(network)
    # One block, or that and the two ends; each has two branches with a matrix in and one out.
    matrices = [name for name in tensors(network) if name.startswith(("field", "first", "last"))]
    assert len([name for name in matrices if name.endswith("weight")]) == (18 if partly else 6)


def test_a_change_of_the_weights_changes_all_numbers_of_steps(network, digits):
    import torch

    small, inputs = network.at(2), pixels(digits, 5)
    before = logits(small, inputs)
    with torch.no_grad():
        network.field.network[1].weight.mul_(1.5)
    assert np.abs(logits(small, inputs) - before).max() > 1e-3


def test_steps_scale_the_branches_so_that_the_time_is_kept(network, digits):
    import torch

    inputs = pixels(digits, 5)
    with torch.no_grad():
        state = network.eval().stem(inputs)
        for _ in range(4):
            state = state + 1.5 / 4 * network.field.attention(state)
            state = state + 1.5 / 4 * network.field.network(state)
        expected = network.head(state).numpy()
    assert network.time == 6 / 4
    np.testing.assert_allclose(logits(network.at(4), inputs), expected, atol=1e-5)


def test_steps_left_out_keep_their_size(network, digits):
    import torch

    inputs = pixels(digits, 5)
    with torch.no_grad():
        state = network.field(network.stem(inputs), network.time / 6)
        expected = network.head(state).numpy()
    found = logits(network.at(1, time=network.time / 6), inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("steps", [0, -3, 2.0, True, "4", None])
def test_a_number_of_steps_is_a_whole_number_from_1_on(network, design, steps):
    with pytest.raises(InputError, match="steps: expected a whole number from 1 on, got"):
        network.at(steps)
    with pytest.raises(InputError, match="steps: expected a whole number from 1 on, got"):
        dataclasses.replace(design, steps=steps)


@pytest.mark.parametrize(
    ("training", "time", "draws"),
    [
        ("plain", 12, (12,)),
        ("small-step", 3, (12,)),
        ("step-randomised", 3, (2, 3, 4, 6, 8, 12)),
    ],
)
def test_trainings_differ_in_time_and_in_the_steps_that_are_drawn(design, training, time, draws):
    design = dataclasses.replace(design, training=training, steps=12)
    assert (design.time, design.draws) == (time, draws)
    network = design.images(8, classes=10, patch=4).train()
    vary, rng, taken = design.vary(network), np.random.default_rng(0), []
    network.field.register_forward_hook(lambda *_: taken.append(1))
    seen = set()
    for _ in range(60):
        vary(rng)
        taken.clear()
        network.state(pixels_of_zeros())
        seen.add(len(taken))
    assert seen == {*draws}
    taken.clear()
    network.eval().state(pixels_of_zeros())
    assert len(taken) == 12


def pixels_of_zeros():
    import torch

    return torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"width": 13}, "width 13: expected a multiple of the number of heads, 3"),
        ({"heads": 0}, "expected a multiple of the number of heads, 0"),
    ],
)
def test_a_design_that_cannot_be_is_refused(design, changes, expected):
    with pytest.raises(InputError, match=expected):
        dataclasses.replace(design, **changes)


def test_patches_tile_the_image(design):
    with pytest.raises(InputError, match="patch 3: expected a divisor of the image's side, 8"):
        design.images(8, classes=10, patch=3)


@pytest.mark.parametrize("trained", [False, True], ids=["random field", "trained field"])
def test_halved_steps_halve_the_error(design, digits, recipe, trained):
    from savers.depth_network import euler_errors
    from savers.depth_tasks import digits_network
    from savers.depth_training import Lesson, fit

    design = dataclasses.replace(design, training="small-step", steps=12)
    examples = digits.examples(digits.train, recipe)
    recipe = recipe if trained else dataclasses.replace(recipe, epochs=0)
    network = fit(digits_network, design, Lesson(examples, recipe)).network
    errors = euler_errors(network, pixels(digits, 40), (6, 12, 24))
    for coarse, fine in pairwise(errors):
        assert 1.6 <= coarse / fine <= 2.4


def test_a_language_model_looks_at_no_later_token(design):
    import torch

    network = design.text(9).eval()
    before = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, 9)))
    after = before.clone()
    after[:, 5:] = 255 - after[:, 5:]
    for steps in (1, 6):
        found = [logits(network.at(steps), tokens) for tokens in (before, after)]
        assert found[0].shape == (4, 9, 256)
        np.testing.assert_array_equal(found[0][:, :5], found[1][:, :5])
        assert (np.abs(found[0][:, 5:] - found[1][:, 5:]).max((0, 2)) > 1e-3).all()


def test_training_goes_on_as_if_never_stopped(design, digits, recipe, tmp_path):
    from savers.depth_tasks import digits_network
    from savers.depth_training import Lesson, fit

    class Stop(Exception):
        pass

    def stop(epoch):
        raise Stop

    examples = digits.examples(digits.train, recipe)
    lesson = Lesson(examples, recipe)
    whole = fit(digits_network, design, lesson).network
    kept = tmp_path / "a.ckpt"
    with pytest.raises(Stop):
        fit(digits_network, design, lesson, kept=kept, report=stop)
    resumed = fit(digits_network, design, lesson, kept=kept).network
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def test_a_checkpoint_of_another_recipe_is_refused(design, digits, recipe, tmp_path):
    from savers.depth_tasks import digits_network
    from savers.depth_training import Lesson, fit

    examples, kept = digits.examples(digits.train, recipe), tmp_path / "a.ckpt"
    once = dataclasses.replace(recipe, epochs=1)
    fit(digits_network, design, Lesson(examples, once), kept=kept)
    with pytest.raises(InputError, match=r"a\.ckpt: expected a checkpoint of this recipe"):
        fit(digits_network, design, Lesson(examples, recipe), kept=kept)


def test_designs_have_checkpoints_of_their_own(design, tmp_path):
    from savers.depth_tasks import image_task

    study = image_task("digits", None, epochs=1, seed=0).study(tmp_path, None)
    others = [
        design,
        dataclasses.replace(design, training="plain"),
        dataclasses.replace(design, partly=True),
        dataclasses.replace(design, hidden=21),
        design.dedicated(6),
    ]
    # The control for as many steps is the plain training itself.
    assert len({study.checkpoint(item) for item in others}) == len(others) - 1


@pytest.fixture
def pictures(digits):
    from savers.depth_export import Pictures

    return Pictures("digits", digits.train, tuple("0123456789"), digits.mean, digits.std)


@pytest.fixture
def bundle(network, pictures, tmp_path):
    from savers.depth_export import write_cascade

    return write_cascade(network, pictures, STEPS, tmp_path / "bundle").folder


@pytest.mark.parametrize(("partly", "patch"), [(False, 4), (True, 4), (False, None)])
def test_stages_are_the_network_with_their_steps_over_one_file_of_weights(
    design, digits, pictures, tmp_path, partly, patch
):
    from savers.depth_export import write_cascade

    design = dataclasses.replace(design, partly=partly)
    network = design.images(8, classes=10, patch=patch)
    bundle = write_cascade(network, pictures, STEPS, tmp_path / "bundle").folder
    forms = [stage.forms["fp32"] for stage in load_bundle(bundle).spec.stages]
    assert forms[0].external == forms[1].external
    assert [path.name for path in bundle.rglob("*.bin")] == ["weights.bin"]
    inputs = pixels(digits, 7)
    for steps, form in zip(STEPS, forms, strict=True):
        model = HostModel(bundle / form.file, threads=1)
        found = model.run({"input": inputs.numpy()})["logits"]
        np.testing.assert_allclose(found, logits(network.at(steps), inputs), atol=1e-4)
        # The weights are not in the file: what is left grows with the nodes alone.
        assert (bundle / form.file).stat().st_size < 12_000 * (steps + 2 * partly)


def test_the_file_of_weights_holds_each_tensor_once(network, bundle):
    count = sum(parameter.numel() for parameter in network.parameters())
    (weights,) = bundle.rglob("*.bin")
    # Besides, up to 60 bytes before each of 20 tensors, so that each starts at a multiple of 64.
    assert weights.stat().st_size <= 4 * count + 20 * 60


def test_the_cascade_runs_both_stages_on_the_same_values(network, digits, bundle):
    frames = digits.test.images[:23]
    with Cascade.load(bundle, device="cpu") as cascade:
        results = cascade.run(frames)
    inputs = pixels(digits, 23)
    assert (results.label == logits(network.at(STEPS[1]), inputs).argmax(1)).all()
    executor = HostExecutor(load_bundle(bundle), ["fp32", "fp32"], batch=23, threads=1)
    small, large = (stage.model._weights for stage in executor.stages)
    # Every product of the block and of the stem and head; norms and biases too.
    assert set(small) == set(large)
    assert {"field.network.1.weight", "field.attention.1.inputs.weight"} <= set(small)
    assert all(small[name].data_ptr() == large[name].data_ptr() for name in small)
    for steps, found in zip(STEPS, executor.stage_logits(frames), strict=True):
        np.testing.assert_allclose(found, logits(network.at(steps), inputs), atol=1e-4)


def test_records_name_the_weights_too(digits, bundle, tmp_path):
    from calibration.recorder import bundle_source, record_all
    from calibration.records import Data

    opened = load_bundle(bundle)
    source = bundle_source(opened, ["fp32", "fp32"], threads=1)
    data = Data("test", digits.test.images[:30], digits.test.labels[:30])
    done = record_all([source], data, tmp_path / "records")
    named = [item.record.meta.model_sha256 for item in done]
    forms = [stage.forms["fp32"] for stage in opened.spec.stages]
    assert named == [form.digest for form in forms]
    assert not {*named} & {form.sha256 for form in forms}


def test_a_missing_file_of_weights_is_named(bundle):
    (weights,) = bundle.rglob("*.bin")
    weights.unlink()
    with pytest.raises(Exception, match=r"weights\.bin: not found, but cascade\.json names it"):
        Cascade.load(bundle, device="cpu")


def test_macs_are_those_that_the_bundle_counts(network, bundle):
    from savers.networks import count_macs

    stages = load_bundle(bundle).spec.stages
    found = [count_macs(network.at(steps), (1, 8, 8)) for steps in STEPS]
    assert found == [stage.macs for stage in stages]


def test_a_pool_gets_a_model_with_a_card_for_each_number_of_steps(design, tmp_path):
    import torch

    from calibration.pool import load_pool
    from savers.depth_tasks import digits_recipe, publish_steps
    from savers.depth_training import Fitted

    torch.manual_seed(4)
    network, alone = design.images(28, classes=10), design.dedicated(2)
    shared, control = (Fitted(n, 0.5, 60.0) for n in (network, alone.images(28, classes=10)))
    (tmp_path / "models").mkdir()
    names = publish_steps(shared, (2, 6), tmp_path, design, digits_recipe(7))
    names += publish_steps(control, (2,), tmp_path, alone, digits_recipe(7))
    assert names == ["depth-12-2", "depth-12-6", "depth-12-2-alone"]
    cards = load_pool(tmp_path / "models")
    assert set(cards) == set(names)
    assert {card.parameters for card in cards.values()} == {cards["depth-12-2"].parameters}
    assert cards["depth-12-2"].macs == cards["depth-12-2-alone"].macs < cards["depth-12-6"].macs
    inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 1, 28, 28))).float()
    for steps in (2, 6):
        model = HostModel(tmp_path / "models" / f"depth-12-{steps}.onnx", threads=1)
        found = model.run({"input": inputs.numpy()})["logits"]
        np.testing.assert_allclose(found, logits(network.at(steps), inputs), atol=1e-4)


def test_controls_of_one_number_of_steps_train_for_as_many_blocks(design):
    """Drawing from up to 6 steps runs 1, 2, 3, 4 or 6 blocks: 3.2 in the mean."""
    assert design.draws == (1, 2, 3, 4, 6)
    assert design.epochs_alone(2, 10) == 16  # 10 * 3.2 / 2
    assert design.epochs_alone(6, 10) == 5
    assert design.epochs_alone(6, 1) == 1
