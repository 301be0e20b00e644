"""A certified cascade of two stages as a plain dict."""

from __future__ import annotations

from typing import Any

from runtime.schema import Preprocessing

KEY = "fp32/fp32"


def certified(content: dict[str, Any], *, gears: list[list[float]]) -> dict[str, Any]:
    """Give a cascade of two stages a certificate for its threshold, and gears of its path."""
    setting = content["settings"][KEY]
    points = sorted([*gears, setting["thresholds"]], reverse=True)
    setting["gears"] = gears
    setting["certificate"] = {
        "quantity": "accuracy_drop",
        "epsilon": 0.005,
        "delta": 0.0125,
        "method": "wsr",
        "n": 8000,
        "harm": 30,
        "help": 8,
        "thresholds": setting["thresholds"],
        "scores": [{}],
        "path": {"explicit": [[1.0], *points, [0.0]]},
        "passed": len(points),
        "order_seed": 1,
        "escalation_rates": [0.25],
        "covers": {
            "data_sha256": "0123456789abcdef" * 4,
            "stages": [_covered(stage) for stage in content["stages"]],
            "provenance": "checked",
        },
    }
    return content


def _covered(stage: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": stage["name"],
        "model_sha256": stage["forms"]["fp32"]["sha256"],
        "engine": "onnxruntime",
        "form": "fp32",
        "preprocessing_sha256": Preprocessing(**stage["preprocessing"]).sha256,
    }
