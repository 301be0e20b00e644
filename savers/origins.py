"""Which models of the zoo come from which method, and which controls each must beat."""

from __future__ import annotations

from typing import NamedTuple


class Made(NamedTuple):
    """A model that a method made.

    Attributes
    ----------
    controls
        Models that cost as much to train, all told, and were not made by the method.
    source
        The model that it was made from, whose training is not counted in its own; None if it was
        trained from nothing.
    """

    method: str
    model: str
    controls: tuple[str, ...]
    source: str | None = None


METHODS: tuple[Made, ...] = (
    Made(
        "Kronecker",
        "vit-64-kronecker",
        (
            "vit-64-kronecker-plain",
            "vit-64-kronecker-shuffled",
            "vit-64-kronecker-scratch",
            "vit-64-dropped",
        ),
        source="vit-64",
    ),
    Made("shared depth", "depth-64-4", ("depth-64-4-alone",)),
    Made("shared depth", "depth-64-12", ("depth-64-12-alone",)),
    Made("incubation", "transformer-deep", ("transformer-end-to-end",), source="vit-64"),
)
"""A model without all of its controls is neither compared nor searched."""


def origin(model: str) -> str:
    """Return the method that made a model; ``independent`` for one of its own."""
    return next((made.method for made in METHODS if made.model == model), "independent")
