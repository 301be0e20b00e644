"""The figures of a report, against hand-made cases and plain counting."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from calibration import report_figures as figures
from calibration.costs import MacCosts
from calibration.pool import load_pool
from calibration.records import Data, load_data
from calibration.report_costs import mac_costs
from calibration.report_material import Material, Pool, gather
from calibration.report_pictures import SIDE, Pictures
from kernels import reference
from runtime.bundle import load_bundle
from runtime.schema import FrameFormat

World = Any


@pytest.fixture
def material(world: World) -> Material:
    """The cascade tiny -> large, with middle in the pool beside it."""
    bundle = load_bundle(world.make_bundle("tiny", "large"))
    data = load_data(world.data("selection"))
    return gather(bundle, Pool(world.pool, load_pool(world.pool)), data, world.record("selection"))


def test_a_perfect_order_has_the_least_area_and_every_score_its_own(material: Material) -> None:
    (ranking,) = figures.rankings(material)
    assert ranking.used == "max-softmax"
    assert ranking.n == 1500
    areas = {name: curve.aurc for name, curve in ranking.scores.items()}
    assert len(set(areas.values())) == 4
    assert ranking.perfect.aurc < min(areas.values())
    saver, large = material.stages
    harmed = int(((saver.label != material.labels) & (large.label == material.labels)).sum())
    n = len(material.labels)
    expected = sum(max(0, k - (n - harmed)) / k for k in range(1, n + 1)) / n
    np.testing.assert_allclose(ranking.perfect.aurc, expected)


def test_scores_are_compared_on_the_samples_that_reach_the_gate(world: World) -> None:
    bundle = load_bundle(world.make_bundle("tiny", "middle", "large"))
    data = load_data(world.data("selection"))
    material = gather(bundle, Pool(world.pool, {}), data, world.record("selection"))
    first, second = figures.rankings(material)
    flows = figures.flows(material)
    assert [first.n, second.n] == [flows[0].reached, flows[1].reached]
    assert second.n < first.n


def test_confidence_bins_hold_every_sample_once_and_say_how_often_it_is_right(
    material: Material,
) -> None:
    facts = figures.confidence(material, 0)
    value = reference.softmax(material.stages[0].logits).confidence
    right = material.stages[0].label == material.labels
    for index in range(figures.BINS):
        inside = (value > facts.edges[index]) & (value <= facts.edges[index + 1])
        assert facts.right[index] == (inside & right).sum()
        assert facts.wrong[index] == (inside & ~right).sum()
        if inside.any():
            np.testing.assert_allclose(facts.mean[index], value[inside].mean())
            np.testing.assert_allclose(facts.accuracy[index], right[inside].mean())
    gaps = np.abs(np.nan_to_num(facts.mean - facts.accuracy)) * (facts.right + facts.wrong)
    np.testing.assert_allclose(facts.error, gaps.sum() / len(value))
    assert facts.threshold == pytest.approx(0.9)
    assert figures.confidence(material, 1).threshold is None


def test_harm_help_and_flow_are_those_of_the_cascade(material: Material) -> None:
    confidence = reference.softmax(material.stages[0].logits)
    kept = reference.accept(confidence.total, np.float32(0.9))
    label = np.where(kept, material.stages[0].label, material.large.label)
    right, large_right = label == material.labels, material.large.label == material.labels
    changed = figures.changed(material)
    assert changed.harmed.tolist() == np.flatnonzero(~right & large_right).tolist()
    assert changed.helped.tolist() == np.flatnonzero(right & ~large_right).tolist()
    assert len(changed.harmed) > 0
    drop = large_right.astype(float) - right
    low, high = changed.interval
    assert changed.drop == pytest.approx(drop.mean())
    assert high - low == pytest.approx(2 * 1.959964 * drop.std() / np.sqrt(len(drop)))
    tiny, large = figures.flows(material)
    assert (tiny.answered, large.answered) == (kept.sum(), (~kept).sum())
    assert tiny.right == right[kept].sum()
    assert tiny.large_right == large_right[kept].sum()
    assert large.reached == large.answered


def test_who_is_right_where_divides_all_samples(material: Material) -> None:
    groups = figures.agreement(material)
    assert sorted(np.concatenate(list(groups.values())).tolist()) == list(range(1500))
    saver = material.stages[0].label == material.labels
    large = material.large.label == material.labels
    assert groups["saver"].tolist() == np.flatnonzero(saver & ~large).tolist()
    assert groups["large"].tolist() == np.flatnonzero(~saver & large).tolist()


def test_the_cascade_runs_from_the_large_models_accuracy_to_the_savers(
    material: Material,
) -> None:
    costs = mac_costs(material)
    found = figures.trade(material, costs, figures.walks(material))
    accuracy = {single.name: single.accuracy for single in found.singles}
    np.testing.assert_allclose(found.cascade[0], [10 + 1000, accuracy["large"]])
    last = 1 - material.simulation.escalation_rates([1 / (1 + np.exp(2.2))])[0]
    np.testing.assert_allclose(found.cascade[-1, 0], 10 + 1000 * (1 - last))
    assert [single.name for single in found.singles] == ["tiny", "middle", "large"]
    assert list(found.pairs) == ["middle"]
    assert found.here == figures.point_at(material, costs, [0.9])
    assert found.here.accuracy == pytest.approx(accuracy["large"] - figures.changed(material).drop)


def test_gears_are_points_of_their_own(material: Material) -> None:
    spec = material.recorded.bundle.spec
    setting = spec.settings["fp32/fp32"].model_copy(update={"gears": ((0.97,), (0.99,))})
    spec.settings["fp32/fp32"] = setting
    gears = figures.trade(material, mac_costs(material), figures.walks(material)).gears
    assert gears == [figures.point_at(material, mac_costs(material), [t]) for t in (0.97, 0.99)]
    assert gears[0].cost < gears[1].cost


def test_macs_are_those_of_cards_and_stages(material: Material) -> None:
    assert mac_costs(material) == MacCosts({"tiny": 10, "middle": 100, "large": 1000})


def pictures(images: np.ndarray, colour: str, **more: str) -> Pictures:
    frames = FrameFormat.model_validate({"shape": images.shape[1:], "colour": colour, **more})
    return Pictures(Data("selection", images, None), frames)


def decoded(uri: str) -> np.ndarray:
    head, _, content = uri.partition(",")
    kind = head.removeprefix("data:image/").removesuffix(";base64")
    picture = imread(io.BytesIO(base64.b64decode(content)), format=kind)
    return picture if picture.dtype == np.uint8 else (255 * picture).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("colour", "channels", "order"),
    [("grey", 1, [0, 0, 0]), ("rgb", 3, [0, 1, 2]), ("bgr", 3, [2, 1, 0])],
)
def test_small_pictures_are_exact(colour: str, channels: int, order: list[int]) -> None:
    images = np.random.default_rng(5).integers(0, 256, (3, 7, 5, channels)).astype(np.uint8)
    shown = decoded(pictures(images, colour).uri(2))
    np.testing.assert_array_equal(shown[..., :3], images[2][..., order])


def test_large_and_nv12_pictures_are_made_small() -> None:
    images = np.full((1, 300, 400, 1), 128, np.uint8)
    made = pictures(images, "nv12", matrix="bt709", range="full")
    assert made.size == (SIDE // 2, SIDE)
    shown = decoded(made.uri(0))
    assert shown.shape[:2] == (SIDE // 2, SIDE)
    assert np.abs(shown[..., :3].astype(int) - 128).max() <= 2


@pytest.fixture
def gather_with(world: World) -> Callable[[Data], Material]:
    """Gather the bundle's own records with other data."""
    bundle = load_bundle(world.make_bundle("tiny", "large"))
    records = world.record("selection")
    return lambda data: gather(bundle, Pool(world.pool, {}), data, records)


def test_data_without_labels_or_of_another_split_are_refused(
    gather_with: Callable[[Data], Material], world: World
) -> None:
    data = load_data(world.data("selection"))
    with pytest.raises(RuntimeError, match="needs labels"):
        gather_with(Data("selection", data.images, None))
    with pytest.raises(RuntimeError, match="expected records of certificate"):
        gather_with(load_data(world.data("certificate")))
