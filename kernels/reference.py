"""The float64 NumPy reference of every kernel: slow, plain, and the judge of all backends.

`accept` is also called by the host gate and by calibration, so that a threshold means the same
everywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Softmax(NamedTuple):
    """Row-wise softmax facts.

    Attributes
    ----------
    total
        f64 [n], ``sum_k exp((z_k - max z) / T)``, in [1, K]; NaN where the row is not valid.
    confidence
        f64 [n], the largest softmax probability, ``1 / total``; 0 where the row is not valid.
    label
        i32 [n], lowest index of the largest logit that is not NaN, 0 if there is none.
    """

    total: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    label: npt.NDArray[np.int32]


class Gated(NamedTuple):
    """What a gate decides for one batch.

    Attributes
    ----------
    confidence
        f64 [n], score of each row in [0, 1].
    label
        i32 [n].
    rows
        i32 [count], the escalated rows in their order.
    idx
        i32 [n], their samples (the same, without a ``row_map``), then -1.
    count
        How many rows are escalated.
    bucket
        i32 [rounds], batch size of each round of escalated rows; 0 for an empty round.
    bucket_index
        i32 [rounds], its index among the buckets; their number for an empty round.
    """

    confidence: npt.NDArray[np.float64]
    label: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    idx: npt.NDArray[np.int32]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    bucket: npt.NDArray[np.int32]
    bucket_index: npt.NDArray[np.int32]


def accept(total: Floats, threshold: float | Floats) -> npt.NDArray[np.bool_]:
    """Return where a row is kept: ``total * threshold < 1``, strictly.

    The paper's rule is ``confidence > threshold`` (arXiv 2403.17726, released code). With
    ``confidence = 1 / total`` the product form needs no division, and agrees in every
    precision at exact hits: threshold 1 keeps nothing, threshold 0 every valid row. A NaN ``total``
    is never kept.

    Parameters
    ----------
    total
        [n], from `softmax`.
    threshold
        One number, or [n] when it depends on the predicted class.
    """
    kept: npt.NDArray[np.bool_] = total * threshold < 1
    return kept


def softmax(logits: Floats, temperature: float = 1.0) -> Softmax:
    """Return the sum, confidence and label of each row of ``logits [n, K]``.

    ``-inf`` beside a finite maximum contributes 0. A row with a NaN, a ``+inf`` or no finite value
    is not valid.

    Raises
    ------
    ValueError
        When ``logits`` is not of rank 2 with at least one class, or ``temperature`` is not finite
        and positive.
    """
    z = _checked(logits, temperature)
    valid = ~np.isnan(z).any(1) & np.isfinite(z.max(1, initial=-np.inf))
    ordered = np.where(np.isnan(z), -np.inf, z)
    label = np.where(np.isnan(z).all(1), 0, _first_largest(z, ordered))
    safe = np.where(valid[:, None], z, 0.0)
    total = np.exp(_exponent(safe, temperature)).sum(1)
    total = np.where(valid, total, np.nan)
    return Softmax(total, np.where(valid, 1 / total, 0.0), label.astype(np.int32))


def score(
    logits: Floats, name: str, *, temperature: float = 1.0, p: float = 2.0
) -> npt.NDArray[np.float64]:
    """Return a score in [0, 1] for each row, greater meaning surer; 0 where a row is not valid.

    ``max_softmax``
        largest softmax probability
    ``margin``
        difference of the two largest probabilities
    ``entropy``
        ``1 - H / ln K``
    ``p_norm``
        ``max(c) / ||c||_p`` with ``c = z - mean(z)`` (MaxLogit-pNorm, arXiv 2305.15508), p >= 1
    """
    facts = softmax(logits, temperature)
    valid = ~np.isnan(facts.total)
    z = np.where(valid[:, None], np.asarray(logits, np.float64), 0.0)
    if name == "p_norm":
        return np.where(valid, _p_norm(z, p), 0.0)
    weight = np.exp(_exponent(z, temperature))
    probability = weight / weight.sum(1, keepdims=True)
    if name == "max_softmax":
        value = facts.confidence
    elif name == "margin":
        value = _margin(probability)
    elif name == "entropy":
        value = 1 + _plogp(probability).sum(1) / np.log(max(2, z.shape[1]))
    else:
        raise ValueError(f"score {name!r}: expected max_softmax, margin, entropy or p_norm")
    return np.where(valid, np.clip(value, 0.0, 1.0), 0.0)


def gate(
    logits: Floats,
    threshold: float | Floats,
    temperature: float = 1.0,
    buckets: tuple[int, ...] = DEFAULT_BUCKETS,
    *,
    scores: Floats | None = None,
    force: npt.NDArray[np.uint8] | None = None,
    row_map: Integers | None = None,
) -> Gated:
    """Decide which rows of ``logits [n, K]`` go on to the next stage.

    Parameters
    ----------
    threshold
        In [0, 1]: one number, or K numbers by predicted class.
    buckets
        Ascending batch sizes of the next stage; more rows are cut into rounds of the largest.
    scores
        [n], scores other than max-softmax, as of `score`: accept where they exceed the threshold.
        One that is not finite escalates, as does a row of logits that is not valid.
    force
        u8 [samples], a non-zero entry escalates its sample whatever the score.
    row_map
        [n], the sample of each row; without it the row itself.

    Raises
    ------
    ValueError
        For a threshold outside [0, 1], or buckets that do not ascend.
    """
    facts = softmax(logits, temperature)
    limit = _threshold_per_row(threshold, facts.label, np.shape(logits)[1])
    if scores is None:
        confidence, kept = facts.confidence, accept(facts.total, limit)
    else:
        confidence = np.asarray(scores, np.float64)
        kept = (confidence > limit) & np.isfinite(confidence) & ~np.isnan(facts.total)
    samples = np.arange(len(kept)) if row_map is None else np.asarray(row_map)
    if force is not None:
        kept = kept & (np.asarray(force)[samples] == 0)
    rows = np.flatnonzero(~kept).astype(np.int32)
    idx = np.full(len(kept), -1, np.int32)
    idx[: len(rows)] = samples[rows]
    bucket = bucket_rounds(len(rows), len(kept), buckets)
    index = np.where(bucket == 0, len(buckets), np.searchsorted(buckets, bucket)).astype(np.int32)
    return Gated(confidence, facts.label, rows, idx, len(rows), bucket, index)


def bucket_rounds(count: int, most: int, buckets: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Return the batch size of each of ``ceil(most / buckets[-1])`` rounds for ``count`` rows."""
    sizes = np.asarray(buckets)
    if len(sizes) == 0 or sizes[0] < 1 or (np.diff(sizes) <= 0).any():
        raise ValueError(f"buckets: expected ascending positive sizes, got {buckets}")
    largest = int(sizes[-1])
    first = np.arange(-(-most // largest)) * largest
    rows = np.clip(count - first, 0, largest)
    return np.where(rows == 0, 0, sizes[np.searchsorted(sizes, rows)]).astype(np.int32)


def dense_rows(idx: Integers, count: int, largest: int, fill: Integers) -> npt.NDArray[np.int32]:
    """Return which row each dense row repeats, i32 [rounds * largest]; -1 where none is written.

    Round r holds rows ``idx[r * largest : (r + 1) * largest]``, as far as ``count`` goes. Padding
    repeats the last escalated row of its round, or row 0 if there is none.

    Parameters
    ----------
    fill
        [rounds], rows to fill in each round: its bucket, or ``largest``.
    """
    rows = np.full((len(fill), largest), -1, np.int32)
    for number, target in enumerate(rows):
        some = np.asarray(idx[number * largest : min(count, (number + 1) * largest)])
        target[: fill[number]] = some[-1] if len(some) else 0
        target[: len(some)] = some
    return rows.reshape(-1)


def gather(tensor: npt.NDArray[Any], idx: Integers, count: int, bucket: int) -> npt.NDArray[Any]:
    """Return rows ``idx[:count]`` of ``tensor [n, ...]`` as a dense ``[bucket, ...]``.

    Rows past ``count`` repeat the last escalated row, or row 0 if there is none.

    Raises
    ------
    ValueError
        When ``count`` is negative, exceeds ``bucket`` or the length of ``idx``.
    """
    if not 0 <= count <= min(bucket, len(idx)):
        raise ValueError(f"count: expected 0 to {min(bucket, len(idx))}, got {count}")
    padding = int(idx[count - 1]) if count else 0
    rows = np.full(bucket, padding, np.int64)
    rows[:count] = idx[:count]
    return np.asarray(tensor)[rows]


def scatter(
    logits: Floats,
    idx: Integers,
    count: int,
    label: npt.NDArray[np.int32],
    confidence: Floats,
    *,
    temperature: float = 1.0,
    other: Floats | None = None,
    weight: float = 0.0,
) -> None:
    """Write label and confidence of the first ``count`` rows to the samples they belong to.

    Parameters
    ----------
    logits
        [bucket, K] of a later stage; rows from ``count`` on are padding and never written.
    idx
        [>= count], places in ``label [n]`` and ``confidence [n]``, which are changed.
    other, weight
        Logits [>= count, K] of an earlier stage for the same samples: the answers are those of
        ``logits + weight * other``.
    """
    z = np.asarray(logits, np.float64)[:count]
    if other is not None:
        z = z + weight * np.asarray(other, np.float64)[:count]
    facts = softmax(z, temperature)
    samples = np.asarray(idx[:count], np.int64)
    label[samples] = facts.label
    confidence[samples] = facts.confidence


def _checked(logits: Floats, temperature: float) -> npt.NDArray[np.float64]:
    z = np.asarray(logits, np.float64)
    if z.ndim != 2 or z.shape[1] == 0:
        raise ValueError(f"logits: expected [n, K] with K >= 1, got {list(z.shape)}")
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: expected a finite number > 0, got {temperature}")
    return z


def _exponent(z: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    # A distance that overflows is -inf, which contributes 0, as it should.
    with np.errstate(over="ignore"):
        exponent: npt.NDArray[np.float64] = (z - z.max(1, keepdims=True)) / temperature
    return exponent


def _first_largest(z: npt.NDArray[np.float64], ordered: npt.NDArray[np.float64]) -> Integers:
    # argmax alone would find a NaN (turned into -inf) before a real -inf of a later column.
    is_largest = (ordered == ordered.max(1, keepdims=True)) & ~np.isnan(z)
    first: Integers = is_largest.argmax(1)
    return first


def _threshold_per_row(threshold: float | Floats, label: Integers, classes: int) -> Floats:
    # Thresholds are float32 on every device: 0.1 means float32(0.1), also here.
    values = np.atleast_1d(np.asarray(threshold, np.float32)).astype(np.float64)
    if values.shape not in ((1,), (classes,)):
        raise ValueError(
            f"threshold: expected one number or {classes}, got shape {list(values.shape)}"
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"threshold: expected numbers in [0, 1], got {threshold}")
    return values[label] if len(values) > 1 else np.broadcast_to(values, label.shape)


def _margin(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if probability.shape[1] == 1:
        return probability[:, 0]
    top = np.partition(probability, -2, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def _plogp(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return probability * np.log(np.where(probability > 0, probability, 1.0))


def _p_norm(z: npt.NDArray[np.float64], p: float) -> npt.NDArray[np.float64]:
    if not p >= 1:
        raise ValueError(f"p: expected a number >= 1, got {p}")
    # A class of -inf takes no part: as a 0 it could be the largest.
    finite = np.isfinite(z)
    mean = z.sum(1, where=finite, keepdims=True) / finite.sum(1, keepdims=True)
    centred = np.subtract(z, mean, out=np.zeros_like(z), where=finite)
    largest = np.abs(centred).max(1)
    scale = np.where(largest > 0, largest, 1.0)
    norm = scale * (np.abs(centred / scale[:, None]) ** p).sum(1) ** (1 / p)
    return np.where(largest > 0, centred.max(1) / np.where(norm > 0, norm, 1.0), 0.0)
