"""The numbers behind a report, for JSON."""

from __future__ import annotations

from typing import Any

from calibration.report_content import Content
from calibration.report_figures import Confidence, Ranking, Trade
from calibration.report_gears import GearRow, gear_rows


def summary(content: Content) -> dict[str, Any]:
    """Return every number that the page is made of; rows are indices into the data."""
    material, changed = content.material, content.changed
    state = content.certification.state
    return {
        "bundle": content.name,
        "stages": material.names,
        "forms": material.recorded.forms,
        "thresholds": material.thresholds,
        "rule": content.rule,
        "data": content.split,
        "data_sha256": material.data.sha256,
        "n": content.n,
        "reporting_only": content.split == "test",
        "certificate": {"state": state, "words": content.promise},
        "costs": [_trade(trade) for trade in content.trades],
        "standings": [{**one._asdict(), "verdict": one.verdict} for one in content.standings],
        "gears": [_gear(row) for row in gear_rows(material, content.trades, state)],
        "device": content.timed.device if content.timed else None,
        "gates": [flow._asdict() for flow in content.flows],
        "scores": [_ranking(ranking) for ranking in content.rankings],
        "confidence": [_confidence(facts) for facts in content.confidences],
        "agreement": content.counts,
        "drop": changed.drop,
        "drop_interval": changed.interval,
        "harmed": changed.harmed.tolist(),
        "helped": changed.helped.tolist(),
        "models": [row._asdict() for row in content.models],
    }


def _trade(trade: Trade) -> dict[str, Any]:
    return {
        "unit": {"macs": "macs", "time": "seconds"}[trade.unit],
        "in_force": trade.here._asdict(),
        "gears": [gear._asdict() for gear in trade.gears],
        "front": [single._asdict() for single in trade.front],
        "singles": [single._asdict() for single in trade.singles],
        "cascade": trade.cascade.tolist(),
        "pairs": {name: curve.tolist() for name, curve in trade.pairs.items()},
    }


def _gear(row: GearRow) -> dict[str, Any]:
    bound = row.disagreement
    return {**row._asdict(), "disagreement": bound and bound.model_dump(mode="json")}


def _ranking(ranking: Ranking) -> dict[str, Any]:
    return {
        "stage": ranking.stage,
        "n": ranking.n,
        "used": ranking.used,
        "aurc": {name: curve.aurc for name, curve in ranking.scores.items()},
        "aurc_perfect": ranking.perfect.aurc,
    }


def _confidence(facts: Confidence) -> dict[str, Any]:
    return {
        "stage": facts.stage,
        "edges": facts.edges.tolist(),
        "right": facts.right.tolist(),
        "wrong": facts.wrong.tolist(),
        "calibration_error": facts.error,
        "threshold": facts.threshold,
    }
