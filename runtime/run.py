"""``python -m runtime.run``: classify pictures, folders or npz arrays, one JSON line each."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
import numpy as np

from kernels.files import replacing
from runtime.bundle import Bundle, demo_folder, load_bundle
from runtime.cascade import Cascade, Results
from runtime.device_options import GEAR, device_options, take_gpu_options
from runtime.devices import GpuOptions, parse_forms
from runtime.drift import DriftGuard, Watch
from runtime.environment import refuse_foreign_packages
from runtime.errors import InputError
from runtime.images import Picture, count_pictures, read_sources
from runtime.preprocess import Frames
from runtime.terminal import Command, parse_numbers, progress_bar


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Folder with cascade.json.  [default: the Fashion-MNIST bundle that comes along]",
)
@device_options
@click.option(
    "--batch", default=32, show_default=True, type=click.IntRange(1), help="Pictures at once."
)
@click.option(
    "--forms", help="Form of each stage, as fp32/int8_host.  [default: fp32, on a GPU fp16]"
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all available]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the lines to a file.  [default: standard output]",
)
@click.option(
    "--require-certificate",
    is_flag=True,
    help="Refuse a cascade that is not exactly the certified one.",
)
@GEAR
@click.option(
    "--drift-guard",
    type=float,
    metavar="Q",
    help="Put a random share Q of the images that a saver answers to the large model too; warn and "
    "take a higher gear once they differ more often than they did on the certifying images.",
)
@click.option(
    "--drift-reference",
    metavar="R,...",
    help="How often they differ without drift, at each gear.  [default: what the bundle says]",
)
def main(sources: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Classify SOURCES: pictures, folders of pictures (searched through), npz files with images.

    Each picture gives one line of JSON: source, index, label, name, confidence, stage. One that
    does not decode gives source, index, error; the rest goes on, and the exit status is 2.

    \b
    Examples
      python -m runtime.run photo.png folder/ > answers.jsonl
      python -m runtime.run images.npz --out answers.jsonl --batch 256
      python -m runtime.run folder/ --device cuda
      python -m runtime.run images.npz --drift-guard 0.01 > answers.jsonl
    """
    gpu = take_gpu_options(options)
    sys.exit(classify(Request(sources=sources, out=out, gpu=gpu, **options)))


@dataclass(frozen=True)
class Request:
    """The command line."""

    sources: tuple[Path, ...]
    out: Path | None
    bundle: Path | None
    device: str
    gpu: GpuOptions
    batch: int
    forms: str | None
    threads: int | None
    require_certificate: bool
    gear: int
    drift_guard: float | None
    drift_reference: str | None

    def load(self, bundle: Bundle) -> Cascade:
        """Load the cascade that is asked for."""
        return Cascade.load(
            bundle,
            self.device,
            batch=self.batch,
            threads=self.threads,
            forms=parse_forms(self.forms) if self.forms else None,
            require_certificate=self.require_certificate,
            gpu=self.gpu,
        )

    def guard(self, cascade: Cascade) -> DriftGuard | None:
        """Return the drift guard that is asked for, if any."""
        if self.drift_guard is None:
            if self.drift_reference is not None:
                raise InputError("--drift-reference: it goes with --drift-guard Q.")
            return None
        references = None
        if self.drift_reference is not None:
            references = parse_numbers("--drift-reference", self.drift_reference, 0, 1)
        return DriftGuard(cascade, Watch(share=self.drift_guard), references=references)


def classify(request: Request) -> int:
    """Write a line for every picture; return the exit status, 2 when some did not decode."""
    refuse_foreign_packages()
    bundle, sources = load_bundle(request.bundle or demo_folder()), list(request.sources)
    total = count_pictures(sources)
    if not total:
        raise InputError(f"{', '.join(map(str, sources))}: no pictures found.")
    failed = 0
    with request.load(bundle) as cascade, ExitStack() as stack:
        cascade.shift(request.gear)
        guard = request.guard(cascade)
        out = request.out
        stream = stack.enter_context(replacing(out)) if out else sys.stdout.buffer
        progress = stack.enter_context(progress_bar())
        task = progress.add_task("classify", total=total)
        groups = _groups(read_sources(sources, bundle.spec.input), request.batch)
        for pictures, results in _answered(groups, guard or cascade):
            answers = iter(()) if results is None else _answers(results, cascade)
            failed += _write_lines(stream, pictures, answers)
            progress.advance(task, len(pictures))
        if guard is not None:
            guard.flush()
    _report(total, failed, cascade)
    if guard is not None:
        click.echo(f"{guard.account}; alarms: {len(guard.alarms)}", err=True)
    return 2 if failed else 0


def _groups(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Cut pictures into runs with up to ``size`` frames, all of one shape.

    A batch has one shape, and a bundle may accept any. What did not decode stays in its place, so
    only a single run can be without frames.
    """
    run: list[Picture] = []
    shapes: list[tuple[int, ...]] = []
    for picture in pictures:
        if picture.frame is not None:
            if len(shapes) == size or (shapes and picture.frame.shape != shapes[0]):
                yield run
                run, shapes = [], []
            shapes.append(picture.frame.shape)
        run.append(picture)
    yield run


def _answered(
    groups: Iterable[list[Picture]], cascade: Cascade | DriftGuard
) -> Iterator[tuple[list[Picture], Results | None]]:
    """Yield each run of pictures with its results, None where nothing decoded.

    The cascade has two under way, so that one is read while the other is classified.
    """
    waiting: deque[list[Picture]] = deque()

    def batches() -> Iterator[Frames]:
        for group in groups:
            waiting.append(group)
            frames = [picture.frame for picture in group if picture.frame is not None]
            if frames:
                yield np.stack(frames)

    for results in cascade.stream(batches()):
        yield waiting.popleft(), results
    for group in waiting:
        yield group, None


def _write_lines(
    stream: IO[bytes], pictures: list[Picture], answers: Iterator[dict[str, Any]]
) -> int:
    """Write a line for every picture, in order; return how many did not decode."""
    for picture in pictures:
        line: dict[str, Any] = {"source": picture.source, "index": picture.index}
        line |= {"error": picture.error} if picture.frame is None else next(answers)
        stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return sum(picture.frame is None for picture in pictures)


def _answers(results: Results, cascade: Cascade) -> Iterator[dict[str, Any]]:
    names, stages = cascade.bundle.spec.labels, cascade.stage_names
    for label, confidence, stage in zip(
        results.label.tolist(), results.confidence.tolist(), results.stage.tolist(), strict=True
    ):
        yield {
            "label": label,
            "name": names[label],
            "confidence": round(confidence, 6),
            "stage": stages[stage],
        }


def _report(total: int, failed: int, cascade: Cascade) -> None:
    problem = f", {failed:,} not decoded" if failed else ""
    click.echo(f"{total:,} pictures{problem}; {cascade.certification}", err=True)


if __name__ == "__main__":
    main()
