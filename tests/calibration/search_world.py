"""The search on the small world of conftest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from click.testing import Result

from calibration.pool import load_pool, save_card
from calibration.search import main

Invoke = Callable[..., Result]
World = Any


def search(invoke: Invoke, world: World, *options: object, code: int = 0) -> Result:
    return invoke(
        main, "--pool", world.pool, "--large", "large", "--cost", "macs", "--draws", 4,
        "--epsilon", 0.02, "--certificate-size", 2500, "--records", world.records / "selection",
        *options, code=code,
    )  # fmt: skip


def replace_card(world: World, name: str, **changes: object) -> None:
    cards = load_pool(world.pool)
    save_card(world.pool, cards[name].model_copy(update=changes))
