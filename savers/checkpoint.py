"""The state of a training after a whole epoch, on disk: written whole, read without unpickling."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from kernels.files import replacing
from runtime.errors import InputError
from savers.recipe import Recipe


def save(path: Path, recipe: Recipe, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings and containers of them.

    Raises
    ------
    OSError
        When that is not possible; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        torch.save({"recipe": asdict(recipe), **state}, stream)


def load(path: Path, recipe: Recipe) -> dict[str, Any]:
    """Read a state that `save` wrote for the same recipe.

    Raises
    ------
    InputError
        When the file is damaged or of another recipe.
    """
    try:
        state = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        raise InputError(
            f"{path}: expected a checkpoint of a training, got a file that is damaged or something "
            "else. Delete it to train from the start."
        ) from None
    if not recipe.is_described_by(state.get("recipe", {})):
        raise InputError(
            f"{path}: expected a checkpoint of this recipe, got one of another. "
            "Delete it to train from the start."
        )
    return state
