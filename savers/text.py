"""Text for byte-level language models: the help topics that come with CPython (PSF licence)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from runtime.errors import InputError
from savers.distil import predict
from savers.views import Sequences

VOCABULARY = 256
HELD_OUT = 0.1


class Text(NamedTuple):
    """Bytes ``u8 [n]``: the first nine tenths, and the last, which nothing learns from."""

    train: npt.NDArray[np.uint8]
    held_out: npt.NDArray[np.uint8]


def read_topics(path: Path | None = None) -> Text:
    """Read ``pydoc_data/topics.py`` of this Python, or any other file, as bytes.

    Raises
    ------
    InputError
        When this Python has no such module.
    """
    return split_text((path or _topics()).read_bytes())


def split_text(content: bytes) -> Text:
    """Return a text cut in two."""
    whole = np.frombuffer(content, np.uint8)
    first = len(whole) - int(HELD_OUT * len(whole))
    return Text(whole[:first], whole[first:])


def sequences(text: npt.NDArray[np.uint8], tokens: int) -> Sequences:
    """Return a text as windows of ``tokens`` bytes, the label of each being the byte after it.

    Raises
    ------
    InputError
        When it has fewer bytes than one window needs.
    """
    count = (len(text) - 1) // tokens
    if count < 1:
        raise InputError(f"text of {len(text)} bytes: expected more than {tokens}, one window.")
    numbers = text.astype(np.int64)
    windows = numbers[: count * tokens].reshape(count, tokens)
    return Sequences(windows, numbers[1 : count * tokens + 1].reshape(count, tokens))


def perplexity(network: nn.Module, examples: Sequences, *, batch: int = 50) -> float:
    """Return the perplexity per byte: e to the mean of ``-log p(byte)``."""
    total, rows = 0.0, np.arange(len(examples.labels))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        logits, labels = predict(network, examples.plain(part)), examples.labels[part]
        total += float(
            functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        )
    return float(torch.tensor(total / examples.labels.numel()).exp())


def _topics() -> Path:
    found = importlib.util.find_spec("pydoc_data.topics")
    if found is None or found.origin is None:
        raise InputError(
            "pydoc_data.topics: this Python comes without it. Pass the path of another text."
        )
    return Path(found.origin)
