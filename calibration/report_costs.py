"""What the models of a report cost: multiply-accumulates, and time on this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import onnxruntime
from rich.progress import Progress

from calibration.cost_table import CostTable, ModelCosts, load_table, save_table
from calibration.costs import MacCosts, batch_sizes
from calibration.report_material import Material
from calibration.timings import host_run, measure_seconds

ROUNDS = 30


def mac_costs(material: Material) -> MacCosts:
    """Return the multiply-accumulates of every model."""
    models = (*material.stages, *material.others)
    return MacCosts({model.name: model.stage.macs for model in models})


def measured_costs(
    material: Material,
    file: Path | None,
    *,
    batch: int,
    threads: int,
    progress: Progress,
) -> CostTable | None:
    """Return the time of each model at each batch size, measured here unless a file has it.

    None where a stage reads what an earlier stage left, so that it cannot be timed alone.

    Parameters
    ----------
    file
        As `calibration.search --costs`: read if it is there, else written.
    progress
        Shows how many rounds of measuring are done.

    Raises
    ------
    CalibrationError
        When the file cannot be read or written, or holds other models or another batch size.
    """
    if not all(model.stage.reads_frames for model in material.stages):
        return None
    models = {model.name: model for model in material.singles}
    if file and file.exists():
        return load_table(file, models, unit="time", batch=batch)
    runs = {name: host_run(m.file, m.stage, threads=threads) for name, m in models.items()}
    task = progress.add_task("measuring time", total=ROUNDS)
    seconds = measure_seconds(
        runs, batch_sizes(batch), rounds=ROUNDS, advance=lambda: progress.advance(task)
    )
    progress.remove_task(task)
    table = CostTable(
        unit="time",
        device=f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}, "
        f"ONNX Runtime {onnxruntime.__version__}",
        batch=batch,
        models={
            name: ModelCosts(sha256=models[name].sha256, by_size=by_size)
            for name, by_size in seconds.items()
        },
    )
    if file:
        save_table(file, table)
    return table
