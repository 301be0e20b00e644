"""What the bench found, on a terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from runtime.bench_report import Report, latency_keys, subjects
from runtime.bench_stages import DeviceFacts
from runtime.cascade import Cascade
from runtime.environment import MachineFacts
from runtime.images import Images
from runtime.measurement import P99_NEEDS

SLOWEST_LAYERS = 8
"""Of a stage, in the table; all stand in the JSON."""

EMULATED = "EMULATION: no GPU has run. Times would mean nothing, so there are none."


def heading(
    cascade: Cascade, device: DeviceFacts, images: Images, machine: MachineFacts, *, batch: int
) -> RenderableType:
    """Return the panel that says what is measured, on what, before it begins."""
    stages = " -> ".join(
        f"{stage.name} ({stage.macs / 1e6:.2f} MMAC)" for stage in cascade.bundle.spec.stages
    )
    pixels = " Random pixels make the escalation rate meaningless." if images.random else ""
    rows = {
        "cascade": f"{stages}, forms {'/'.join(cascade.forms)}",
        "gates": _gates(cascade),
        "promise": str(cascade.certification),
        "images": f"{len(images.frames):,} from {images.source}, batch {batch}.{pixels}",
        "machine": f"{machine.cpu}, {machine.cpus_available} of {machine.cpus} CPUs, "
        f"{machine.system}, Python {machine.python}, NumPy {machine.numpy}",
        **device.lines,
    }
    lines = [f"{name:<9} {escape(text)}" for name, text in rows.items()]
    if device.emulated:
        lines.append(EMULATED)
    return Panel("\n".join(lines), title=f"bench: {cascade.bundle.spec.name}", title_align="left")


def tables(report: Report) -> RenderableType:
    """Return the tables and lines of the terminal report."""
    parts: list[RenderableType] = [_subjects_table(report), _summary(report)]
    if report["device"]["emulated"]:
        parts.append(f"[yellow]{EMULATED}")
    else:
        parts.append(_split_table(report))
        if report["layers"] is not None:
            parts.append(_layer_table(report))
    if report["interrupted"]:
        parts.append("[yellow]Interrupted: the numbers cover only what was measured until then.")
    return Group(*parts)


def _table(title: str) -> Table:
    padding = (0, 1, 0, 0)
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, padding=padding)


def _subjects_table(report: Report) -> Table:
    latency = latency_keys(report)
    table = _table("images per second, accuracy in %, milliseconds per batch")
    table.add_column("", no_wrap=True)
    for column in ("batch", "img/s", "acc", *latency):
        table.add_column(column, justify="right", no_wrap=True)
    unreliable = False
    for name, subject in subjects(report):
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
        *_guard_rows(report["drift_guard"]),
        *(
            (f"{r['from']} sends on", _percent(r["rate"]), _interval(r["interval"]))
            for r in report["escalation_rate"]
        ),
        _drop_row(report["accuracy_drop"]),
        (
            "overhead",
            _times(report["overhead_ratio"]),
            "cascade / its engines alone, same row groups",
        ),
        ("fill loss", _times(report["fill_loss"]), "those row groups / same rows in full batches"),
        ("certificate", *_promise(report["certificate"])),
        *_device_rows(report),
    ]
    if report["peak_memory"]:
        peak = report["peak_memory"]
        megabytes = f"{peak['cascade'] / 1e6:.0f} MB, bare sessions {peak['sessions'] / 1e6:.0f} MB"
        rows.append(("peak memory", _times(peak["ratio"]), megabytes))
    for row in rows:
        grid.add_row(f"[bold]{row[0]}", row[1], f"[dim]{row[2]}")
    return grid


def _device_rows(report: Report) -> list[tuple[str, str, str]]:
    """Return what only a GPU has."""
    rows, device, asked = [], report["device"], report["per_batch"]
    streamed = report["cascade"]["streamed_throughput"]
    if streamed is not None:
        rows.append(("streamed", f"{streamed:,.0f} img/s", "cascade, two batches under way"))
    if asked is not None:
        rest = f"{asked['copies']:.1f} copies, {asked['waits']:.2f} waits before the answers'"
        rows.append(("per batch", f"{asked['launches']:.1f} launches", rest))
    if asked is not None and asked["upload_seconds"] is not None:
        both = (1e3 * asked[f"{way}_seconds"] for way in ("upload", "download"))
        copies = "up and down, GPU time per batch by events"
        rows.append(("transfers", " + ".join(f"{ms:.3g}" for ms in both) + " ms", copies))
    if "slot_bytes" in device:
        size = f"{device['slot_bytes'] / 2**20:.1f} MiB"
        rows.append(("memory", size, f"per batch under way; {device['slots']} of them"))
    return rows


def _guard_rows(guard: Report | None) -> list[tuple[str, str, str]]:
    if guard is None:
        return []
    more = f"{guard['macs_per_image'] / 1e6:.2f} MMAC of these, for images put to all stages again"
    return [("drift guard", _percent(guard["shadowed"]), f"{more}; not in the times")]


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
    """Show shares of the wall time, or what events tell of a GPU: milliseconds per batch."""
    stages, parts = report["stage_split"], ("feed_seconds", "engine_seconds", "gate_seconds")
    if report["split_clock"] == "wall":
        table, form = _table("where the cascade's time goes"), "{:.1f} %"
        whole = sum(stage[part] for stage in stages for part in parts) / 100
    else:
        table, form = _table("GPU time by events, ms per batch"), "{:.3g}"
        whole = stages[0]["rows"] / report["cascade"]["batch"] / 1e3
    for column in ("stage", "images", "feed", "engine", "gate"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in stages:
        cells = (form.format(stage[part] / (whole or 1)) for part in parts)
        table.add_row(stage["stage"], f"{stage['rows']:,}", *cells)
    return table


def _layer_table(report: Report) -> Table:
    """Return the slowest layers of each stage; a share is of all layers of the stage."""
    table = _table("the slowest layers, by TensorRT's profiler")
    for column in ("stage", "layer", "ms per batch", "share"):
        table.add_column(column, justify="left" if column in ("stage", "layer") else "right")
    for stage in report["stages"]:
        layers = [used for used in report["layers"] if used["stage"] == stage]
        layers.sort(key=lambda used: -used["seconds"])
        whole = sum(used["seconds"] for used in layers) or 1
        for used in layers[:SLOWEST_LAYERS]:
            times = (f"{1e3 * used['seconds']:.3g}", f"{100 * used['seconds'] / whole:.1f} %")
            table.add_row(stage, escape(used["layer"]), *times)
    return table


def _gates(cascade: Cascade) -> str:
    text = f"thresholds {', '.join(_threshold(t) for t in cascade.thresholds)}"
    return f"{text} (gear {cascade.gear})" if cascade.gear else text


def _time(times: Report, key: str) -> str:
    if key not in times:
        return "-"
    mark = "*" if key == "p99" and not times["p99_reliable"] else ""
    return f"{times[key]:.3g}{mark}"


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
