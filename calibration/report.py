"""A page to look at about a bundle: ``python -m calibration.report --help``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from calibration.cost_table import CostTable
from calibration.errors import CalibrationError
from calibration.npz import unwritable
from calibration.pool import load_pool
from calibration.records import Data, load_data
from calibration.report_content import Content
from calibration.report_costs import measured_costs
from calibration.report_material import Material, Pool, gather, record_absent, records_folder
from calibration.report_page import page
from calibration.report_plots import as_png
from calibration.report_summary import summary
from kernels.files import replacing
from runtime.bundle import Bundle, load_bundle
from runtime.devices import HOST_FORMS, parse_forms
from runtime.schema import Form
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar

_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Request:
    """The command line."""

    bundle: Path
    data: Path | None
    test: bool
    records: Path | None
    pool: Path | None
    forms: str | None
    costs: Path | None
    macs_only: bool
    batch: int
    threads: int
    out: Path
    png: Path | None
    as_json: bool

    def load_data(self) -> Data:
        """Return the data, unless they must not be looked at like this."""
        split = "test" if self.test else "selection"
        path = self.data or self.bundle / "data" / f"{split}.npz"
        if not path.is_file():
            raise CalibrationError(f"{path}: not found. Pass the {split} split as --data NPZ.")
        data = load_data(path)
        if data.name == "certificate":
            raise CalibrationError(
                "A report is not of the certificate split, which decides nothing but the "
                "certificate: its numbers stand in cascade.json. Pass the selection split."
            )
        if self.test != (data.name == "test"):
            raise CalibrationError(
                f"{self.data}: expected the {split} split, got {data.name}. The test split is "
                "for reporting only: --test asks for it, and nothing may be chosen from the page."
                if data.name == "test"
                else f"{self.data}: --test asks for data named test.npz, got {data.name}.npz."
            )
        return data

    def load_pool(self) -> Pool:
        """Return the pool; without --pool the bundle's models folder, if that has cards."""
        folder = self.pool or self.bundle / "models"
        if self.pool is None and not any(folder.glob("*.json")):
            return Pool(folder, {})
        return Pool(folder, load_pool(folder))

    def stage_forms(self, bundle: Bundle) -> tuple[Form, ...]:
        """Return the forms of stages to record."""
        stages = len(bundle.spec.stages)
        fp32: tuple[Form, ...] = ("fp32",)
        forms = parse_forms(self.forms) if self.forms else fp32 * stages
        if len(forms) != stages or not set(forms) <= set(HOST_FORMS):
            raise CalibrationError(
                f"--forms: expected {stages} of {', '.join(HOST_FORMS)} joined by '/', "
                f"got {self.forms!r}."
            )
        for index, form in enumerate(forms):
            bundle.model(index, form)
        return forms


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.report zoo/fashion --out report.html --png plots",
)
@click.argument("bundle", type=_PATH)
@click.option(
    "--data",
    type=_PATH,
    help="npz with images u8 [n,H,W,C] and labels.  [default: data/selection.npz of the bundle]",
)
@click.option(
    "--test",
    is_flag=True,
    help="Report on the test split (data/test.npz) instead. Nothing may be chosen from that page.",
)
@click.option(
    "--records",
    type=_PATH,
    help="Stored logits of these data, as records/selection; what is absent there is recorded. "
    "[default: record, and keep nothing]",
)
@click.option(
    "--pool",
    type=_PATH,
    help="Folder of model cards to compare with.  [default: models of the bundle, if it has cards]",
)
@click.option("--forms", help="To record, as fp32/int8_host.  [default: all fp32]")
@click.option("--costs", type=_PATH, help="File of measured times: read if there, else written.")
@click.option("--macs-only", is_flag=True, help="Measure no times.")
@click.option(
    "--batch", type=click.IntRange(1), default=32, show_default=True, help="Images per batch."
)
@click.option("--threads", type=click.IntRange(1), default=available_threads, help="[default: all]")
@click.option("--out", type=_PATH, default=Path("report.html"), show_default=True, help="The page.")
@click.option("--png", type=_PATH, help="Write the plots as PNG files into this folder, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers behind the page as JSON.")
def main(**options: Any) -> None:
    """Write one HTML page about a bundle: what it costs, what it promises, where it errs.

    Accuracy against cost beside every single model; which images each gate sends on; how well
    scores and confidences know the errors; and pictures of the images that the cascade spoils. The
    page holds everything it shows and loads nothing. It is of the selection split unless told.
    """
    request = Request(**options)
    content = make(request)
    _write(request.out, page(content).encode())
    if request.png:
        for plot in content.plots:
            _write(request.png / f"{plot.name}.png", as_png(plot.figure))
    if request.as_json:
        click.echo(json.dumps(summary(content), indent=2))
    else:
        click.echo(f"{request.out}: {content.chain} on {content.n:,} {content.split} images")


def make(request: Request) -> Content:
    """Gather and compute everything that a report shows.

    Raises
    ------
    CalibrationError
        When data, records, pool or costs are missing, damaged, or do not fit the bundle.
    BundleError
        When the bundle or one of its models is missing or damaged.
    """
    # Before the long work: what draws, or the extra that brings it.
    import matplotlib  # noqa: F401

    bundle, data, pool = load_bundle(request.bundle), request.load_data(), request.load_pool()
    with progress_bar() as progress, records_folder(request.records, data) as folder:
        record_absent(
            bundle,
            lambda: request.stage_forms(bundle),
            pool,
            data,
            folder,
            threads=request.threads,
            progress=progress,
        )
        material = gather(bundle, pool, data, folder)
        return Content(material, _timed(request, material, progress))


def _timed(request: Request, material: Material, progress: Progress) -> CostTable | None:
    if request.macs_only:
        return None
    return measured_costs(
        material,
        request.costs,
        batch=request.batch,
        threads=request.threads,
        progress=progress,
    )


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(content)
    except OSError as error:
        raise unwritable(path, error) from None


if __name__ == "__main__":
    main(prog_name="python -m calibration.report")
