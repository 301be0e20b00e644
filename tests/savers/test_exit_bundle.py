"""A large model in segments with exits: what it answers, and that both backbones stay the same."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.errors import EngineError
from kernels import reference
from runtime.bundle import demo_folder
from runtime.cascade import Cascade

pytestmark = pytest.mark.slow

POOL = demo_folder() / "models"


@pytest.fixture(scope="module")
def data():
    from calibration.records import Data, load_data

    whole = load_data(demo_folder() / "data" / "selection.npz")
    return Data("selection", whole.images[:203], whole.labels[:203])


@pytest.fixture(scope="module")
def backbones():
    from calibration.pool import load_card
    from savers.exit_features import open_backbone

    return {
        name: open_backbone(POOL, load_card(POOL / f"{name}.json"))
        for name in ("tiny", "middle", "resnet-8")
    }


@pytest.fixture(scope="module")
def observed(backbones, data):
    """What exits behind tiny and inside middle read of the data."""
    from savers.exit_features import Observer

    return Observer(backbones["tiny"], backbones["middle"], threads=1).features(data)


@pytest.fixture
def make_parts(backbones):
    import torch

    from savers.exit_bundle import Parts
    from savers.exits import ExitSequence

    def make(positions, *, width=8, layers=1, large="middle", savers=("tiny",), zeroed=False):
        torch.manual_seed(9)
        last, chosen = backbones[savers[-1]], backbones[large]
        channels = [last.cuts[-1].channels, *(cut.channels for cut in chosen.cuts)]
        exits = ExitSequence(channels, 10, width=width, layers=layers).eval()
        for head in () if zeroed else exits.heads:
            torch.nn.init.normal_(head.weight)
        return Parts([backbones[name] for name in savers], chosen, exits, positions)

    return make


@pytest.fixture
def write(tmp_path, data):
    from runtime.schema import Setting
    from savers.exit_bundle import Facts, write_exit_bundle

    def write(parts, *, folder="bundle", **fields):
        gates = len(parts.savers) + len(parts.positions)
        setting = Setting(thresholds=(0.9,) * gates)
        labels = tuple("abcdefghij")
        facts = Facts("exits", "for tests", labels, setting, data, data, **fields)
        write_exit_bundle(tmp_path / folder, parts, facts)
        return tmp_path / folder

    return write


def load(folder, **options):
    return Cascade.load(folder, "cpu", threads=1, **options)


def stage_logits(folder, data):
    with load(folder) as cascade:
        found = cascade.executor.stage_logits(data.images)
        return dict(zip(cascade.stage_names, found, strict=True))


def middling(folder, data):
    """Thresholds that each stage's confidence is above for six rows of ten, were it asked alone."""
    logits = list(stage_logits(folder, data).values())[:-1]
    return [float(np.quantile(reference.softmax(z).confidence, 0.4)) for z in logits]


def alone(name, data):
    """Logits of a published model, from its own file."""
    from calibration.pool import load_card
    from calibration.recorder import frame_format
    from runtime.preprocess import Preprocessor
    from runtime.session import HostModel

    card = load_card(POOL / f"{name}.json")
    pixels = Preprocessor(card.preprocessing, frame_format(data))(data.images)
    return HostModel(POOL / card.file, threads=1).run({card.input: pixels})[card.logits]


def weights(path, *, without="exit/"):
    model = onnx.load(path)
    return {
        item.name: item.SerializeToString()
        for item in model.graph.initializer
        if not item.name.startswith(without)
    }


@pytest.mark.parametrize(
    ("positions", "width", "layers"),
    [((2, 4), 8, 1), ((3,), 32, 2), ((1, 2, 6), 8, 0), ((1, 5), 16, 2)],
)
def test_stages_answer_as_the_whole_models_and_the_exits_alone(
    make_parts, write, observed, data, positions, width, layers
):
    import torch

    parts = make_parts(positions, width=width, layers=layers)
    found = stage_logits(write(parts), data)
    with torch.no_grad():
        pooled = [torch.from_numpy(part[0]) for part in observed.pooled]
        expected = parts.exits(pooled, torch.from_numpy(observed.saver[0])).numpy()
    assert list(found) == ["tiny", *(f"exit{position}" for position in positions), "rest"]
    np.testing.assert_array_equal(found["tiny"], alone("tiny", data))
    np.testing.assert_allclose(found["rest"], alone("middle", data), rtol=0, atol=1e-5)
    for position in positions:
        logits = found[f"exit{position}"]
        np.testing.assert_allclose(logits, expected[position - 1], rtol=0, atol=2e-5)


