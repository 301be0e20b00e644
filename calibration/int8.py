"""Make and measure the INT8 and FP16 forms of a bundle: ``python -m calibration.int8 --help``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from calibration.installation import copy_bundle, install
from calibration.quantisation import MADE_FORMS, METHODS, PERCENTILE, MadeForm, Method, Recipe
from calibration.recorded import Claim
from calibration.samples import FEWEST, load_samples
from runtime.bundle import Bundle, load_bundle
from runtime.environment import dot_product_instructions
from runtime.session import available_threads
from runtime.terminal import Command, progress_bar

if TYPE_CHECKING:
    from calibration.conversion import Plan


@dataclass(frozen=True)
class Request:
    """The command line."""

    bundle: Path
    data: Path | None
    selection: Path | None
    images: int
    forms: tuple[MadeForm, ...]
    method: Method
    percentile: float
    max_drop: float
    weight_bits: str
    epsilon: float
    delta: float
    size: int
    batch: int
    cache: Path
    threads: int
    seed: int
    out: Path | None
    dry_run: bool
    as_json: bool

    def plan(self, bundle: Bundle) -> Plan:
        """Read the images and return what is to be done."""
        path = self.data or bundle.folder / "data" / "selection.npz"
        if self.data is None and not path.exists():
            raise click.UsageError("The bundle has no data/selection.npz: pass --data.")
        from calibration.conversion import Plan

        found = load_samples(path, bundle)
        return Plan(
            calibrating=found.some(self.images, seed=self.seed),
            measuring=load_samples(self.selection, bundle) if self.selection else found,
            forms=self.forms,
            recipe=self._recipe(),
            claim=Claim(self.epsilon, self.delta, "wsr"),
            size=self.size,
            cache=self.cache,
        )

    def _recipe(self) -> Recipe:
        bits = self.weight_bits
        if bits == "auto":
            bits = "8" if dot_product_instructions() else "7"
        return Recipe(
            method=self.method,
            percentile=self.percentile,
            weight_bits=int(bits),
            max_drop=self.max_drop / 100,
            batch=self.batch,
            threads=self.threads,
        )


_PATH = click.Path(path_type=Path)
_UNIT = click.FloatRange(0, 1, min_open=True, max_open=True)
_COUNT = click.IntRange(1)


@click.command(
    cls=Command,
    epilog="Example: python -m calibration.int8 zoo/fashion --method mse --max-drop 0.5",
)
@click.argument("bundle", type=_PATH)
@click.option(
    "--data",
    type=_PATH,
    help="Real images that give ranges: an npz file or a folder of pictures, of the selection or "
    "training split.  [default: data/selection.npz of the bundle]",
)
@click.option(
    "--selection",
    type=_PATH,
    help="Images, with labels if there are any, on which the budget must hold.  [default: --data]",
)
@click.option(
    "--images",
    type=click.IntRange(FEWEST),
    default=1000,
    show_default=True,
    help="Of --data, at most.",
)
@click.option(
    "--form",
    "forms",
    type=click.Choice(MADE_FORMS),
    multiple=True,
    default=MADE_FORMS,
    help="Only this form; repeatable.  [default: all]",
)
@click.option(
    "--method", type=click.Choice(METHODS), default="mse", show_default=True, help="Of ranges."
)
@click.option(
    "--percentile",
    type=click.FloatRange(50, 100),
    default=PERCENTILE,
    show_default=True,
    help="Of the absolute values, for --method percentile.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    help="Points of accuracy a form may lose against FP32; without labels, of other answers.",
)
@click.option(
    "--weight-bits",
    type=click.Choice(["auto", "7", "8"]),
    default="auto",
    show_default=True,
    help="Of int8_host: 7 gives equal answers on CPUs with and without VNNI. auto is 8 with it.",
)
@click.option(
    "--epsilon", type=_UNIT, default=0.005, show_default=True, help="To be certified later."
)
@click.option("--delta", type=_UNIT, default=0.0125, show_default=True, help="As --epsilon.")
@click.option(
    "--certificate-size",
    "size",
    type=_COUNT,
    default=8000,
    show_default=True,
    help="Samples that will certify.",
)
@click.option("--batch", type=_COUNT, default=32, show_default=True, help="Of timings.")
@click.option(
    "--cache",
    type=_PATH,
    default=Path("records/histograms"),
    show_default=True,
    help="Folder of histograms: another method or form needs no second pass over the images.",
)
@click.option("--threads", type=_COUNT, default=available_threads, help="[default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the choice of images.")
@click.option("--out", type=_PATH, help="A new folder for the bundle with its forms.")
@click.option("--dry-run", is_flag=True, help="Report, and leave the bundle as it is.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(**options: Any) -> None:
    """Make INT8 and FP16 forms of all stages of BUNDLE, and write them into it.

    int8_host is for ONNX Runtime on a CPU, int8_trt and fp16 for TensorRT. All come from one pass
    over real images, whose histograms are kept. Nodes stay in higher precision until no form loses
    more than --max-drop. Each combination of forms gets thresholds by a forecast; certify it with
    python -m calibration.threshold on samples that decided nothing.
    """
    from calibration import int8_report
    from calibration.conversion import addition, convert

    request = Request(**options)
    if request.out and (request.dry_run or request.out.exists()):
        raise click.UsageError("--out names a folder that is made, and goes without --dry-run.")
    bundle = load_bundle(request.bundle)
    with progress_bar() as progress:
        converted = convert(bundle, request.plan(bundle), progress)
    written = None
    if not request.dry_run:
        target = copy_bundle(bundle, request.out) if request.out else bundle
        install(target, addition(converted))
        written = target.folder
    if request.as_json:
        click.echo(json.dumps(int8_report.summary(converted, written), indent=2))
    else:
        int8_report.show(Console(), converted, written)


if __name__ == "__main__":
    main(prog_name="python -m calibration.int8")
