"""What tests that train share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """As in the workshop: threads that wait for each other are slow on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
