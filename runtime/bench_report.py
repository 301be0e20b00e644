"""What the bench found: the numbers under stable keys, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from kernels.files import replacing
from runtime.bench_accuracy import Accuracy
from runtime.bench_stages import LayerUse, Split, Stages
from runtime.bench_timing import Timing
from runtime.cascade import Cascade
from runtime.drift import shadow_macs
from runtime.errors import InputError
from runtime.images import Images
from runtime.measurement import Subject, median_ratio, paired_interval, wilson_interval

FORMAT: Final = "tinysaver.bench/1"

Report = dict[str, Any]


def build(
    cascade: Cascade,
    stages: Stages,
    images: Images,
    accuracy: Accuracy,
    timing: Timing,
    *,
    percentiles: Sequence[float],
) -> Report:
    """Return every number of the bench; rates and accuracies are fractions, throughput images/s.

    Where nothing but an emulation has run there are no times.
    """
    device = stages.describe()
    timed = timing.without_times() if device.emulated else timing
    names = cascade.stage_names
    large = accuracy.alone(names[-1]) if names[-1] in accuracy.logits else None
    rates = _escalation(cascade, accuracy)
    return {
        "format": FORMAT,
        "bundle": cascade.bundle.spec.name,
        "stages": list(names),
        "forms": list(cascade.forms),
        "thresholds": list(cascade.thresholds),
        "gear": cascade.gear,
        "images": {"source": images.source, "n": len(accuracy.label), "random": images.random},
        "device": dict(device.facts),
        **_subjects_of(accuracy, timed, large, percentiles),
        **_ratios(timed),
        "escalation_rate": rates,
        "macs_per_image": _macs(cascade, rates),
        "macs_saved": _macs_saved(cascade, _macs(cascade, rates)),
        "accuracy_drop": _drop(accuracy, large),
        "agreement_with_large": None if large is None else _mean(accuracy.label == large),
        "split_clock": stages.clock,
        "stage_split": [_split(split, timed=not device.emulated) for split in stages.split()],
        "per_batch": stages.per_batch(),
        "layers": _layers(stages.layers(), timed=not device.emulated),
        "certificate": _certificate(cascade),
        "interrupted": timing.interrupted,
    }


def with_drift_guard(report: Report, cascade: Cascade, share: float | None) -> Report:
    """Return the report with the MACs of a drift guard that watches a share of the images."""
    if share is None:
        return {**report, "drift_guard": None}
    stages = cascade.bundle.spec.stages
    accepted = 1 - (report["escalation_rate"][-1]["rate"] or 0.0)
    macs = shadow_macs(share, accepted, stages)
    whole = report["macs_per_image"] + macs
    return {
        **report,
        "macs_per_image": whole,
        "macs_saved": _macs_saved(cascade, whole),
        "drift_guard": {
            "share": share,
            "shadowed": share * accepted,
            "macs_per_image": macs,
        },
    }


def write_json(path: Path, report: Report) -> None:
    """Write the report as JSON; the path ``-`` is standard output."""
    text = json.dumps(report, indent=2, allow_nan=False)
    if str(path) == "-":
        print(text)
        return
    with replacing(path) as stream:
        stream.write(text.encode() + b"\n")


def write_csv(path: Path, report: Report) -> None:
    """Write one line per subject: cascade, large model alone, each saver alone."""
    text = io.StringIO()
    rows = subjects(report)
    latency = latency_keys(report)
    writer = csv.writer(text)
    columns = ["subject", "batch", "throughput", "accuracy", "calls"]
    writer.writerow([*columns, *(f"{key}_ms" for key in latency)])
    for name, subject in rows:
        times = subject["latency_ms"]
        values = [subject["batch"], subject["throughput"], subject["accuracy"], times["samples"]]
        writer.writerow([name, *values, *(times.get(key) for key in latency)])
    if str(path) == "-":
        sys.stdout.write(text.getvalue())
        return
    with replacing(path) as stream:
        stream.write(text.getvalue().encode())


def subjects(report: Report) -> list[tuple[str, Report]]:
    """Return what was timed, each with a name for people, the cascade first."""
    rows = [("cascade", report["cascade"])]
    if report["large_only"]:
        rows.append((f"{report['large_only']['name']} alone", report["large_only"]))
    return rows + [(f"{saver['name']} alone", saver) for saver in report["savers_only"]]


def latency_keys(report: Report) -> list[str]:
    """Return the keys of the times of a call, in the order to show them."""
    times = report["cascade"]["latency_ms"]
    return [key for key in times if key not in ("mean", "samples", "p99_reliable")]


def check_writable(path: Path) -> None:
    """Refuse an output path that cannot be written, before the work begins."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: expected a file in an existing folder.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None


