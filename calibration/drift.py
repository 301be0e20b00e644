"""How soon a drift guard sees corrupted images: ``python -m calibration.drift --help``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from calibration.corruption import CORRUPTIONS, Corruption
from calibration.delay import Streams, delays, images_seen
from calibration.disagreement import disagreements
from calibration.errors import CalibrationError
from calibration.recorded import load_recorded
from calibration.records import Data, load_data, refuse_held_out
from runtime.cascade import Cascade
from runtime.drift import Watch, references_of
from runtime.terminal import Command, progress_bar

_PATH = click.Path(path_type=Path)
_CLEAN = Corruption("none", 0.0, lambda images, _: images)


@dataclass(frozen=True)
class Request:
    """The command line."""

    bundle: Path
    data: Path
    selection: Path | None
    share: float
    tolerance: float
    alpha: float
    streams: int
    quiet: int
    limit: int
    device: str
    as_json: bool

    @property
    def watch(self) -> Watch:
        """How the guard watches."""
        return Watch(share=self.share, tolerance=self.tolerance, alpha=self.alpha)


@dataclass(frozen=True)
class Seen:
    """What a cascade does with images.

    Attributes
    ----------
    unlike
        [n], which of them an earlier stage answers, and otherwise than the last one would.
    accepted
        Share that an earlier stage answers.
    drop
        In accuracy against the last stage alone; None without labels.
    """

    unlike: npt.NDArray[np.bool_]
    accepted: float
    drop: float | None


@dataclass(frozen=True)
class Row:
    """A line of the table; shares are fractions, delays medians over streams.

    Attributes
    ----------
    alarmed
        Share of the streams with an alarm within the limit; those before the drift do not count.
    drawn, images
        Until the alarm: drawn images, and images of the camera. None where fewer than half of the
        streams raised one.
    """

    corruption: str
    strength: float
    accepted: float
    unlike: float
    drop: float | None
    alarmed: float
    drawn: float | None
    images: float | None


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.drift zoo/fashion --data zoo/fashion/data/test.npz "
    "--selection records/selection",
)
@click.argument("bundle", type=_PATH)
@click.option("--data", type=_PATH, required=True, help="Images to corrupt; they choose nothing.")
@click.option(
    "--selection",
    type=_PATH,
    help="Selection records, to measure the reference on. [default: what the bundle says]",
)
@click.option("--share", default=Watch.share, show_default=True, help="Of the images drawn.")
@click.option("--tolerance", default=Watch.tolerance, show_default=True, help="See docs/drift.md.")
@click.option("--alpha", default=Watch.alpha, show_default=True, help="Chance of a false alarm.")
@click.option("--streams", type=click.IntRange(1), default=200, show_default=True)
@click.option(
    "--quiet",
    type=click.IntRange(0),
    default=2_000,
    show_default=True,
    help="Drawn images before the drift.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Drawn images to wait for an alarm.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, auto.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(**options: Any) -> None:
    """Corrupt images, and tell how soon a drift guard raises an alarm.

    They are blurred, noisy or brighter. The cascade of BUNDLE runs on each set of them, and so does
    its last stage. Streams are then drawn from the answers: quiet at first, drifted from one image
    on.
    """
    request = Request(**options)
    reference, rows = measure(request)
    if request.as_json:
        text = {"reference": reference, "rows": [asdict(row) for row in rows]}
        click.echo(json.dumps(text, indent=2))
    else:
        Console().print(_table(request, reference, rows))


def measure(request: Request) -> tuple[float, list[Row]]:
    """Return the reference with its tolerance, and a row for each corruption, none first.

    Raises
    ------
    CalibrationError
        When the images are NV12, or records do not fit.
    InputError
        When there is no reference, or images do not fit.
    """
    watch, data = request.watch, load_data(request.data)
    with Cascade.load(request.bundle, request.device) as cascade:
        if cascade.bundle.spec.input.colour == "nv12":
            raise CalibrationError(f"{request.data}: NV12 frames cannot be corrupted here.")
        reference = _reference(request, cascade) + watch.tolerance
        seen = list(_look(cascade, data))
    clean, streams = seen[0].unlike, Streams(request.quiet, request.limit, request.streams)
    rows = []
    for corruption, item in zip((_CLEAN, *CORRUPTIONS), seen, strict=True):
        drawn = delays(item.unlike, clean, reference, alpha=watch.alpha, streams=streams)
        rows.append(_row(corruption, item, drawn, images_seen(drawn, watch.share)))
    return reference, rows


def _reference(request: Request, cascade: Cascade) -> float:
    """Return the reference of the thresholds, without tolerance."""
    if request.selection is None:
        return references_of(cascade)[0]
    recorded = load_recorded(cascade.bundle, request.selection)
    refuse_held_out(recorded.records[0], use="The reference of a drift guard")
    return disagreements(recorded, recorded.setting)[0].upper_bound


def _look(cascade: Cascade, data: Data) -> Iterator[Seen]:
    force = np.ones(len(data.images), np.uint8)
    with progress_bar() as progress:
        everything = (_CLEAN, *CORRUPTIONS)
        for corruption in progress.track(everything, description="corrupted images"):
            images = corruption(data.images)
            results, last = cascade.run(images), cascade.run(images, force=force).label
            accepted = results.stage < len(cascade.stage_names) - 1
            drop = None
            if data.labels is not None:
                drop = float((last == data.labels).mean() - (results.label == data.labels).mean())
            yield Seen(accepted & (results.label != last), float(accepted.mean()), drop)


def _row(
    corruption: Corruption,
    seen: Seen,
    drawn: npt.NDArray[np.float64],
    images: npt.NDArray[np.float64],
) -> Row:
    counted = ~np.isnan(drawn)
    return Row(
        corruption=corruption.name,
        strength=corruption.strength,
        accepted=seen.accepted,
        unlike=float(seen.unlike.mean()),
        drop=seen.drop,
        alarmed=float(np.isfinite(drawn[counted]).mean()) if counted.any() else 0.0,
        drawn=_median(drawn[counted]),
        images=_median(images[counted]),
    )


def _median(values: npt.NDArray[np.float64]) -> float | None:
    # The upper of two middle values: the mean of a number and inf says nothing.
    middle = np.quantile(values, 0.5, method="higher") if len(values) else math.inf
    return float(middle) if math.isfinite(middle) else None


def _table(request: Request, reference: float, rows: Sequence[Row]) -> Table:
    table = Table(
        title=f"{request.bundle.name}: alarm where more than {reference:.2%} are answered unlike",
        caption=f"{request.share:.2%} of the images drawn, {request.quiet:,} before the drift; "
        f"delays until the alarm are medians of {request.streams} streams",
        box=SIMPLE,
    )
    table.add_column("", no_wrap=True)
    for name in ("accepted", "unlike", "drop", "alarms", "drawn", "images"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        drop = "-" if row.drop is None else f"{100 * row.drop:.2f}"
        shares = (f"{row.accepted:.1%}", f"{row.unlike:.2%}", drop, f"{row.alarmed:.0%}")
        waits = ("-" if wait is None else f"{wait:,.0f}" for wait in (row.drawn, row.images))
        table.add_row(f"{row.corruption} {row.strength:g}", *shares, *waits)
    return table


if __name__ == "__main__":
    main()
