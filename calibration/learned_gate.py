"""A learned gate: a logistic model of whether a saver may keep a sample, on the saver's own logits.

It reads how far the next logits are below the largest, and the probability of each class, so that
it may ask more of a class that is often mistaken. What it learns is *harm*, "the saver is wrong and
the large model right": where both are wrong, the large model has nothing to give. What a model says
of samples that taught it is too good, so each sample is judged by a model of the other folds; the
one that a bundle carries has learned from all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engines.score_head import MOST_DISTANCE, ScoreHead, distances_to
from kernels import reference

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

FOLDS = 5
LEAST_HARM = 20
"""Harmed samples below which nothing is learned."""
_PENALTY = 10.0
"""Of squared weights of standardised inputs, against the sum of log losses."""
_STEPS = 30
"""Of Newton's method, at most: about ten are needed."""
_SEED = 0


class Learned(NamedTuple):
    """A gate that learned from all samples, and the other folds' scores of them, f64 [n]."""

    head: ScoreHead
    score: Floats


class _Inputs(NamedTuple):
    """Distances f64 [n, d] and probabilities f64 [n, K]."""

    distance: Floats
    probability: Floats

    def at(self, rows: Flags) -> _Inputs:
        return _Inputs(self.distance[rows], self.probability[rows])


def learn(logits: npt.NDArray[np.floating], harmed: Flags) -> Learned | None:
    """Return a gate that learned from logits [n, K] and where keeping harms, bool [n].

    None where there is too little harm, or too little else, to learn from.
    """
    if min(int(harmed.sum()), int((~harmed).sum())) < LEAST_HARM:
        return None
    inputs = _inputs(logits)
    fold = np.random.default_rng(_SEED).permutation(len(harmed)) % FOLDS
    score = np.empty(len(harmed))
    for number in range(FOLDS):
        held = fold == number
        score[held] = _fit(inputs.at(~held), ~harmed[~held]).score(*inputs.at(held))
    return Learned(_fit(inputs, ~harmed), score)


def _inputs(logits: npt.NDArray[np.floating]) -> _Inputs:
    """Return what a gate reads; zeros in a row that is not valid, which escalates anyway."""
    z = np.asarray(logits, np.float64)
    valid = ~np.isnan(reference.softmax(z).total)
    safe = np.where(valid[:, None], z, 0.0)
    falling = -np.sort(-safe, axis=1)
    distance = np.minimum(falling[:, :1] - falling[:, 1:], MOST_DISTANCE)
    weight = np.exp(safe - falling[:, :1])
    return _Inputs(distance[:, : distances_to(z.shape[1])], weight / weight.sum(1, keepdims=True))


def _fit(inputs: _Inputs, keep: Flags) -> ScoreHead:
    """Fit weights by Newton's method, all but the bias held near zero by a penalty."""
    x = np.concatenate(inputs, axis=1)
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    penalty = np.append(np.full(len(mean), _PENALTY), 0.0)
    w = np.zeros(len(penalty))
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        slope = x.T @ (keep - p) - penalty * w
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        w = w + step
        if np.abs(step).max() < 1e-6:
            break
    weights = w[:-1] / scale
    first = inputs.distance.shape[1]
    return ScoreHead(
        tuple(weights[:first].tolist()),
        tuple(weights[first:].tolist()),
        float(w[-1] - weights @ mean),
    )