def test_both_backbones_keep_every_weight_byte_for_byte(make_parts, write):
    models = write(make_parts((2, 4))) / "models"
    assert weights(models / "tiny.onnx") == weights(POOL / "tiny.onnx")
    parts = [weights(models / f"{name}.onnx") for name in ("exit2", "exit4", "rest")]
    assert {k: v for part in parts for k, v in part.items()} == weights(POOL / "middle.onnx")
    assert sum(map(len, parts)) == len(weights(POOL / "middle.onnx"))


@pytest.mark.parametrize("layers", [0, 2])
def test_exits_of_zeros_answer_exactly_as_the_saver(make_parts, write, data, layers):
    found = stage_logits(write(make_parts((1, 3), layers=layers, zeroed=True)), data)
    np.testing.assert_array_equal(found["exit1"], found["tiny"])
    np.testing.assert_array_equal(found["exit3"], found["tiny"])


def test_an_exit_does_not_change_with_the_blocks_after_it(make_parts, write, backbones, data):
    """A block's weights are turned around: exits before it stay, those after it do not."""
    parts = make_parts((2, 3), layers=2)
    before = stage_logits(write(parts), data)
    model = onnx.ModelProto()
    model.CopyFrom(parts.large.blocks.model)
    later = {item.name for item in parts.large.blocks.segment(2, 3).graph.initializer}
    for item in model.graph.initializer:
        if item.name in later:
            turned = -numpy_helper.to_array(item)
            item.CopyFrom(numpy_helper.from_array(turned, item.name))
    blocks = dataclasses.replace(parts.large.blocks, model=model)
    other = dataclasses.replace(parts, large=dataclasses.replace(parts.large, blocks=blocks))
    after = stage_logits(write(other, folder="altered"), data)
    np.testing.assert_array_equal(before["tiny"], after["tiny"])
    np.testing.assert_array_equal(before["exit2"], after["exit2"])
    assert not np.allclose(before["exit3"], after["exit3"])
    assert not np.allclose(before["rest"], after["rest"])


@pytest.mark.parametrize("batch", [16, 256])
def test_each_block_sees_only_the_rows_that_were_sent_on_to_it(make_parts, write, data, batch):
    folder = write(make_parts((2, 4)))
    with load(folder, batch=batch) as cascade:
        cascade.thresholds = middling(folder, data)
        results = cascade.run(data.images)
        rows = [stage.timings.rows for stage in cascade.executor.stages]
    assert rows == [int((results.stage >= number).sum()) for number in range(4)]
    assert rows[0] > rows[1] > rows[2] > rows[3] > 0


@pytest.mark.parametrize("batch", [7, 256])
def test_escalated_rows_are_answered_by_the_right_stage(make_parts, write, data, batch):
    """Rows keep their own feature, tokens and map, whatever went out between."""
    folder = write(make_parts((2, 4)))
    logits = list(stage_logits(folder, data).values())
    with load(folder, batch=batch) as cascade:
        cascade.thresholds = middling(folder, data)
        results = cascade.run(data.images)
    assert set(results.stage) == {0, 1, 2, 3}
    for row, stage in enumerate(results.stage):
        assert results.label[row] == logits[stage][row].argmax()


def test_exits_go_on_from_the_last_of_several_savers(make_parts, write, data):
    parts = make_parts((1, 2), savers=("tiny", "resnet-8"), zeroed=True)
    found = stage_logits(write(parts), data)
    assert list(found) == ["tiny", "resnet-8", "exit1", "exit2", "rest"]
    np.testing.assert_array_equal(found["exit1"], alone("resnet-8", data))
    np.testing.assert_array_equal(found["exit2"], alone("resnet-8", data))


@pytest.mark.parametrize(
    ("positions", "width", "layers"), [((1,), 8, 0), ((2, 3), 32, 1), ((1, 4, 6), 16, 3)]
)
def test_costs_foretold_are_those_of_the_files(make_parts, write, positions, width, layers):
    from runtime.bundle import load_bundle
    from savers.exit_choice import SegmentCosts

    parts = make_parts(positions, width=width, layers=layers)
    stages = load_bundle(write(parts)).spec.stages
    macs = {"tiny": parts.savers[0].card.macs}
    costs = SegmentCosts(macs, parts.large.block_macs(), parts.exits)
    assert costs.stages([stage.name for stage in stages]) == [stage.macs for stage in stages]
    assert parts.large.block_macs()[-1] == parts.large.card.macs


