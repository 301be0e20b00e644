"""Store the logits that models give for a data set: ``python -m calibration.record --help``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console
from rich.table import Table

from calibration.errors import CalibrationError
from calibration.pool import load_pool
from calibration.recorder import Done, Source, bundle_source, frame_format, pool_source, record_all
from calibration.records import Data, Record, load_data
from runtime.bundle import load_bundle
from runtime.devices import HOST_FORMS
from runtime.schema import Form
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar


@dataclass(frozen=True)
class Request:
    """The command line."""

    pool: Path | None
    bundle: Path | None
    data: Path
    models: tuple[str, ...]
    forms: str | None
    colour: str | None
    out: Path
    threads: int
    force: bool
    as_json: bool

    def sources(self, data: Data) -> list[Source]:
        """Return what is to be recorded."""
        if (self.pool is None) == (self.bundle is None):
            raise click.UsageError("Give either --pool or --bundle.")
        if self.pool is None:
            return [self._bundle_source(cast("Path", self.bundle), data)]
        cards = load_pool(self.pool)
        unknown = sorted(set(self.models) - set(cards))
        if unknown:
            raise CalibrationError(
                f"{self.pool}: no model {', '.join(unknown)}; it has {', '.join(cards)}."
            )
        chosen = [cards[name] for name in self.models or cards]
        frames = frame_format(data, self.colour)
        return [pool_source(self.pool, card, frames, threads=self.threads) for card in chosen]

    def _bundle_source(self, folder: Path, data: Data) -> Source:
        bundle = load_bundle(folder)
        stages = len(bundle.spec.stages)
        forms = tuple(self.forms.split("/")) if self.forms else ("fp32",) * stages
        if len(forms) != stages or not set(forms) <= set(HOST_FORMS):
            raise CalibrationError(
                f"--forms: expected {stages} of {', '.join(HOST_FORMS)} joined by '/', "
                f"got {self.forms!r}."
            )
        shape, found = bundle.spec.input.shape, data.images.shape[1:]
        if shape[2] != found[2] or (shape[0] and shape != found):
            raise CalibrationError(
                f"{self.data}: images: expected {list(shape)} as the bundle says, "
                f"got {list(found)}."
            )
        checked = cast("tuple[Form, ...]", forms)
        for index, form in enumerate(checked):
            bundle.model(index, form)
        return bundle_source(bundle, checked, threads=self.threads)


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.record --pool zoo/fashion/models "
    "--data zoo/fashion/data/selection.npz",
)
@click.option("--pool", type=click.Path(path_type=Path), help="Folder of model cards.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Folder with cascade.json.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="npz with images u8 [n,H,W,C] and labels; its name is the split's.",
)
@click.option("--model", "models", multiple=True, help="Only this model of the pool; repeatable.")
@click.option("--forms", help="Forms of a bundle's stages, as fp32/int8_host. [default: all fp32]")
@click.option(
    "--colour",
    type=click.Choice(["grey", "rgb", "bgr"]),
    help="Of a pool's images. [default: grey or rgb, by their channels]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("records"),
    show_default=True,
    help="Records go to OUT/<split>/<model>.npz.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=available_threads,
    help="CPU threads. [default: all]",
)
@click.option("--force", is_flag=True, help="Record again what is up to date.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def main(**options: Any) -> None:
    """Run models over a data set once and store their logits.

    Every later analysis reads the records. What is up to date, by the hashes of model,
    preprocessing and data, is not run again.
    """
    request = Request(**options)
    data = load_data(request.data)
    sources = request.sources(data)
    if data.name == "certificate":
        click.echo(
            "The certificate split decides nothing but the certificate: its records may be made, "
            "but no accuracy is computed from them here.",
            err=True,
        )
    total = len(data.images) * sum(len(source.models) for source in sources)
    with progress_bar() as progress:
        task = progress.add_task(data.name, total=total)
        done = record_all(
            sources,
            data,
            request.out / data.name,
            force=request.force,
            advance=lambda samples: progress.advance(task, samples),
        )
    if request.as_json:
        click.echo(json.dumps(_summary(data, done), indent=2))
    else:
        Console().print(_table(data, done))


def _accuracy(record: Record) -> float | None:
    if record.labels is None or record.meta.data == "certificate":
        return None
    return float((record.logits.argmax(1) == record.labels).mean())


def _summary(data: Data, done: Sequence[Done]) -> dict[str, Any]:
    return {
        "data": data.name,
        "data_sha256": data.sha256,
        "n": len(data.images),
        "records": [
            {
                "model": item.model,
                "path": str(item.path),
                "status": item.status,
                "accuracy": _accuracy(item.record),
            }
            for item in done
        ],
    }


def _table(data: Data, done: Sequence[Done]) -> Table:
    table = Table(title=f"{data.name}: {len(data.images):,} samples")
    for column in ("model", "accuracy", "status", "record"):
        table.add_column(column, justify="right" if column == "accuracy" else "left")
    for item in done:
        accuracy = _accuracy(item.record)
        shown = "-" if accuracy is None else f"{accuracy:.2%}"
        table.add_row(item.model, shown, item.status, str(item.path))
    return table


if __name__ == "__main__":
    main(prog_name="python -m calibration.record")
