"""Factored layers and networks: the same function factored, merged, absorbed and exported."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.session import HostModel
from savers.kronecker_fit import decompose
from savers.kronecker_shapes import Factoring, Shape

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# Both orders of multiplication, one term and several, a vector as a factor.
SHAPES = [
    Factoring(Shape(8, 4, 3, 5), 2),
    Factoring(Shape(2, 10, 12, 2), 3),
    Factoring(Shape(3, 2, 8, 10), 1),
    Factoring(Shape(24, 10, 1, 2), 1),
    Factoring(Shape(1, 20, 24, 1), 4),
]


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(3)


def found(factoring: Factoring):
    matrix = np.random.default_rng(2).normal(size=(24, 20))
    return decompose(matrix, factoring, restarts=1)


def assert_near(a, b, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), atol=tolerance)


def dense_of(parts):
    import torch

    return torch.tensor(parts.dense(), dtype=torch.float32)


@pytest.mark.parametrize("factoring", SHAPES)
def test_a_factored_linear_layer_is_its_dense_matrix(factoring):
    import torch

    from savers.kronecker_layers import KroneckerLinear

    parts, bias = found(factoring), torch.randn(24)
    layer = KroneckerLinear(parts, bias)
    assert layer.inputs is not None and layer.outputs is not None
    for size in ((1, 20), (7, 20), (2, 3, 5, 20)):
        x = torch.randn(size)
        assert_near(layer(x), x @ dense_of(parts).T + bias, 1e-4)
        assert_near(layer(x), layer.merged()(x))


@pytest.mark.parametrize("factoring", SHAPES)
def test_a_factored_convolution_is_its_dense_matrix(factoring):
    import torch

    from savers.kronecker_layers import KroneckerConv

    parts, x = found(factoring), torch.randn(2, 20, 5, 3)
    layer = KroneckerConv(parts, None, (2, 1))
    expected = torch.nn.functional.conv2d(x, dense_of(parts)[:, :, None, None], None, (2, 1))
    assert_near(layer(x), expected, 1e-4)
    assert_near(layer(x), layer.merged()(x))


@pytest.mark.parametrize("factoring", SHAPES)
def test_a_factored_embedding_is_its_dense_matrix(factoring):
    import torch

    from savers.kronecker_layers import KroneckerEmbedding

    parts, numbers = found(factoring), torch.tensor([[0, 23], [5, 5]])
    layer = KroneckerEmbedding(parts)
    assert_near(layer(numbers), dense_of(parts)[numbers])
    assert_near(layer(numbers), layer.merged()(numbers))


def chain():
    """A linear chain in which orders can be absorbed, with every case of neighbours."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(20, 24), nn.GELU(), nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 24)
    )


