"""``python -m runtime.run``: classify pictures, folders or npz arrays, one JSON line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import click
import numpy as np

from runtime.bundle import demo_folder, load_bundle, replacing
from runtime.cascade import Cascade
from runtime.devices import parse_forms
from runtime.environment import refuse_foreign_packages
from runtime.errors import InputError
from runtime.images import Picture, count_pictures, read_sources
from runtime.terminal import Command, progress_bar


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Folder with cascade.json.  [default: the Fashion-MNIST bundle that comes along]",
)
@click.option(
    "--batch", default=32, show_default=True, type=click.IntRange(1), help="Pictures at once."
)
@click.option("--forms", help="Form of each stage, as fp32/int8_host.  [default: all fp32]")
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
def main(sources: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Classify SOURCES: pictures, folders of pictures (searched through), npz files with images.

    Each picture gives one line of JSON: source, index, label, name, confidence, stage. One that
    does not decode gives source, index, error; the rest goes on, and the exit status is 2.

    \b
    Examples
      python -m runtime.run photo.png folder/ > answers.jsonl
      python -m runtime.run images.npz --out answers.jsonl --batch 256
    """
    sys.exit(classify(list(sources), out, **options))


def classify(
    sources: list[Path],
    out: Path | None,
    *,
    bundle: Path | None,
    batch: int,
    forms: str | None,
    threads: int | None,
    require_certificate: bool,
) -> int:
    """Write a line for every picture; return the exit status, 2 when some did not decode."""
    refuse_foreign_packages()
    opened = load_bundle(bundle or demo_folder())
    total = count_pictures(sources)
    if not total:
        raise InputError(f"{', '.join(map(str, sources))}: no pictures found.")
    cascade = Cascade.load(
        opened,
        batch=batch,
        threads=threads,
        forms=parse_forms(forms) if forms else None,
        require_certificate=require_certificate,
    )
    failed = 0
    with cascade, ExitStack() as stack:
        stream = stack.enter_context(replacing(out)) if out else sys.stdout.buffer
        progress = stack.enter_context(progress_bar())
        task = progress.add_task("classify", total=total)
        for pictures in _batches(read_sources(sources, opened.spec.input), batch):
            failed += _write_lines(stream, pictures, cascade)
            progress.advance(task, len(pictures))
    _report(total, failed, cascade)
    return 2 if failed else 0


def _batches(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    while batch := list(islice(pictures, size)):
        yield batch


def _write_lines(stream: IO[bytes], pictures: list[Picture], cascade: Cascade) -> int:
    """Classify what decoded, write all in order, and return how many did not."""
    frames = [picture.frame for picture in pictures if picture.frame is not None]
    answers = _answers(frames, cascade) if frames else iter(())
    for picture in pictures:
        line: dict[str, Any] = {"source": picture.source, "index": picture.index}
        line |= {"error": picture.error} if picture.frame is None else next(answers)
        stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return len(pictures) - len(frames)


def _answers(frames: list[Any], cascade: Cascade) -> Iterator[dict[str, Any]]:
    names, stages = cascade.bundle.spec.labels, cascade.stage_names
    for group in _same_size(frames):
        results = cascade.run(np.stack(group))
        for label, confidence, stage in zip(
            results.label.tolist(), results.confidence.tolist(), results.stage.tolist(), strict=True
        ):
            yield {
                "label": label,
                "name": names[label],
                "confidence": round(confidence, 6),
                "stage": stages[stage],
            }


def _same_size(frames: list[Any]) -> Iterator[list[Any]]:
    """Cut frames into runs of one size: a bundle may accept any, a batch has one."""
    run: list[Any] = []
    for frame in frames:
        if run and frame.shape != run[0].shape:
            yield run
            run = []
        run.append(frame)
    yield run


def _report(total: int, failed: int, cascade: Cascade) -> None:
    problem = f", {failed:,} not decoded" if failed else ""
    click.echo(f"{total:,} pictures{problem}; {cascade.certification}", err=True)


if __name__ == "__main__":
    main()
