"""Logits of small cascades, made by hand or at random."""

import numpy as np


def logits_of(answers, confidence, classes=3):
    """Return f32 logits whose softmax gives each answer its confidence, the rest evenly."""
    answers, confidence = np.asarray(answers), np.asarray(confidence, np.float64)
    rest = ((1 - confidence) / (classes - 1))[:, None]
    probability = np.broadcast_to(rest, (len(answers), classes)).copy()
    probability[np.arange(len(answers)), answers] = confidence
    return np.log(probability).astype(np.float32)


def random_cascade(n, *, stages=3, classes=5, seed=0):
    """Return stage logits that grow better and surer, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    signal = np.eye(classes)[labels]
    gains = np.linspace(2.0, 6.0, stages)
    noise = rng.normal(size=(stages, n, classes))
    return [(g * signal + z).astype(np.float32) for g, z in zip(gains, noise, strict=True)], labels
