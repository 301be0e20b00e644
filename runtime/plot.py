"""The picture of the bench: accuracy against cost while the thresholds fall (needs matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.files import replacing
from runtime.bench_accuracy import Accuracy
from runtime.cascade import Cascade
from runtime.errors import InputError
from runtime.schema import ThresholdPath
from runtime.simulation import Simulation

POINTS = 200


def require_matplotlib() -> None:
    """Refuse early, with the command that installs it, when matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "--plot needs matplotlib: pip install 'tinysaver-runtime[plot]'."
        ) from None


def draw_curve(path: Path, cascade: Cascade, accuracy: Accuracy, report: dict[str, Any]) -> None:
    """Write a picture of accuracy against MACs per image; its kind follows the suffix.

    The curve is the bundle's threshold path on the images of the bench; the marks are the point in
    force and each model alone. Nothing may be chosen from it when the images are a test split.

    Raises
    ------
    InputError
        When the images have no labels, or a stage cannot run on its own.
    """
    names = cascade.stage_names
    if accuracy.truth is None or set(names) != set(accuracy.logits):
        raise InputError("--plot: needs labelled images, and stages that all read frames.")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    cost, right = _curve(cascade, accuracy)
    axes.plot(cost, right, color="#1f5fa8", linewidth=1.8, label="cascade, as thresholds fall")
    _mark_models(axes, cascade, accuracy)
    label = f"in force: {report['certificate']['status']}"
    here = (report["macs_per_image"] / 1e6, 100 * report["cascade"]["accuracy"])
    axes.plot(*here, "o", color="#c8371b", markersize=8, label=label, zorder=3)
    axes.set_xscale("log")
    axes.margins(0.08, 0.1)
    axes.set_xlabel("million MACs per image (log scale)")
    axes.set_ylabel(f"accuracy on {len(accuracy.label):,} images, %")
    axes.set_title(f"{cascade.bundle.spec.name}: {' → '.join(names)}", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    with replacing(path) as stream:
        figure.savefig(stream, format=path.suffix.lstrip(".") or "png")


def _curve(
    cascade: Cascade, accuracy: Accuracy
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    spec = cascade.bundle.spec
    logits = [accuracy.logits[name] for name in cascade.stage_names]
    simulation = Simulation(logits, accuracy.truth, scores=[gate.score for gate in spec.gates])
    path = spec.settings["/".join(cascade.forms)].path or ThresholdPath(
        offsets=(0.0,) * len(spec.gates)
    )
    vectors = path.vectors()
    chosen = np.unique(np.linspace(0, len(vectors) - 1, POINTS).round().astype(int))
    macs = np.array([stage.macs for stage in spec.stages]) / 1e6
    cost, right = [], []
    for vector in vectors[chosen]:
        answers = simulation.answers(vector)
        reached = [(answers.stage >= stage).mean() for stage in range(len(macs))]
        cost.append(float(np.dot(reached, macs)))
        right.append(100 * float((answers.label == accuracy.truth).mean()))
    return np.array(cost), np.array(right)


def _mark_models(axes: Any, cascade: Cascade, accuracy: Accuracy) -> None:
    for stage in cascade.bundle.spec.stages:
        right = accuracy.share_right(accuracy.alone(stage.name))
        assert right is not None
        place = (stage.macs / 1e6, 100 * right)
        axes.plot(*place, "s", color="#555555", markersize=6)
        axes.annotate(stage.name, place, xytext=(0, -14), textcoords="offset points", ha="center")
