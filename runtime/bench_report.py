"""What the bench found: the numbers under stable keys, and how they look on a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from runtime.bench_accuracy import Accuracy
from runtime.bench_timing import Timing
from runtime.bundle import replacing
from runtime.cascade import Cascade
from runtime.environment import MachineFacts
from runtime.errors import InputError
from runtime.host import on_host
from runtime.images import Images
from runtime.measurement import P99_NEEDS, Subject, median_ratio, paired_interval, wilson_interval

Report = dict[str, Any]


def build(
    cascade: Cascade,
    images: Images,
    accuracy: Accuracy,
    timing: Timing,
    *,
    percentiles: Sequence[float],
) -> Report:
    """Return every number of the bench; rates and accuracies are fractions, throughput images/s."""
    names = cascade.stage_names
    large = accuracy.alone(names[-1]) if names[-1] in accuracy.logits else None
    savers = [
        _subject(
            timing.savers[name],
            percentiles,
            accuracy.share_right(accuracy.alone(name)),
            batch=timing.batch,
        )
        for name in names[:-1]
        if name in timing.savers
    ]
    rates = _escalation(cascade, accuracy)
    turns = timing.turns
    return {
        "bundle": cascade.bundle.spec.name,
        "stages": list(names),
        "thresholds": list(cascade.thresholds),
        "images": {"source": images.source, "n": len(accuracy.label), "random": images.random},
        "cascade": _subject(
            timing.cascade,
            percentiles,
            accuracy.share_right(accuracy.label),
            batch=timing.batch,
        ),
        "large_only": None
        if timing.large is None or large is None
        else _subject(
            timing.large, percentiles, accuracy.share_right(large), batch=timing.large_batch
        ),
        "saver_only": savers[0] if savers else None,
        "savers_only": savers,
        "speedup": _ratio(median_ratio(turns["large"], turns["cascade"][: len(turns["large"])])),
        "overhead_ratio": _ratio(median_ratio(turns["wall"], turns["sessions"])),
        "overhead_ratio_repeated": _ratio(median_ratio(turns["wall"], turns["repeated"])),
        "fill_loss": _ratio(median_ratio(turns["repeated"], turns["full"])),
        "escalation_rate": rates,
        "macs_per_image": _macs(cascade, rates),
        "macs_saved": _ratio(1 - _macs(cascade, rates) / cascade.bundle.spec.stages[-1].macs),
        "accuracy_drop": _drop(accuracy, large),
        "agreement_with_large": None if large is None else _mean(accuracy.label == large),
        "stage_split": _split(cascade),
        "certificate": _certificate(cascade),
        "interrupted": timing.interrupted,
    }


def heading(
    cascade: Cascade, images: Images, machine: MachineFacts, *, batch: int
) -> RenderableType:
    """Return the panel that says what is measured, on what, before it begins."""
    stages = " -> ".join(
        f"{stage.name} ({stage.macs / 1e6:.2f} MMAC)" for stage in cascade.bundle.spec.stages
    )
    pixels = " Random pixels make the escalation rate meaningless." if images.random else ""
    threads = on_host(cascade.executor).threads
    lines = [
        f"cascade   {stages}, forms {'/'.join(cascade.forms)}",
        f"gates     thresholds {', '.join(_threshold(t) for t in cascade.thresholds)}",
        f"promise   {cascade.certification}",
        f"images    {len(images.frames):,} from {images.source}, batch {batch}.{pixels}",
        f"machine   {machine.cpu}, {machine.cpus_available} of {machine.cpus} CPUs, "
        f"{machine.system}",
        f"engine    ONNX Runtime {machine.onnxruntime}, {threads} threads, "
        f"Python {machine.python}, NumPy {machine.numpy}",
        "measured  wall time from u8 frames in memory to labels: resize, engines, gates, gather",
    ]
    return Panel("\n".join(lines), title=f"bench: {cascade.bundle.spec.name}", title_align="left")


def tables(report: Report) -> RenderableType:
    """Return the tables and lines of the terminal report."""
    parts: list[RenderableType] = [_subjects_table(report), _summary(report), _split_table(report)]
    if report["interrupted"]:
        parts.append("[yellow]Interrupted: the numbers cover only what was measured until then.")
    return Group(*parts)


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
    rows = _subjects(report)
    latency = _times_in(report)
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


def check_writable(path: Path) -> None:
    """Refuse an output path that cannot be written, before the work begins."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: expected a file in an existing folder.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None


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


