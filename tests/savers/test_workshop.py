"""The zoo's models: trained once, published with a card, left alone from then on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.pool import load_pool
from runtime.bundle import demo_folder
from runtime.errors import InputError
from runtime.images import load_arrays

pytestmark = pytest.mark.slow


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch):
    """Return the catalogue, cut to networks and recipes of a second."""
    from savers import workshop
    from savers.catalogue import Model
    from savers.recipe import Recipe

    recipe = Recipe(epochs=2, seed=7, batch=64, monitor_size=300, learning_rate=0.05)
    learning = dataclasses.replace(recipe, teacher_weight=0.9)
    models = {
        "teacher": Model("tiny", recipe, published=False),
        "large": Model("tiny", learning, "teacher"),
        "strided-8": Model("strided-8", learning, "large"),
        "separable-16": Model("separable-16", learning, "large"),
    }
    monkeypatch.setattr(workshop, "ZOO", models)
    return models


@pytest.fixture
def shop(zoo, tmp_path) -> Callable[[], Any]:
    from runtime.terminal import progress_bar
    from savers.dataset import Split
    from savers.workshop import Workshop

    images, labels = load_arrays(demo_folder() / "data" / "selection.npz")
    split = Split(images[:900], labels[:900])
    (tmp_path / "zoo" / "models").mkdir(parents=True)

    def make():
        return Workshop(split, tmp_path / "work", tmp_path / "zoo", 2, progress_bar())

    return make


def bits(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


def test_models_are_trained_after_their_teachers_and_published_once(zoo, shop, tmp_path):
    everything = [name for name in zoo if zoo[name].published]
    made = shop()
    assert made.make(everything) == everything
    cards = load_pool(tmp_path / "zoo" / "models")
    assert set(cards) == set(everything)
    assert cards["separable-16"].recipe["teacher"] == "large"
    first = bits(tmp_path / "zoo" / "models")
    assert shop().make(everything) == []
    assert bits(tmp_path / "zoo" / "models") == first


def test_a_changed_recipe_is_trained_again_but_not_from_its_old_checkpoint(zoo, shop, monkeypatch):
    assert shop().make(["large"]) == ["large"]
    changed = dataclasses.replace(zoo["large"].recipe, weight_decay=0.1)
    monkeypatch.setitem(zoo, "large", dataclasses.replace(zoo["large"], recipe=changed))
    with pytest.raises(InputError, match=r"large\.ckpt: expected a checkpoint of this recipe"):
        shop().make(["large"])


def test_a_pupil_needs_its_published_teacher(shop):
    with pytest.raises(InputError, match=r"python -m savers\.train zoo large"):
        shop().make(["strided-8"])


def test_weights_do_not_depend_on_how_many_are_trained_at_a_time(zoo, shop, tmp_path):
    shop().make(["large", "strided-8", "separable-16"])
    together = (tmp_path / "zoo" / "models" / "strided-8.onnx").read_bytes()
    for path in (tmp_path / "work").glob("*.ckpt"):
        path.unlink()
    alone = shop()
    alone.threads = 1
    alone.make(["strided-8"], force=True)
    assert (tmp_path / "zoo" / "models" / "strided-8.onnx").read_bytes() == together


def test_a_failure_stops_the_other_models(zoo, shop, monkeypatch):
    from savers import workshop

    shop().make(["large"])
    monkeypatch.setitem(
        workshop.NETWORKS, "strided-8", lambda: (_ for _ in ()).throw(OSError("disk"))
    )
    slow = dataclasses.replace(zoo["separable-16"].recipe, epochs=10_000, patience=10_000)
    monkeypatch.setitem(zoo, "separable-16", dataclasses.replace(zoo["separable-16"], recipe=slow))
    with pytest.raises(OSError, match="disk"):
        shop().make(["separable-16", "strided-8"])


def test_published_answers_are_the_mean_over_an_image_and_its_mirror_image(shop):
    from runtime.session import HostModel
    from savers.views import normalise

    made = shop()
    made.make(["large"])
    images = made.training.images
    model = HostModel(made.out / "models" / "large.onnx", threads=1)
    views = (images[3:4], images[3:4, :, ::-1])
    expected = [model.run({"input": normalise(view).numpy()})["logits"] for view in views]
    found = made.answers("large")[3:4].numpy()
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-5)


def test_cards_of_the_zoo_say_what_the_catalogue_says():
    from savers.catalogue import ZOO
    from savers.incubation_job import described
    from savers.origins import METHODS

    pool = load_pool(demo_folder() / "models")
    for name in pool.keys() & ZOO.keys():
        assert ZOO[name].matches(pool[name].recipe), name
        assert pool[name].seed == ZOO[name].recipe.seed
    # The others are of a method, each with all of its controls.
    assert pool.keys() - ZOO.keys() == {
        name for made in METHODS for name in (made.model, *made.controls)
    }
    said = json.loads(json.dumps(described("transformer")))
    for name in ("transformer-deep", "transformer-end-to-end"):
        assert pool[name].recipe == said
    seeds = [model.recipe.seed for model in ZOO.values()]
    assert len(set(seeds)) == len(seeds)


def test_a_model_is_continued_from_a_finished_training_alone(zoo, tmp_path):
    from savers import checkpoint
    from savers.networks import NETWORKS
    from savers.workshop import trained_network

    kept, recipe = tmp_path / "strided-8.ckpt", zoo["strided-8"].recipe
    state = {"network": NETWORKS["strided-8"]().state_dict(), "averaged": None}
    checkpoint.save(kept, recipe, {**state, "accuracies": [0.5]})
    with pytest.raises(InputError, match="expected a finished training, got one of 1 of 2 epochs"):
        trained_network("strided-8", kept)
    checkpoint.save(kept, recipe, {**state, "accuracies": [0.5, 0.6]})
    assert not trained_network("strided-8", kept).training


def test_a_vision_transformer_counts_its_attention():
    from savers.networks import NETWORKS, count_macs

    stem = 14 * 14 * 9 * 16 + 49 * 9 * 16 * 64
    block = 49 * (4 * 64 * 64 + 2 * 64 * 128) + 2 * 49 * 49 * 64
    assert count_macs(NETWORKS["vit-64"]()) == stem + 4 * block + 64 * 10


def test_exported_graphs_compute_no_shapes_and_cost_what_their_networks_count():
    import onnx

    from engines.macs import count_macs as count_nodes
    from savers.networks import NETWORKS, count_macs
    from savers.workshop import export_onnx

    for name in ("vit-64", "separable-16", "plain-16", "strided-8", "resnet-8"):
        network = NETWORKS[name]()
        graph = onnx.load_from_string(export_onnx(network))
        assert not {"Shape", "Gather", "Expand"} & {node.op_type for node in graph.graph.node}
        assert count_nodes(graph, {"input": (1, 1, 28, 28)}).total == count_macs(network), name


def test_separable_convolutions_count_each_channel_once():
    from savers.networks import count_macs, separable_conv

    assert count_macs(separable_conv(8, 16), (8, 5, 3)) == 15 * (9 * 8 + 8 * 16)


def test_an_unknown_model_is_named():
    from savers.train import main

    result = CliRunner().invoke(main, ["zoo", "teacher", "huge"])
    assert result.exit_code == 1
    assert "teacher, huge: unknown; expected some of tiny, middle, large" in result.output


def test_cards_without_later_fields_have_their_defaults():
    from savers.catalogue import ZOO

    card = json.loads((demo_folder() / "models" / "tiny.json").read_text())
    assert "optimiser" not in card["recipe"] and ZOO["tiny"].matches(card["recipe"])
    assert not ZOO["tiny"].matches({**card["recipe"], "teacher": "large"})
