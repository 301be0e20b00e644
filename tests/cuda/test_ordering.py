"""Nothing goes wrong in any order of streams that CUDA allows."""

from __future__ import annotations

import pytest

from tests.cuda.ordering import complaints, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("ordering") / "bundle")


@pytest.mark.parametrize("seed", range(3))
def test_in_some_orders(seed, world):
    assert list(complaints(world, seed)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 20))
def test_in_many_orders(seed, world):
    assert list(complaints(world, seed)) == []
