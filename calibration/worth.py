"""What a cascade is worth beside single models: ``python -m calibration.worth --help``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from calibration.costs import Costs
from calibration.errors import CalibrationError
from calibration.pool import load_pool
from calibration.records import Data, load_data
from calibration.report_costs import mac_costs, measured_costs
from calibration.report_material import Material, Pool, gather, record_absent, records_folder
from calibration.report_words import percent, standing_words
from calibration.standing import Standing, contest, standing
from calibration.stopwatch import clocked, model_run
from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from runtime.schema import Form
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar

_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Request:
    """The command line."""

    bundle: Path
    data: Path | None
    records: Path | None
    pool: Path | None
    costs: Path | None
    macs_only: bool
    batch: int
    threads: int
    seconds: float
    as_json: bool

    def load_data(self) -> Data:
        """Return the data, by default the test split."""
        path = self.data or self.bundle / "data" / "test.npz"
        if not path.is_file():
            raise CalibrationError(f"{path}: not found. Pass the test split as --data NPZ.")
        data = load_data(path)
        if data.name == "certificate":
            raise CalibrationError(
                "The certificate split decides nothing but the certificate. Pass the test split."
            )
        return data

    def load_pool(self) -> Pool:
        """Return the single models to stand beside."""
        folder = self.pool or self.bundle / "models"
        return Pool(folder, load_pool(folder))


@dataclass(frozen=True)
class Found:
    """A cascade and its standings by each kind of cost."""

    material: Material
    accuracy: float
    standings: list[Standing]


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.worth zoo/fashion --records records/test",
)
@click.argument("bundle", type=_PATH)
@click.option(
    "--data",
    type=_PATH,
    help="npz with images u8 [n,H,W,C] and labels.  [default: data/test.npz of the bundle]",
)
@click.option(
    "--records",
    type=_PATH,
    help="Stored logits of these data, as records/test; what is absent there is recorded. "
    "[default: record, and keep nothing]",
)
@click.option("--pool", type=_PATH, help="Folder of model cards.  [default: models of the bundle]")
@click.option("--costs", type=_PATH, help="File of measured times: read if there, else written.")
@click.option("--macs-only", is_flag=True, help="Measure no times.")
@click.option(
    "--batch", type=click.IntRange(1), default=32, show_default=True, help="Images per batch."
)
@click.option("--threads", type=click.IntRange(1), default=available_threads, help="[default: all]")
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=20.0,
    show_default=True,
    help="For which cascade and single model take turns by the wall clock.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def main(**options: Any) -> None:
    """Compare a cascade with the cheapest single model that is at least as accurate.

    In multiply-accumulates and in time of the inference sessions, with 95 % intervals by a paired
    bootstrap over the images: which single model is as accurate is a matter of chance, too. Then
    both run by the wall clock, in turns, from frames to answers, the single model at its best
    batch. A cascade that costs more than half is hardly worth its trouble. On the test split by
    default, which is for reporting only.
    """
    request = Request(**options)
    found = compare(request)
    if request.as_json:
        click.echo(json.dumps(_plain(found), indent=2))
    else:
        click.echo("\n".join(_lines(found)))


def compare(request: Request) -> Found:
    """Compare as a request says.

    Raises
    ------
    CalibrationError
        When data, records, pool or costs are missing, damaged, or do not fit the bundle.
    BundleError
        When the bundle or one of its models is missing or damaged.
    """
    bundle, data, pool = load_bundle(request.bundle), request.load_data(), request.load_pool()
    with progress_bar() as progress, records_folder(request.records, data) as folder:
        fp32: tuple[Form, ...] = ("fp32",)
        record_absent(
            bundle,
            lambda: fp32 * len(bundle.spec.stages),
            pool,
            data,
            folder,
            threads=request.threads,
            progress=progress,
        )
        material = gather(bundle, pool, data, folder)
        costs = list(_costs(request, material, progress))
        right = {one.name: one.label == material.labels for one in material.singles}
        found = contest(
            material.names, material.simulation, material.thresholds, material.labels, right
        )
        standings = [standing(found, one) for one in costs]
        if len(costs) > 1:
            task = progress.add_task("wall clock", total=None)
            standings += _clocked(request, material, standings[-1])
            progress.remove_task(task)
    return Found(material, found.accuracy, standings)


def _costs(request: Request, material: Material, progress: Progress) -> Iterator[Costs]:
    yield mac_costs(material)
    if request.macs_only:
        return
    table = measured_costs(
        material,
        request.costs,
        batch=request.batch,
        threads=request.threads,
        progress=progress,
    )
    if table:
        yield table.costs()


def _clocked(request: Request, material: Material, beside: Standing) -> Iterator[Standing]:
    """Yield the wall clock of the cascade and of the model that it stands beside, if there is."""
    recorded, images = material.recorded, material.data.images
    for model in material.singles:
        if model.name == beside.single:
            frames = recorded.bundle.spec.input
            alone = model_run(model, frames, threads=request.threads)
            with Cascade.load(
                recorded.bundle,
                "cpu",
                batch=request.batch,
                threads=request.threads,
                forms=recorded.forms,
            ) as cascade:
                yield clocked(
                    cascade, model.name, alone, images, batch=request.batch, seconds=request.seconds
                )


def _lines(found: Found) -> Iterator[str]:
    material = found.material
    yield (
        f"{' -> '.join(material.names)} on {len(material.labels):,} {material.data.name} images: "
        f"{percent(found.accuracy)} right, {material.large.name} alone "
        f"{percent(material.accuracy(material.large.label))}"
    )
    yield from map(standing_words, found.standings)


def _plain(found: Found) -> dict[str, Any]:
    material = found.material
    return {
        "bundle": material.recorded.bundle.spec.name,
        "stages": material.names,
        "thresholds": material.thresholds,
        "data": material.data.name,
        "n": len(material.labels),
        "accuracy": found.accuracy,
        "standings": [{**one._asdict(), "verdict": one.verdict} for one in found.standings],
    }


if __name__ == "__main__":
    main(prog_name="python -m calibration.worth")
