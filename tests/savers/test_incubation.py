"""Modules that are trained apart: what changes, what does not, and what goes on where it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

FAMILIES = ("transformer", "residual")


@pytest.fixture(scope="module")
def split():
    from savers.dataset import Split

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (96, 8, 8, 1)).astype(np.uint8)
    return Split(images, rng.integers(0, 10, 96).astype(np.int32))


def plan(family: str, seed: int = 3):
    from savers.incubation import Plan
    from savers.recipe import Recipe
    from savers.stages import Architecture

    recipe = Recipe(2, seed, batch=32, learning_rate=0.01, monitor_size=0, bfloat16=False)
    architecture = Architecture(family, stages=3, width=8, side=8)
    return Plan(architecture, (2, 1, 2), recipe, recipe, recipe)


@pytest.fixture
def make(split, tmp_path):
    """Return a maker of incubators that share one folder."""
    from savers.incubation import Incubator
    from savers.views import Images

    def incubator(whole, folder: str = "work", **options):
        return Incubator(whole, lambda recipe: Images(split, recipe), tmp_path / folder, **options)

    return incubator


def bits(modules) -> list[bytes]:
    return [
        value.contiguous().numpy().tobytes()
        for module in modules
        for value in module.state_dict().values()
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_module_changes_and_gradients_reach_it_through_frozen_stages(family, split):
    import torch

    from savers.distil import Trainer
    from savers.stages import Chain
    from savers.views import Images

    whole = plan(family)
    torch.manual_seed(0)
    stages = whole.architecture.network([1, 2, 1])
    before = [bits([stage]) for stage in stages]
    Trainer(Chain(stages, [1]), Images(split, whole.module), whole.module).run()
    same = [bits([stage]) == old for stage, old in zip(stages, before, strict=True)]
    assert same == [True, False, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_fits_its_place_whatever_its_depth(family):
    import torch

    from savers.stages import Chain

    architecture = plan(family).architecture
    images = torch.zeros(2, 1, 8, 8)
    for blocks in ([1, 1, 1], [3, 1, 2]):
        assert Chain(architecture.network(blocks)).eval()(images).shape == (2, 10)
    shallow, deep = architecture.network([1, 1, 1]), architecture.network([2, 2, 2])
    assert Chain([shallow[0], deep[1], shallow[2]]).eval()(images).shape == (2, 10)


def test_modules_do_not_depend_on_the_order_in_which_they_are_incubated(make):
    whole = plan("residual")
    forwards, backwards = make(whole, "one"), make(whole, "two")
    found = [forwards.module(place) for place in (0, 1, 2)]
    other = [backwards.module(place) for place in (2, 1, 0)][::-1]
    assert bits(found) == bits(other)
    assert bits([found[1]]) != bits([whole.architecture.stage(1, 1)])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("phase", ["meta", "module-1", "tuning"])
def test_an_interrupted_phase_goes_on_to_the_same_weights(make, phase):
    whole = plan("transformer")
    expected = bits(make(whole, "whole").tuned())

    def shown(name, total):
        def report(epoch):
            if name.startswith(phase):
                raise Interrupted

        return report

    with pytest.raises(Interrupted):
        make(whole, "parts", shown=shown).tuned()
    assert bits(make(whole, "parts").tuned()) == expected


def test_assembly_takes_each_stage_from_its_module(make):
    incubator = make(plan("transformer"))
    meta, modules = incubator.meta, incubator.modules()
    hybrid = incubator.hybrid([0, 2])
    assert bits(hybrid) == bits([modules[0], meta[1], modules[2]])
    assert bits(incubator.hybrid([])) == bits(meta)
    assert bits(incubator.hybrid(range(3))) == bits(modules)
    assert bits(incubator.tuned()) != bits(modules)
    assert bits(incubator.modules()) == bits(modules), "fine-tuning must not touch the modules"


def test_modules_of_another_meta_model_or_plan_are_refused(make):
    from runtime.errors import InputError

    whole = plan("residual")
    make(whole).module(1)
    others = [
        dataclasses.replace(whole, meta=dataclasses.replace(whole.meta, learning_rate=0.02)),
        dataclasses.replace(whole, module=dataclasses.replace(whole.module, seed=9)),
        dataclasses.replace(whole, blocks=(2, 3, 2)),
    ]
    for other in others:
        incubator = make(other)
        for path in incubator.work.glob("meta.ckpt"):
            path.unlink()
        with pytest.raises(InputError, match=r"module-1\.pt: expected a module of this plan"):
            incubator.module(1)


def test_a_damaged_module_is_named(make):
    from runtime.errors import InputError

    incubator = make(plan("residual"))
    incubator.module(0)
    (incubator.work / "module-0.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match=r"module-0\.pt: damaged .* Delete it"):
        make(plan("residual")).module(0)


def test_what_cannot_be_built_is_refused():
    from runtime.errors import InputError
    from savers.stages import Architecture

    with pytest.raises(InputError, match="divisor of the image's side 8, got 3"):
        Architecture("transformer", stages=2, width=8, side=8, patch=3)
    with pytest.raises(InputError, match="expected 4 with a stem of convolutions, got 2"):
        Architecture("transformer", stages=2, width=8, side=8, patch=2, stem="convolutions")
    with pytest.raises(InputError, match="stages: expected 2 or more, got 1"):
        Architecture("residual", stages=1, width=8, side=8)
    for blocks in ([1], [1, 0]):
        with pytest.raises(InputError, match="expected 2 numbers from 1 on"):
            Architecture("residual", stages=2, width=8, side=8).network(blocks)


def test_there_is_no_module_beyond_the_last(make):
    from runtime.errors import InputError

    with pytest.raises(InputError, match="module 3: expected a place from 0 to 2"):
        make(plan("residual")).module(3)


def test_a_meta_model_that_was_trained_already_is_divided_into_stages(make, split):
    import torch

    from runtime.errors import InputError
    from savers.distil import predict
    from savers.stages import Architecture, Chain
    from savers.transformer import vision_transformer
    from savers.views import normalise

    torch.manual_seed(5)
    network = vision_transformer(8, depth=3).eval()
    architecture = Architecture("transformer", stages=3, width=8, side=28, stem="convolutions")
    stages = architecture.divided(network)
    images = normalise(np.tile(split.images[:4], (1, 4, 4, 1))[:, :28, :28])
    assert torch.equal(predict(Chain(stages), images), predict(network, images))
    with pytest.raises(InputError, match=r"expected a transformer of 3 stages .* got another"):
        architecture.divided(vision_transformer(8, depth=2))
    with pytest.raises(InputError, match=r"expected a transformer of 3 stages .* got another"):
        architecture.divided(vision_transformer(16, depth=3))


def test_a_given_meta_model_is_not_trained(make):
    whole = plan("residual")
    given = make(whole, "one").meta
    before = bits(given)
    incubator = make(whole, "two", given=given)
    incubator.module(1)
    assert bits(incubator.meta) == before
    assert list(incubator.seconds) == ["module-1"]
    assert not (incubator.work / "meta.ckpt").exists()


def test_every_phase_tells_its_time_also_when_it_is_found_finished(make):
    incubator = make(plan("residual"))
    incubator.tuned()
    phases = {"meta", "module-0", "module-1", "module-2", "tuning"}
    assert set(incubator.seconds) == phases
    assert min(incubator.seconds.values()) > 0
    again = make(plan("residual"))
    again.tuned()
    assert again.seconds == incubator.seconds


def test_the_control_is_the_deep_network_at_the_cost_of_all_phases(make):
    whole = plan("residual")
    epochs = []

    def shown(name, total):
        return lambda epoch: epochs.append(total)

    stages = make(whole, shown=shown).end_to_end()
    assert epochs == [round(whole.block_epochs / 5)] * len(epochs) and len(epochs) == 8
    assert [len(stage) for stage in stages] == [
        len(stage) for stage in whole.architecture.network(whole.blocks)
    ]


def test_end_to_end_training_may_cost_what_all_phases_cost():
    whole = plan("residual")
    assert whole.block_epochs == 2 * 3 + 2 * (4 + 3 + 4) + 2 * 5


@pytest.fixture
def job(split, tmp_path, monkeypatch):
    import torch

    from runtime.terminal import progress_bar
    from savers import incubation_job, workshop
    from savers.workshop import Workshop

    whole = incubation_job.INCUBATIONS["residual"]
    small = dataclasses.replace(whole, plan=plan("residual"))
    monkeypatch.setitem(incubation_job.INCUBATIONS, "small", small)
    monkeypatch.setattr(workshop, "HELD_BACK", 32)
    answers = torch.zeros(len(split.labels), 10)
    shop = Workshop(split, tmp_path, tmp_path, 1, progress_bar())
    return incubation_job.Job.prepared("small", shop, answers)


def test_meta_model_hybrids_and_assembled_network_are_written_with_cards(job, tmp_path):
    from calibration.pool import load_pool
    from savers.incubation_job import described
    from savers.workshop import write_model

    assert job.run("meta", hybrids=False) == []
    assert job.run("module-2", hybrids=False) == []
    assert (job.incubator.work / "module-2.pt").exists()
    made = job.run("assemble", hybrids=True)
    assert [item.name for item in made[:2]] == ["small-meta", "small-deep"]
    assert made[1].before is not None and made[1].seconds > made[0].seconds > 0
    (control,) = job.run("end-to-end", hybrids=False)
    assert control.name == "small-end-to-end" and control.seconds > 0
    assert {item.name for item in made[2:]} == {
        f"small-{bits}" for bits in ("001", "010", "011", "100", "101", "110")
    }
    (tmp_path / "models").mkdir()
    for item in made[:2]:
        write_model(item, tmp_path, recipe=described("small"), seed=3)
    cards = load_pool(tmp_path / "models")
    assert cards["small-meta"].macs < cards["small-deep"].macs
    assert cards["small-deep"].recipe["blocks"] == [2, 1, 2]


def test_images_that_are_held_back_are_in_no_phase(job, split):
    seen = job.incubator.examples(job.incubator.plan.meta).plain(np.arange(64)).numpy()
    known = {row.tobytes() for row in seen}
    from savers.views import normalise

    held = normalise(job.held_back.images).numpy()
    assert len(held) == 32
    assert not known & {row.tobytes() for row in held}


def test_unknown_steps_are_named():
    from click.testing import CliRunner

    from savers.incubate import main

    result = CliRunner().invoke(main, ["residual", "module-7", "assemble"])
    assert result.exit_code == 1
    assert "module-7: unknown; expected some of meta, module-0" in result.output


def test_the_experiment_runs_from_end_to_end():
    import json

    from click.testing import CliRunner

    from savers.reproduce import main

    result = CliRunner().invoke(main, ["incubation", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["quick"] is True
    assert [verdict["bar"] for verdict in found["verdicts"]] == [">= 60 %", ">= 20 points"]
    networks = [row["network"] for row in found["figures"][0]["rows"]]
    assert {"meta model", "assembled", "fine-tuned", "end to end"} <= set(networks)