def test_observed_maps_are_pooled_over_their_places(backbones, observed, data):
    from calibration.recorder import frame_format
    from runtime.preprocess import Preprocessor
    from runtime.session import HostModel

    large = backbones["middle"]
    part = large.blocks.segment(0, 3).SerializeToString()
    pixels = Preprocessor(large.card.preprocessing, frame_format(data))(data.images)
    found = HostModel(large.path, threads=1, content=part).run({"input": pixels})["block3"]
    np.testing.assert_allclose(observed.pooled[3][0], found.mean((2, 3)), rtol=0, atol=1e-5)


def test_the_bundle_says_what_trained_and_what_chose(make_parts, write, data):
    from calibration.provenance import load_provenance, sample_digests

    trained = (demo_folder() / "provenance" / "training.npz",)
    folder = write(make_parts((2,)), trained=trained)
    training = load_provenance(folder / "provenance" / "training.npz").digests
    models = load_provenance(trained[0]).digests
    assert np.isin(models, training).all()
    assert np.isin(sample_digests(data.images), training).all()
    selection = load_provenance(folder / "provenance" / "selection.npz")
    assert selection.digests.tolist() == np.unique(sample_digests(data.images)).tolist()


def test_a_folder_that_holds_something_is_left_alone(make_parts, write):
    folder = write(make_parts((2,)))
    before = (folder / "cascade.json").read_bytes()
    with pytest.raises(EngineError, match="exists already"):
        write(make_parts((3,)))
    assert (folder / "cascade.json").read_bytes() == before


def test_bench_runs_it_and_says_what_it_saves_against_the_whole_model(make_parts, write, tmp_path):
    from click.testing import CliRunner

    from runtime.bench import main

    folder = write(make_parts((2,)))
    data = str(demo_folder() / "data" / "selection.npz")
    arguments = ["--bundle", str(folder), "--data", data, "--device", "cpu", "--iterations", "3"]
    path = tmp_path / "bench.json"
    arguments += ["--warmup", "0", "--json", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert report["stages"] == ["tiny", "exit2", "rest"]
    assert report["large_only"] is None
    large = json.loads((POOL / "middle.json").read_text())["macs"]
    assert report["macs_saved"] == pytest.approx(1 - report["macs_per_image"] / large)
    assert [item["name"] for item in report["savers_only"]] == ["tiny"]


def test_the_first_view_of_an_image_is_the_image_and_others_are_other_views(backbones, data):
    from calibration.records import Data
    from savers.exit_features import Observer, view_batches

    few = Data("few", data.images[:3], data.labels[:3])
    observer = Observer(backbones["tiny"], backbones["resnet-8"], threads=1)
    once, twice = observer.features(few), observer.features(few, views=2)
    seen = np.concatenate(list(view_batches(few.images, 2)))
    second = observer.features(Data("second", seen[3:], few.labels))
    for one, two, other in zip(once.pooled, twice.pooled, second.pooled, strict=True):
        np.testing.assert_allclose(two[0], one[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(two[1], other[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(twice.saver, np.stack([once.saver[0], second.saver[0]]), atol=1e-5)


def test_a_view_is_shifted_by_a_pixel_at_most_mirrored_or_not_and_partly_erased():
    from savers.exit_features import view_batches

    images = np.random.default_rng(2).integers(1, 256, (40, 28, 28, 1), np.uint8)
    plain, changed = view_batches(images, 2)
    np.testing.assert_array_equal(plain, images)
    mirrors, shifts = set(), set()
    for image, view in zip(images[..., 0], changed[..., 0], strict=True):
        padded = np.pad(image, 1)
        moved = {
            (down, right, step): padded[down : down + 28, right : right + 28][:, ::step]
            for down in range(3)
            for right in range(3)
            for step in (1, -1)
        }
        (found,) = [key for key, other in moved.items() if (other == view).mean() > 0.6]
        mirrors.add(found[2])
        shifts.add(found[:2])
        gone = np.argwhere(moved[found] != view)
        assert (view[moved[found] != view] == 0).all()
        assert len(gone) and (np.ptp(gone, axis=0) < 8).all()
    assert mirrors == {1, -1}
    assert len(shifts) > 4
