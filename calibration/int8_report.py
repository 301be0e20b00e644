"""What ``python -m calibration.int8`` shows of the forms it made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from calibration.combinations import Combination
from calibration.conversion import Converted, StageOutcome
from calibration.forms import Made
from runtime.devices import HOST_FORMS
from runtime.environment import describe, dot_product_instructions
from runtime.session import available_threads


def summary(converted: Converted, written: Path | None) -> dict[str, Any]:
    """Return the report as JSON holds it."""
    plan, recipe = converted.plan, converted.plan.recipe
    return {
        "bundle": str(converted.bundle.folder),
        "cpu": describe().cpu,
        "dot_product_instructions": dot_product_instructions(),
        "load": os.getloadavg()[0],
        "weight_bits": recipe.weight_bits,
        "method": recipe.method,
        "max_drop": recipe.max_drop,
        "calibrated_on": {
            "name": plan.calibrating.name,
            "n": len(plan.calibrating),
            "skipped": list(plan.calibrating.skipped),
        },
        "measured_on": {
            "name": plan.measuring.name,
            "n": len(plan.measuring),
            "labels": plan.measuring.labels is not None,
        },
        "stages": [_stage(outcome) for outcome in converted.stages],
        "combinations": [_combination(item) for item in converted.combinations],
        "written": None if written is None else str(written),
    }


def show(console: Console, converted: Converted, written: Path | None) -> None:
    """Print the report."""
    lines = [*_facts(converted), ""]
    _print(console, lines)
    console.print(_forms_table(converted))
    _print(console, ["", *_verdicts(converted), ""])
    if converted.combinations:
        console.print(_combinations_table(converted))
    _print(console, ["", *_next_steps(converted, written)])


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _facts(converted: Converted) -> Iterator[str]:
    plan, recipe = converted.plan, converted.plan.recipe
    flag, cpus, load = dot_product_instructions(), available_threads(), os.getloadavg()[0]
    yield f"{describe().cpu}, 8-bit dot products: {flag or 'none (no VNNI)'}"
    if load > 2 * cpus:
        yield f"The machine is busy (load {load:.1f} on {cpus} CPUs): times are rough"
    ranges = (
        f"{recipe.method} ranges from {len(plan.calibrating):,} images of {plan.calibrating.name}"
    )
    yield f"{ranges}; int8_host has {recipe.weight_bits}-bit weights"
    quantity = "accuracy" if plan.measuring.labels is not None else "agreement (no labels)"
    yield (
        f"Measured on {len(plan.measuring):,} images of {plan.measuring.name}: {quantity}, "
        f"at most {100 * recipe.max_drop:g} points lost; by ONNX Runtime on this CPU"
    )
    for skipped in plan.calibrating.skipped:
        yield f"Skipped {skipped}"


def _forms_table(converted: Converted) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "form"):
        table.add_column(column, no_wrap=True)
    for column in ("accuracy", "lost", "agree", "gate", "KiB", "us/image", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for outcome in converted.stages:
        table.add_row(*_fp32_row(outcome))
        for made in outcome.made.values():
            table.add_row("", *_row(made))
    return table


def _fp32_row(outcome: StageOutcome) -> list[str]:
    stage = outcome.forms
    timings = [made.timing for made in outcome.made.values() if made.timing]
    per_image = f"{1e6 * timings[0].fp32_seconds / timings[0].batch:.1f}" if timings else "-"
    size = f"{stage.path.stat().st_size / 1024:,.0f}"
    return [stage.spec.name, "fp32", _percent(stage.accuracy), "", "", "", size, per_image]


def _row(made: Made) -> list[str]:
    quality, timing = made.quality, made.timing
    return [
        made.form,
        _percent(quality.accuracy),
        f"{100 * quality.drop:.2f}",
        _percent(quality.agreement),
        _percent(quality.changed),
        "-" if made.content is None else f"{len(made.content) / 1024:,.0f}",
        "-" if timing is None else f"{1e6 * timing.seconds / timing.batch:.1f}",
        str(len(made.kept)),
    ]


def _verdicts(converted: Converted) -> Iterator[str]:
    yield "lost: points against FP32; gate: changed decisions; kept: nodes in higher precision"
    for outcome in converted.stages:
        name = outcome.forms.spec.name
        yield f"{name}: histograms " + ("cached" if outcome.cached else f"{outcome.seconds:.1f} s")
        for form, made in outcome.made.items():
            yield f"{name} {form}: {made.verdict}"
            for node, reason in made.kept.items():
                yield f"  kept {node}: {reason}"


def _combinations_table(converted: Converted) -> Table:
    table = Table(
        title="Thresholds by forecast on the same images, not certified",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in ("forms", "thresholds", "sent on", "MACs saved"):
        table.add_column(column)
    macs = [stage.macs for stage in converted.bundle.spec.stages]
    for item in converted.combinations:
        thresholds = " / ".join(_number(value) for value in item.setting.thresholds)
        rates = _rates(item)
        if rates is None:
            table.add_row(item.key, thresholds, item.note, "-")
            continue
        used = macs[0] + sum(rate * m for rate, m in zip(rates, macs[1:], strict=True))
        sent = " / ".join(f"{rate:.1%}" for rate in rates)
        table.add_row(item.key, thresholds, sent, f"{1 - used / macs[-1]:.1%}")
    return table


def _rates(item: Combination) -> tuple[float, ...] | None:
    if item.forecast is None:
        return None
    return item.forecast.median_rates


def _next_steps(converted: Converted, written: Path | None) -> Iterator[str]:
    if written is None:
        yield "Nothing was written."
        return
    yield f"Written to {written}. No combination of forms is certified yet:"
    for item in converted.combinations:
        if set(item.forms) <= set(HOST_FORMS):
            out = f"records/{item.key.replace('/', '-')}"
            yield (
                f"  python -m calibration.record --bundle {written} --forms {item.key} "
                f"--data certificate.npz --out {out}"
            )
            yield (
                f"  python -m calibration.threshold {written} --records {out}/certificate "
                "--data certificate.npz"
            )
        else:
            yield f"  {item.key}: record and certify it on the device that runs its plans"


def _stage(outcome: StageOutcome) -> dict[str, Any]:
    stage = outcome.forms
    return {
        "name": stage.spec.name,
        "fp32": {"accuracy": stage.accuracy, "bytes": stage.path.stat().st_size},
        "histograms": {"cached": outcome.cached, "seconds": outcome.seconds},
        "forms": {form: _form(made) for form, made in outcome.made.items()},
    }


def _form(made: Made) -> dict[str, Any]:
    return {
        "success": made.success,
        "verdict": made.verdict,
        **made.quality._asdict(),
        "bytes": None if made.content is None else len(made.content),
        "timing": None if made.timing is None else made.timing._asdict(),
        "kept": dict(made.kept),
    }


def _combination(item: Combination) -> dict[str, Any]:
    return {
        "forms": item.key,
        "thresholds": item.setting.thresholds,
        "escalation_rates": _rates(item),
        "note": item.note,
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _number(value: float | list[float]) -> str:
    return "by class" if isinstance(value, list) else f"{value:.4f}"