def conv_chain():
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(20, 24, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 20, 1),
        nn.ReLU(),
        nn.Conv2d(20, 24, 3, padding=1),
    )
    for tensor in (network[1].weight, network[1].bias, network[1].running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(network[1].running_var)
    return network.eval()


ACROSS, BACK = Factoring(Shape(8, 4, 3, 5), 2), Factoring(Shape(4, 8, 5, 3), 2)


@pytest.mark.parametrize(
    ("names", "gathers"),
    [(("0",), (2, 1)), (("2",), (2, 0)), (("0", "2"), (4, 2)), (("0", "2", "4"), (6, 4))],
)
def test_absorbed_orders_change_nothing_but_the_gathers(names, gathers):
    import torch

    from savers.kronecker_network import Search, factor, merge
    from savers.kronecker_orders import absorb_orders, count_gathers

    network, x = chain(), torch.randn(5, 20)
    factor(network, {name: BACK if name == "2" else ACROSS for name in names}, Search())
    explicit, before = network(x), count_gathers(network)
    gone = absorb_orders(network)
    assert (before, count_gathers(network)) == gathers and gone == before - gathers[1]
    assert_near(network(x), explicit)
    merge(network)
    assert_near(network(x), explicit)


@pytest.mark.parametrize(("names", "left"), [(("0",), 1), (("3",), 0), (("0", "3"), 2)])
def test_orders_are_absorbed_across_batch_norm_and_into_larger_convolutions(names, left):
    import torch

    from savers.kronecker_network import Search, factor
    from savers.kronecker_orders import absorb_orders, count_gathers

    network, x = conv_chain(), torch.randn(2, 20, 4, 5)
    factor(network, {name: BACK if name == "3" else ACROSS for name in names}, Search())
    explicit = network(x)
    absorb_orders(network)
    assert count_gathers(network) == left
    assert_near(network(x), explicit)


def test_orders_are_not_absorbed_across_what_mixes_channels():
    import torch
    from torch import nn

    from savers.kronecker_network import Search, factor
    from savers.kronecker_orders import absorb_orders

    network, x = (
        nn.Sequential(nn.Linear(20, 24), nn.Softmax(-1), nn.LayerNorm(24), nn.Linear(24, 20)),
        torch.randn(3, 20),
    )
    with torch.no_grad():
        network[2].weight.normal_()
    factor(network, {"0": ACROSS, "3": BACK}, Search())
    explicit = network(x)
    assert absorb_orders(network) == 0
    assert_near(network(x), explicit, 0.0)


NAMES = ("5.network.1", "5.network.3")


def transformer_with(plan_macs: int):
    """The zoo's transformer with the two-layer network of its first block in factors."""
    from savers.kronecker_network import Search, factor
    from savers.kronecker_orders import absorb_orders
    from savers.kronecker_plan import Budget, plan_network
    from savers.networks import NETWORKS

    network = NETWORKS["vit-64"]().eval()
    plan = plan_network(network, NAMES, Budget(macs=plan_macs))
    factor(network, plan, Search(restarts=0))
    absorb_orders(network)
    return network, plan


def test_exported_factors_and_merged_ones_are_the_network(tmp_path):
    import onnx
    import torch

    from engines.macs import count_macs as count_nodes
    from savers.kronecker_network import merge
    from savers.networks import count_macs
    from savers.workshop import export_onnx

    network, _ = transformer_with(7_700_000)
    merged = copy.deepcopy(network)
    merge(merged)
    x = torch.randn(3, 1, 28, 28)
    expected = network(x)
    for name, model in (("factored", network), ("merged", merged)):
        content = export_onnx(model)
        graph = onnx.load_from_string(content)
        assert not {"Shape", "Expand"} & {node.op_type for node in graph.graph.node}
        assert graph.opset_import[0].version == 17
        assert count_nodes(graph, {"input": (1, 1, 28, 28)}).total == count_macs(model)
        (tmp_path / f"{name}.onnx").write_bytes(content)
        session = HostModel(tmp_path / f"{name}.onnx", threads=1)
        for rows in (1, 3):
            logits = session.run({"input": x[:rows].numpy()})["logits"]
            np.testing.assert_allclose(logits, expected[:rows].detach(), atol=1e-4)


def test_a_plan_counts_everything_and_keeps_its_budget():
    from savers.kronecker_network import parameters_with
    from savers.kronecker_plan import Budget, plan_network
    from savers.networks import NETWORKS, count_macs

    network, plan = transformer_with(7_700_000)
    assert count_macs(network) <= 7_700_000
    whole = NETWORKS["vit-64"]()
    assert parameters_with(whole, plan) == sum(item.numel() for item in network.parameters())
    fewer = plan_network(whole, plan, Budget(parameters=140_000))
    assert 139_000 < parameters_with(whole, fewer) <= 140_000
    both = plan_network(whole, plan, Budget(parameters=140_000, macs=7_700_000))
    assert parameters_with(whole, both) <= 140_000


def test_a_budget_below_the_rest_of_the_network_is_refused():
    from savers.kronecker_plan import Budget, plan_network
    from savers.networks import NETWORKS

    with pytest.raises(InputError, match=r"5000 parameters: cannot be met by factoring 5\.net"):
        plan_network(NETWORKS["vit-64"](), ["5.network.1"], Budget(parameters=5_000))


def test_a_budget_that_needs_no_factors_is_refused():
    from savers.kronecker_plan import Budget, plan_network
    from savers.networks import NETWORKS

    with pytest.raises(InputError, match="9000000 multiply-accumulates: the network is within it"):
        plan_network(NETWORKS["vit-64"](), ["5.network.1"], Budget(macs=9_000_000))


def test_modules_that_cannot_be_factored_are_named_with_what_can():
    from torch import nn

    from savers.kronecker_network import dense_modules, factorable

    network = nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, groups=4),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1),
    )
    assert list(factorable(network)) == ["4"]
    for name, reason in (
        ("0", "a convolution of 3x3 cannot"),
        ("1", "a convolution in 4 groups cannot"),
        ("2", "a 1x1 convolution with padding cannot"),
        ("3", "a ReLU cannot"),
    ):
        with pytest.raises(InputError, match=f"{reason} .*Conv2d of 1x1 without groups"):
            dense_modules(network, [name])
    with pytest.raises(InputError, match=r"none of that name\. These can be factored: 4\."):
        dense_modules(network, ["neck"])


def gpt2():
    """The parameters of GPT-2 small and nothing in them: output matrix tied to the embedding."""
    from torch import nn

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, device="meta")

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(768, device="meta")

    def block() -> nn.ModuleDict:
        parts = {"ln_1": norm(), "c_attn": linear(768, 2304), "attn_proj": linear(768, 768)}
        mlp = {"ln_2": norm(), "c_fc": linear(768, 3072), "c_proj": linear(3072, 768)}
        return nn.ModuleDict({**parts, **mlp})

    network = nn.ModuleDict(
        {
            "wte": nn.Embedding(50257, 768, device="meta"),
            "wpe": nn.Embedding(1024, 768, device="meta"),
            "h": nn.ModuleList(block() for _ in range(12)),
            "ln_f": norm(),
            "lm_head": nn.Linear(768, 50257, bias=False, device="meta"),
        }
    )
    network["lm_head"].weight = network["wte"].weight
    return network


def test_gpt2_in_the_papers_shapes_has_81_million_parameters_without_its_output_matrix():
    from savers.kronecker_network import parameters_with

    network = gpt2()
    assert parameters_with(network, {}) == 124_439_808
    plan = {"wte": Factoring(Shape(50257, 192, 1, 4), 1)}
    for block in range(1, 12, 2):
        plan[f"h.{block}.c_fc"] = Factoring(Shape(768, 384, 4, 2), 4)
        plan[f"h.{block}.c_proj"] = Factoring(Shape(384, 768, 2, 4), 4)
    # Tied to a matrix that is no longer there, the output matrix has to be kept.
    assert parameters_with(network, plan) == 119_933_764
    assert parameters_with(network, plan) - network["lm_head"].weight.numel() == 81_336_388