def _subjects_of(
    accuracy: Accuracy, timing: Timing, large: Any, percentiles: Sequence[float]
) -> Report:
    """Return cascade, large model and savers; ``large`` is the labels of the large model alone."""
    right = accuracy.share_right
    savers = [
        _subject(subject, percentiles, right(accuracy.alone(name)), batch=timing.batch)
        for name, subject in timing.savers.items()
    ]
    whole = _subject(timing.cascade, percentiles, right(accuracy.label), batch=timing.batch)
    alone = None
    if timing.large is not None and large is not None:
        alone = _subject(timing.large, percentiles, right(large), batch=timing.large_batch)
    return {
        "cascade": {**whole, "streamed_throughput": _ratio(timing.streamed.throughput)},
        "large_only": alone,
        "saver_only": savers[0] if savers else None,
        "savers_only": savers,
    }


def _ratios(timing: Timing) -> Report:
    turns = timing.turns
    return {
        "speedup": _ratio(median_ratio(turns["large"], turns["cascade"][: len(turns["large"])])),
        "overhead_ratio": _ratio(median_ratio(turns["wall"], turns["engines"])),
        "overhead_ratio_repeated": _ratio(median_ratio(turns["wall"], turns["repeated"])),
        "fill_loss": _ratio(median_ratio(turns["repeated"], turns["full"])),
    }


def _subject(
    subject: Subject, percentiles: Sequence[float], right: float | None, *, batch: int
) -> Report:
    return {
        "name": subject.name,
        "batch": batch,
        "throughput": _ratio(subject.throughput),
        "latency_ms": subject.latency_ms(percentiles),
        "accuracy": right,
    }


def _escalation(cascade: Cascade, accuracy: Accuracy) -> list[Report]:
    names, n = cascade.stage_names, len(accuracy.stage)
    rates = []
    for gate in range(len(names) - 1):
        sent = int((accuracy.stage > gate).sum())
        rates.append(
            {
                "from": names[gate],
                "to": names[gate + 1],
                "rate": sent / n if n else None,
                "interval": list(wilson_interval(sent, n)),
            }
        )
    return rates


def _macs(cascade: Cascade, rates: list[Report]) -> float:
    reached = [1.0, *(rate["rate"] or 0.0 for rate in rates)]
    stages = cascade.bundle.spec.stages
    return sum(share * stage.macs for share, stage in zip(reached, stages, strict=True))


def _drop(accuracy: Accuracy, large: Any) -> Report | None:
    if accuracy.truth is None or large is None or not len(accuracy.label):
        return None
    cascade_right, large_right = accuracy.label == accuracy.truth, large == accuracy.truth
    harm = int((large_right & ~cascade_right).sum())
    help_ = int((cascade_right & ~large_right).sum())
    n = len(large)
    return {
        "value": (harm - help_) / n,
        "interval": list(paired_interval(harm, help_, n)),
        "harm": harm,
        "help": help_,
    }


def _split(split: Split, *, timed: bool) -> Report:
    return {
        "stage": split.stage,
        "rows": split.rows,
        "feed_seconds": split.feed if timed else None,
        "engine_seconds": split.engine if timed else None,
        "gate_seconds": split.gate if timed else None,
    }


def _layers(layers: list[LayerUse] | None, *, timed: bool) -> list[Report] | None:
    if layers is None:
        return None
    return [{**asdict(used), "seconds": used.seconds if timed else None} for used in layers]


def _certificate(cascade: Cascade) -> Report:
    certification = cascade.certification
    certificate = certification.certificate
    return {
        "status": certification.state,
        "statement": str(certification),
        **(certificate.model_dump(mode="json", exclude={"path"}) if certificate else {}),
    }


def _macs_saved(cascade: Cascade, macs: float) -> float | None:
    """Return the share; None where the last stage is part of a model that nothing is known of."""
    large = cascade.bundle.spec.stages[-1]
    known = large.reads_frames or large.whole_macs is not None
    return _ratio(1 - macs / large.macs_alone) if known else None


def _ratio(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