def _split(cascade: Cascade) -> list[Report]:
    return [
        {
            "stage": stage.spec.name,
            "rows": stage.timings.rows,
            "feed_seconds": stage.timings.feed,
            "session_seconds": stage.timings.session,
            "gate_seconds": stage.timings.gate,
        }
        for stage in on_host(cascade.executor).stages
    ]


def _certificate(cascade: Cascade) -> Report:
    certification = cascade.certification
    certificate = certification.certificate
    return {
        "status": certification.state,
        "statement": str(certification),
        **(certificate.model_dump(mode="json", exclude={"path"}) if certificate else {}),
    }


def _subjects(report: Report) -> list[tuple[str, Report]]:
    rows = [("cascade", report["cascade"])]
    if report["large_only"]:
        rows.append((f"{report['large_only']['name']} alone", report["large_only"]))
    return rows + [(f"{saver['name']} alone", saver) for saver in report["savers_only"]]


def _table(title: str) -> Table:
    padding = (0, 1, 0, 0)
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=padding)


def _times_in(report: Report) -> list[str]:
    times = report["cascade"]["latency_ms"]
    return [key for key in times if key not in ("mean", "samples", "p99_reliable")]


def _subjects_table(report: Report) -> Table:
    latency = _times_in(report)
    table = _table("images per second, accuracy in %, milliseconds per batch")
    table.add_column("", no_wrap=True)
    for column in ("batch", "img/s", "acc", *latency):
        table.add_column(column, justify="right", no_wrap=True)
    unreliable = False
    for name, subject in _subjects(report):
        cells = [_time(subject["latency_ms"], key) for key in latency]
        unreliable |= any(cell.endswith("*") for cell in cells)
        share = _percent(subject["accuracy"]).removesuffix(" %")
        table.add_row(name, str(subject["batch"]), _number(subject["throughput"]), share, *cells)
    if unreliable:
        table.caption = f"* fewer than {P99_NEEDS:,} batches: this p99 rests on a handful of them"
    return table


def _summary(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2))
    rows = [
        ("speed-up", _times(report["speedup"]), "over the large model alone at its best batch"),
        (
            "MACs saved",
            _percent(report["macs_saved"]),
            f"{report['macs_per_image'] / 1e6:.2f} MMAC per image",
        ),
        *(
            (f"{r['from']} sends on", _percent(r["rate"]), _interval(r["interval"]))
            for r in report["escalation_rate"]
        ),
        _drop_row(report["accuracy_drop"]),
        (
            "overhead",
            _times(report["overhead_ratio"]),
            "cascade / its sessions alone, same row groups",
        ),
        ("fill loss", _times(report["fill_loss"]), "those row groups / same rows in full batches"),
        ("certificate", *_promise(report["certificate"])),
    ]
    if report["peak_memory"]:
        peak = report["peak_memory"]
        megabytes = f"{peak['cascade'] / 1e6:.0f} MB, bare sessions {peak['sessions'] / 1e6:.0f} MB"
        rows.append(("peak memory", _times(peak["ratio"]), megabytes))
    for row in rows:
        grid.add_row(f"[bold]{row[0]}", row[1], f"[dim]{row[2]}")
    return grid


def _promise(certificate: Report) -> tuple[str, str]:
    state: str = certificate["status"]
    return state, certificate["statement"].removeprefix(state).lstrip(":; ")


def _drop_row(drop: Report | None) -> tuple[str, str, str]:
    if drop is None:
        return ("accuracy drop", "-", "needs labels")
    low, high = (100 * value for value in drop["interval"])
    return (
        "accuracy drop",
        f"{100 * drop['value']:.2f} points",
        f"on these images, 95 % interval {low:.2f} to {high:.2f}",
    )


def _split_table(report: Report) -> Table:
    table = _table("where the cascade's time goes")
    for column in ("stage", "images", "feed", "session", "gate"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    parts = ("feed_seconds", "session_seconds", "gate_seconds")
    total = sum(stage[part] for stage in report["stage_split"] for part in parts) or 1.0
    for stage in report["stage_split"]:
        shares = (f"{100 * stage[part] / total:.1f} %" for part in parts)
        table.add_row(stage["stage"], f"{stage['rows']:,}", *shares)
    return table


def _time(times: Report, key: str) -> str:
    if key not in times:
        return "-"
    mark = "*" if key == "p99" and not times["p99_reliable"] else ""
    return f"{times[key]:.3g}{mark}"


def _ratio(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _interval(interval: list[float]) -> str:
    return f"of all images, 95 % interval {100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


def _threshold(threshold: Any) -> str:
    return "per class" if isinstance(threshold, list) else f"{threshold:.4g}"
