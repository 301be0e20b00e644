"""``python -m runtime.bench``: the main job, a cascade against its large model on real images."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console

from runtime import bench_report, bench_tables, plot
from runtime.bench_accuracy import Accuracy, measure_accuracy
from runtime.bench_memory import measure_memory
from runtime.bench_stages import Stages, stages_of
from runtime.bench_timing import Timed, Timing, TimingPlan, measure_timing
from runtime.bundle import Bundle, demo_folder, load_bundle
from runtime.cascade import Cascade
from runtime.device_options import GEAR, device_options, take_gpu_options
from runtime.devices import GpuOptions, expects_gpu, parse_forms
from runtime.drift import Watch
from runtime.environment import describe, refuse_foreign_packages
from runtime.errors import InputError
from runtime.host import HostExecutor
from runtime.images import Images, load_arrays
from runtime.terminal import Command, parse_numbers, progress_bar

LARGE_BATCHES = (1, 8, 32, 256)
QUICK_IMAGES = 2_000
RANDOM_IMAGES = 1_024
EMULATED_BATCHES = 4
"""An emulation has no times, so a few batches show all there is."""


@click.command(cls=Command)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Folder with cascade.json.  [default: the Fashion-MNIST bundle that comes along]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="npz with images u8 [n,H,W,C] and labels [n].  [default: data/test.npz of the bundle]",
)
@device_options
@click.option(
    "--transfers/--no-transfers",
    default=True,
    show_default=True,
    help="Times on a GPU hold the copies of frames and answers, or neither.",
)
@click.option(
    "--profile-layers",
    is_flag=True,
    help="Let TensorRT time each layer, and show the slowest: other times are then longer.",
)
@click.option("--batch", default=32, show_default=True, help="Images that arrive together.")
@click.option(
    "--iterations", default=1_000, show_default=True, help="Batches to measure, at least."
)
@click.option("--duration", default=0.0, show_default=True, help="Seconds to measure, at least.")
@click.option("--warmup", default=500.0, show_default=True, help="Milliseconds before measuring.")
@GEAR
@click.option(
    "--drift-guard",
    type=float,
    metavar="Q",
    help="Count the MACs of a drift guard that puts a share Q of the accepted images to the large "
    "model too. The times are without it.",
)
@click.option(
    "--threshold", help="Use T, or one T per gate as T1,T2, instead of the bundle's: not certified."
)
@click.option(
    "--escalation-rate",
    help="Force the share of all images that each gate sends on, as 0.3 or 0.3,0.1, "
    "at random whatever the scores: for latency tests. Accuracy is then not the cascade's.",
)
@click.option(
    "--percentiles", default="50,90,95,99", show_default=True, help="Of latency, comma-separated."
)
@click.option(
    "--forms",
    help="Form of each stage, as fp32/int8_host/int8_host.  [default: fp32, on a GPU fp16]",
)
@click.option("--threads", type=int, help="CPU threads of every engine.  [default: all available]")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write every number; - prints."
)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the table.")
@click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path), help="Draw accuracy against cost."
)
@click.option(
    "--memory",
    is_flag=True,
    help="Measure peak memory too, in two more processes (CPU and Linux).",
)
@click.option("--quick", is_flag=True, help="A few seconds: 2,000 images, 100 batches.")
@click.option("--seed", default=0, show_default=True, help="Of the order of images.")
def main(**options: Any) -> None:
    """Time a cascade, its large model and each saver alone on the same images.

    Without arguments: 10,000 real images through the bundle that comes along, about half a minute.

    \b
    Examples
      python -m runtime.bench
      python -m runtime.bench --batch 8 --threads 1 --json result.json --plot curve.png
      python -m runtime.bench --bundle my/bundle --data my/test.npz
      python -m runtime.bench --device cuda --mode graph --no-transfers
      python -m runtime.bench --device cuda --mode host --profile-layers
    """
    profile_layers = options.pop("profile_layers")
    gpu = replace(take_gpu_options(options), profile_layers=profile_layers)
    sys.exit(run_bench(Options(gpu=gpu, **options)))


@dataclass(frozen=True)
class Options:
    """The command line, as given."""

    bundle: Path | None
    data: Path | None
    device: str
    gpu: GpuOptions
    transfers: bool
    batch: int
    iterations: int
    duration: float
    warmup: float
    gear: int
    drift_guard: float | None
    threshold: str | None
    escalation_rate: str | None
    percentiles: str
    forms: str | None
    threads: int | None
    json_file: Path | None
    csv_file: Path | None
    plot_file: Path | None
    memory: bool
    quick: bool
    seed: int

    def check(self) -> None:
        """Refuse what no run can honour, before any work is done."""
        for name in ("batch", "iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected at least 1, got {getattr(self, name)}.")
        for name in ("duration", "warmup"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name}: expected 0 or more, got {getattr(self, name)}.")
        if sum(map(bool, (self.threshold, self.escalation_rate, self.gear))) > 1:
            raise InputError("--threshold, --escalation-rate and --gear: give one of them.")
        if self.drift_guard is not None:
            Watch(share=self.drift_guard)
        for path in (self.json_file, self.csv_file, self.plot_file):
            if path and str(path) != "-":
                bench_report.check_writable(path)
        if self.plot_file:
            plot.require_matplotlib()


def run_bench(options: Options) -> int:
    """Run the bench and write what was asked for; return the exit status."""
    options.check()
    percentiles = parse_numbers("--percentiles", options.percentiles, 0, 100)
    refuse_foreign_packages()
    bundle = load_bundle(options.bundle or demo_folder())
    images = _load_images(bundle, options)
    to_stdout = options.json_file is not None and str(options.json_file) == "-"
    console = Console(stderr=to_stdout)
    with (
        _load_cascade(bundle, options) as cascade,
        closing(stages_of(cascade, transfers=options.transfers)) as stages,
    ):
        force = _forced_rows(options, cascade, len(images.frames))
        machine, device = describe(), stages.describe()
        console.print(bench_tables.heading(cascade, device, images, machine, batch=options.batch))
        accuracy, timing = _measure(cascade, stages, options, images, force)
        report = bench_report.build(
            cascade, stages, images, accuracy, timing, percentiles=percentiles
        )
        report = bench_report.with_drift_guard(report, cascade, options.drift_guard)
        report["peak_memory"] = _memory(bundle, options, cascade) if options.memory else None
        report["environment"] = asdict(machine)
        console.print(bench_tables.tables(report))
        _write(options, report, cascade, accuracy)
    return 130 if timing.interrupted else 0


def _measure(
    cascade: Cascade,
    stages: Stages,
    options: Options,
    images: Images,
    force: npt.NDArray[np.uint8] | None,
) -> tuple[Accuracy, Timing]:
    plan = _timing_plan(options, emulated=stages.describe().emulated)
    timing, accuracy = Timing.empty(cascade, options.batch), Accuracy.empty(cascade)
    with progress_bar() as progress:
        try:
            task = progress.add_task("accuracy", total=len(images.frames))
            for done in measure_accuracy(cascade, images, accuracy, force=force):
                progress.update(task, completed=done)
            timed = Timed(cascade, stages, images.frames, force)
            measure_timing(timed, plan, timing, progress=progress)
        except KeyboardInterrupt:
            timing.interrupted = True
    return accuracy, timing


def _timing_plan(options: Options, *, emulated: bool) -> TimingPlan:
    batches = min(100, options.iterations) if options.quick else options.iterations
    return TimingPlan(
        batch=options.batch,
        batches=min(EMULATED_BATCHES, batches) if emulated else batches,
        seconds=0.0 if emulated else options.duration,
        warmup_seconds=0.0 if emulated else options.warmup / 1e3,
        large_batches=tuple(sorted({*LARGE_BATCHES, options.batch})),
    )


def _memory(bundle: Bundle, options: Options, cascade: Cascade) -> dict[str, float]:
    data = options.data or bundle.folder / "data" / "test.npz"
    if not data.exists():
        raise InputError("--memory: give --data, the bundle has no data/test.npz.")
    assert isinstance(cascade.executor, HostExecutor)
    peak = measure_memory(
        bundle.folder,
        data,
        cascade.forms,
        batch=options.batch,
        threads=cascade.executor.threads,
    )
    return {**peak._asdict(), "ratio": peak.ratio}


def _load_cascade(bundle: Bundle, options: Options) -> Cascade:
    forms = parse_forms(options.forms) if options.forms else None
    load = partial(Cascade.load, bundle, threads=options.threads, forms=forms, gpu=options.gpu)
    # On the CPU also for the batches in which the large model alone may be faster.
    most = max(options.batch, *LARGE_BATCHES)
    gpu = expects_gpu(options.device, forms)
    cascade = load(options.device, batch=options.batch if gpu else most)
    if isinstance(cascade.executor, HostExecutor) and cascade.batch < most:
        cascade.close()  # there is a GPU, and it could not be used
        cascade = load("cpu", batch=most)
    try:
        _check_device(options, on_cpu=isinstance(cascade.executor, HostExecutor))
    except InputError:
        cascade.close()
        raise
    if options.gear:
        cascade.shift(options.gear)
    if options.threshold:
        values = parse_numbers("--threshold", options.threshold, 0, 1)
        gates = len(bundle.spec.gates)
        cascade.thresholds = tuple(values * gates if len(values) == 1 else values)
    return cascade


def _check_device(options: Options, *, on_cpu: bool) -> None:
    """Refuse what the device that was found cannot do."""
    if options.memory and not on_cpu:
        raise InputError("--memory: only for the CPU; what a GPU needs is always shown.")
    if options.gpu.profile_layers and on_cpu:
        raise InputError(
            "--profile-layers: TensorRT has a profiler, the CPU's engine has none. "
            "Choose a GPU: --device cuda"
        )


def _load_images(bundle: Bundle, options: Options) -> Images:
    path = options.data or bundle.folder / "data" / "test.npz"
    if options.data is None and not path.exists():
        return _random_images(bundle, options.seed)
    frames, labels = load_arrays(path)
    classes = len(bundle.spec.labels)
    if labels is not None and len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise InputError(f"{path}: labels: expected 0 to {classes - 1}, got up to {labels.max()}.")
    if not len(frames):
        raise InputError(f"{path}: images: expected at least one, got none.")
    rows = np.random.default_rng(options.seed).permutation(len(frames))
    rows = rows[:QUICK_IMAGES] if options.quick else rows
    return Images(frames[rows], None if labels is None else labels[rows], str(path))


def _random_images(bundle: Bundle, seed: int) -> Images:
    height, width, channels = bundle.spec.input.shape
    size = (height, width) if height else bundle.spec.stages[-1].preprocessing.size
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (RANDOM_IMAGES, *size, channels), np.uint8)
    return Images(frames, None, "random pixels", random=True)


def _forced_rows(options: Options, cascade: Cascade, n: int) -> npt.NDArray[np.uint8] | None:
    if not options.escalation_rate:
        return None
    gates = len(cascade.bundle.spec.gates)
    rates = parse_numbers("--escalation-rate", options.escalation_rate, 0, 1)
    rates = rates * gates if len(rates) == 1 else rates
    if len(rates) != gates or any(after > before for before, after in pairwise(rates)):
        raise InputError(
            f"--escalation-rate: expected one share or {gates} that do not rise, got {rates}."
        )
    cascade.thresholds = (0.0,) * gates
    order = np.random.default_rng(options.seed).permutation(n)
    return np.stack([(order < round(rate * n)).astype(np.uint8) for rate in rates])


def _write(options: Options, report: dict[str, Any], cascade: Cascade, accuracy: Accuracy) -> None:
    if options.json_file:
        bench_report.write_json(options.json_file, report)
    if options.csv_file:
        bench_report.write_csv(options.csv_file, report)
    if options.plot_file:
        plot.draw_curve(options.plot_file, cascade, accuracy, report)


if __name__ == "__main__":
    main()
