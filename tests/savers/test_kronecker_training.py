"""Networks in factors at training: in steps, resumed, as language models; the experiment."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

from savers.kronecker_shapes import Factoring, Shape

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(3)


def assert_near(a, b, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), atol=tolerance)


@pytest.fixture
def task():
    from savers.dataset import Split
    from savers.recipe import Recipe
    from savers.transformer import patch_transformer
    from savers.views import Images

    rng = np.random.default_rng(5)
    split = Split(
        rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8), np.arange(40, dtype=np.int32) % 10
    )
    recipe = Recipe(
        epochs=0, seed=1, batch=16, learning_rate=0.01, monitor_size=0, bfloat16=False,
        teacher_weight=0.9, hidden_weight=0.5,
    )  # fmt: skip
    network = patch_transformer(8, patch=4, width=8, depth=2)
    return network, Images(split, recipe), recipe


def test_compression_in_steps_goes_on_as_if_never_stopped(task, tmp_path):
    from savers.kronecker_network import Search
    from savers.kronecker_training import Compression, multi_step

    teacher, examples, recipe = task
    plan = {
        "2.network.1": Factoring(Shape(8, 4, 4, 2), 2),
        "3.network.1": Factoring(Shape(4, 4, 8, 2), 2),
    }
    steps = multi_step(plan, (["2.network.1"], ["3.network.1"]), 5)
    assert [step.epochs for step in steps] == [2, 3]

    class Stop(Exception):
        pass

    def run(report, kept):
        network = copy.deepcopy(teacher)
        compression = Compression(
            network, examples, recipe, teacher=copy.deepcopy(teacher), hidden=[("3", "3")]
        )
        return compression.run(steps, Search(restarts=1), kept=kept, report=report)

    def stop_in_the_second_step(epoch):
        if epoch.number == 4:
            raise Stop

    seen = []
    whole = run(seen.append, None)
    assert [epoch.number for epoch in seen] == [1, 2, 3, 4, 5]
    with pytest.raises(Stop):
        run(stop_in_the_second_step, tmp_path)
    again = []
    resumed = run(again.append, tmp_path)
    assert [epoch.number for epoch in again] == [5]
    for name, value in whole.state_dict().items():
        np.testing.assert_array_equal(value, resumed.state_dict()[name], err_msg=name)


def test_a_network_is_never_worse_off_for_a_search(task):
    from savers.kronecker_network import Search, factor

    teacher, _, _ = task
    plan = {f"{block}.network.1": Factoring(Shape(8, 4, 4, 2), 2) for block in (2, 3)}
    errors = {}
    for method in ("permuted", "plain"):
        parts = factor(copy.deepcopy(teacher), plan, Search(method))
        errors[method] = [item.error for item in parts.values()]
        for item in parts.values():
            assert all(b <= a + 1e-9 for a, b in itertools.pairwise(item.history))
    assert all(a <= b for a, b in zip(errors["permuted"], errors["plain"], strict=True))


def test_a_causal_transformer_looks_at_no_later_token():
    import torch

    from savers.transformer import language_transformer

    network = language_transformer(11, 6, width=8, depth=2).eval()
    first = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = torch.tensor([[1, 2, 3, 9, 9, 9]])
    assert_near(network(first)[:, :3], network(other)[:, :3], 0.0)
    assert (network(first)[:, 3:] != network(other)[:, 3:]).any()


def test_the_paper_runs_from_end_to_end():
    import json

    from click.testing import CliRunner

    from savers.reproduce import main

    result = CliRunner().invoke(main, ["tqcompressor", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["quick"] and len(report["verdicts"]) == 5
    ratio = next(item for item in report["verdicts"] if item["claim"].startswith("fewer"))
    assert ratio["value"] == pytest.approx(51_882 / 35_562) and ratio["verdict"] == "MET"
    rows = {row["network"]: row for row in report["figures"][0]["rows"]}
    assert rows["permuted"]["parameters"] == rows["plain"]["parameters"] == 35_562
