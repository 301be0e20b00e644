"""Make a bundle of your own ONNX files: ``python -m engines.bundle --help``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import pydantic

from engines.errors import EngineError
from engines.onnx_model import parse_size
from runtime.schema import FrameFormat
from runtime.terminal import Command

if TYPE_CHECKING:
    from engines.packing import BundleRequest, Written
    from engines.stage_model import StageRequest

Value = TypeVar("Value")

COLOURS = click.Choice(["grey", "rgb", "bgr"])
_FILE = click.Path(path_type=Path)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of ``0.485,0.456,0.406``.

    Raises
    ------
    click.BadParameter
        When one is none.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers, as 0.485,0.456,0.406, got {text!r}") from None


def read_labels(text: str) -> tuple[str, ...]:
    """Return the names of a file that has one a line, or of ``cat,dog,horse``.

    Raises
    ------
    EngineError
        When a file is named that cannot be read, or names are empty.
    """
    path = Path(text)
    if "," in text and not path.exists():
        names = [part.strip() for part in text.split(",")]
    else:
        try:
            names = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise EngineError(
                f"--labels: {text}: cannot be read ({error.strerror}). "
                "Give a text file with one name a line, or names with commas between."
            ) from None
        except UnicodeDecodeError:
            raise EngineError(f"--labels: {text}: not UTF-8 text.") from None
        names = [name.strip() for name in names]
        while names and not names[-1]:
            names.pop()
    empty = [number for number, name in enumerate(names, 1) if not name]
    if empty or not names:
        raise EngineError(f"--labels: {text}: name {empty[0] if empty else 1} is empty.")
    return tuple(names)


def per_stage(option: str, values: Sequence[Value], stages: int) -> list[Value | None]:
    """Return one value for each stage, of an option that was given once, or once per stage.

    Raises
    ------
    click.UsageError
        When it was given another number of times.
    """
    if not values:
        return [None] * stages
    if len(values) not in (1, stages):
        raise click.UsageError(
            f"{option}: expected it once for all stages, or {stages} times, once for each; "
            f"got it {len(values)} times."
        )
    return [values[0]] * stages if len(values) == 1 else list(values)


def _names(stages: int) -> list[str]:
    middle = stages - 2
    return ["saver", *(["middle"] if middle == 1 else _numbered(middle)), "large"]


def _numbered(count: int) -> list[str]:
    return [f"middle{number}" for number in range(1, count + 1)]


def _stages(options: dict[str, Any]) -> tuple[StageRequest, ...]:
    from engines.stage_model import StageRequest

    paths = [options["saver"], *options["middle"], options["large"]]
    fields = {
        name: per_stage(f"--{name}", options[name], len(paths))
        for name in ("size", "mean", "std", "colour", "resize", "input", "logits", "macs")
    }
    fields["tensor"] = fields.pop("input")
    requests = []
    for number, (name, path) in enumerate(zip(_names(len(paths)), paths, strict=True)):
        given = {key: values[number] for key, values in fields.items()}
        known = {key: value for key, value in given.items() if value is not None}
        requests.append(StageRequest(name=name, path=path, **known))
    return tuple(requests)


def _frames(options: dict[str, Any], colour: str) -> FrameFormat:
    colour = options["frame_colour"] or colour
    height, width = options["frames"] or (0, 0)
    nv12 = {"matrix": options["matrix"], "range": options["range"]} if colour == "nv12" else {}
    shape = (height * 3 // 2 if nv12 else height, width, 3 if colour in ("rgb", "bgr") else 1)
    try:
        return FrameFormat.model_validate({"shape": shape, "colour": colour, **nv12})
    except pydantic.ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise EngineError(f"--frames {height}x{width}, {colour}: {reason}.") from None


def _request(options: dict[str, Any]) -> BundleRequest:
    from engines.packing import BundleRequest

    stages = _stages(options)
    first = stages[0]
    return BundleRequest(
        name=options["name"] or options["out"].resolve().name,
        description=options["description"] or ", ".join(f"{s.name} {s.path.name}" for s in stages),
        stages=stages,
        frames=_frames(options, first.colour or ("grey" if len(first.mean) == 1 else "rgb")),
        labels=read_labels(options["labels"]) if options["labels"] else None,
        data=options["data"],
    )


def _option(*names: str, **fields: Any) -> Callable[[Any], Any]:
    """Return an option that may be given once for all stages, or once for each."""
    return click.option(*names, multiple=True, **fields)


@click.command(
    cls=Command,
    epilog="Example: python -m engines.bundle --saver small.onnx --large big.onnx --size 160 "
    "--size 260 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --labels names.txt "
    "--data pictures/ --out my-bundle",
)
@click.option("--saver", type=_FILE, required=True, help="ONNX of the small model.")
@click.option("--middle", type=_FILE, multiple=True, help="Between them; repeat it for more.")
@click.option("--large", type=_FILE, required=True, help="ONNX of the large model.")
@_option("--mean", type=parse_numbers, required=True, metavar="A[,B,C]", help="Of pixels 0 to 1.")
@_option("--std", type=parse_numbers, required=True, metavar="A[,B,C]", help="Of pixels 0 to 1.")
@_option("--size", type=parse_size, metavar="HxW", help="[default: of the model's input]")
@_option("--colour", type=COLOURS, help="[default: grey or rgb, by the number of means]")
@_option(
    "--resize",
    type=click.Choice(["stretch", "centre_crop", "letterbox"]),
    help="How another aspect ratio is made to fit.  [default: stretch]",
)
@_option("--input", metavar="NAME", help="Tensor of the images.  [default: the only input]")
@_option("--logits", metavar="NAME", help="Output, or a tensor inside.  [default: the only output]")
@_option("--macs", type=click.IntRange(1), help="Per sample.  [default: counted]")
@click.option("--labels", metavar="FILE", help="A name a line; or cat,dog.  [default: numbers]")
@click.option("--frames", type=parse_size, metavar="HxW", help="What you will feed. [default: any]")
@click.option(
    "--frame-colour",
    type=click.Choice(["grey", "rgb", "bgr", "nv12"]),
    help="Of what you will feed.  [default: that of the saver]",
)
@click.option("--matrix", type=click.Choice(["bt601", "bt709"]), default="bt709", help="Of NV12.")
@click.option("--range", type=click.Choice(["limited", "full"]), default="limited", help="Of NV12.")
@click.option("--data", type=_FILE, help="npz or folder: its first images become golden samples.")
@click.option("--name", help="[default: name of the folder]")
@click.option("--description", help="[default: names of the files]")
@click.option("--out", type=_FILE, required=True, help="Folder to make; must not hold anything.")
@click.option("--json", "json_", is_flag=True, help="Print what was written as JSON.")
def main(json_: bool, **options: Any) -> None:
    """Make a bundle of ONNX files: a saver, a large model, and any number between.

    Options of a model may be given once for all, or once for each, in the order of the cascade.
    Every model is checked and run: a fixed batch is made dynamic where the graph allows it, and the
    answers are compared with those of your file. Nothing is written unless all of it is.

    The bundle has no certificate: its thresholds are 1, so that every image goes on to the large
    model, until calibration.record and calibration.threshold have certified lower ones.
    """
    request = _request(options)
    from engines.packing import write_bundle

    written = write_bundle(options["out"], request, say=lambda text: click.echo(text, err=True))
    for warning in _warnings(written):
        click.echo(f"Warning: {warning}", err=True)
    if json_:
        click.echo(json.dumps(_as_json(written), indent=2))
    else:
        click.echo(_report(written))


def _warnings(written: Written) -> list[str]:
    stages = written.spec.stages
    return [
        f"{small.name} needs {small.macs:,} MACs, {large.name} only {large.macs:,}: "
        "are they in the right order?"
        for small, large in pairwise(stages)
        if small.macs > large.macs
    ]


def _as_json(written: Written) -> dict[str, Any]:
    return {
        "bundle": str(written.folder),
        "stages": [
            {"name": stage.name, "macs": stage.macs, "changes": list(changes)}
            for stage, changes in zip(written.spec.stages, written.changes, strict=True)
        ],
        "labels": len(written.spec.labels),
        "golden": written.spec.golden is not None,
        "certificate": None,
    }


def _report(written: Written) -> str:
    spec, folder = written.spec, written.folder
    lines = [f"{folder}: {len(spec.stages)} stages, {len(spec.labels)} classes"]
    for stage, changes in zip(spec.stages, written.changes, strict=True):
        size = "x".join(map(str, stage.preprocessing.size))
        lines.append(f"  {stage.name:<8} {size} {stage.preprocessing.colour}, {stage.macs:,} MACs")
        lines += [f"           {change}" for change in changes or ("the file as it was",)]
    golden = "stored" if spec.golden else "none: no self-check at load; --data makes them"
    lines += [
        f"  golden samples  {golden}",
        "  certificate     none: every image goes on to the large model until thresholds are",
        "                  certified:",
        f"    python -m calibration.record --bundle {folder} --data DATA.npz",
        f"    python -m calibration.threshold {folder} --records records/DATA --data DATA.npz \\",
        "        --allow-unknown-provenance",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(prog_name="python -m engines.bundle")
