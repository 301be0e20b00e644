"""``python -m engines.export onnx``: a whole cascade as a single ONNX file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from engines.errors import EngineError
from engines.onnx_model import parse_size
from kernels.files import replacing
from runtime.bundle import SPEC_NAME, Bundle, file_sha256, load_bundle
from runtime.certification import certification
from runtime.schema import Form, Threshold
from runtime.terminal import Command

if TYPE_CHECKING:
    from onnx import ModelProto

    from engines.export_check import Check
    from engines.export_graph import Layout

ENGINE = "one exported ONNX graph"
"""What a certificate, made with the stages one by one, is transferred to."""

LARGEST = 2**31 - 1
"""Bytes that a protobuf message, and so one ONNX file without others beside it, can have."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    frames
        Shape of the input; the number of frames is ``n`` where it is open.
    certification
        What can be said of the file's accuracy.
    """

    file: Path
    nbytes: int
    sha256: str
    opset: int
    frames: tuple[int | str, ...]
    forms: tuple[Form, ...]
    thresholds: tuple[Threshold, ...]
    certification: str
    check: Check


def export_onnx(
    bundle: Bundle,
    out: Path,
    *,
    forms: tuple[Form, ...] | None = None,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    wide_stage: bool = False,
) -> Exported:
    """Write a cascade as one ONNX file, after a check on the bundle's golden samples.

    Its input is ``frames`` u8 [n, H, W, C]; its outputs are ``label`` i32, ``confidence`` f32 and
    ``stage`` i8, each [n]. They are what `runtime.Cascade.run` gives.

    Parameters
    ----------
    forms
        One per stage; all ``fp32`` by default. The bundle must have thresholds for them.
    batch
        A fixed number of frames; open by default.
    size
        Height and width of the frames, for a bundle that takes any.
    wide_stage
        Make ``stage`` i32, since TensorRT has no plain 8-bit integers.

    Raises
    ------
    EngineError
        When the cascade cannot be one graph, or its answers differ.
    BundleError
        When the bundle, or a model of it, cannot be used.
    """
    from engines.export_check import check_golden
    from engines.export_frames import frame_size
    from engines.export_graph import Layout

    spec = bundle.spec
    chosen = forms or tuple("fp32" for _ in spec.stages)
    thresholds = _thresholds(bundle, chosen)
    frames = frame_size(spec.input, size)
    layout = Layout(spec, thresholds, frames, batch, wide_stage)
    model = _model(bundle, chosen, layout)
    text = certification(spec, chosen, engine=ENGINE, thresholds=thresholds)
    _describe(model, bundle, layout, chosen, str(text))
    content = _content(model, out)
    check = check_golden(out, content, bundle, chosen, thresholds, size=frames)
    with replacing(out) as stream:
        stream.write(content)
    return Exported(
        file=out,
        nbytes=len(content),
        sha256=file_sha256(out),
        opset=model.opset_import[0].version,
        frames=(batch or "n", *frames, spec.input.shape[2]),
        forms=chosen,
        thresholds=thresholds,
        certification=str(text),
        check=check,
    )


def _thresholds(bundle: Bundle, forms: tuple[Form, ...]) -> tuple[Threshold, ...]:
    settings = bundle.spec.settings
    key = "/".join(forms)
    if key not in settings:
        raise EngineError(
            f"{bundle.folder}: cascade.json has no thresholds for the forms {key}; "
            f"it has {', '.join(settings) or 'none'}."
        )
    return settings[key].thresholds


def _model(bundle: Bundle, forms: tuple[Form, ...], layout: Layout) -> ModelProto:
    from onnx import helper

    from engines.export_graph import cascade_graph
    from engines.export_parts import read_parts

    parts = read_parts(bundle.spec, [bundle.model(i, form) for i, form in enumerate(forms)])
    graph = cascade_graph(layout, parts.graphs, parts.opsets[""])
    opsets = [helper.make_opsetid(domain, version) for domain, version in parts.opsets.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=parts.ir_version)


def _describe(
    model: ModelProto, bundle: Bundle, layout: Layout, forms: tuple[Form, ...], certified: str
) -> None:
    """Write into the model what it is, and what is known of its accuracy."""
    from onnx import helper

    spec = bundle.spec
    combined = spec.combination and spec.combination.model_dump_json()
    model.producer_name = "tinysaver-runtime"
    model.doc_string = (
        f"Classifier cascade {spec.name}: {' -> '.join(stage.name for stage in spec.stages)}. "
        f"Frames are u8 {spec.input.colour}, label is an index into tinysaver.labels, stage the "
        "number of the model that answered, from 0."
    )
    entries = {
        "tinysaver.bundle": spec.name,
        "tinysaver.bundle_sha256": file_sha256(bundle.folder / SPEC_NAME),
        "tinysaver.stages": json.dumps([stage.name for stage in spec.stages]),
        "tinysaver.forms": "/".join(forms),
        "tinysaver.thresholds": json.dumps(layout.thresholds),
        **({"tinysaver.combination": combined} if combined else {}),
        "tinysaver.certification": certified,
        "tinysaver.labels": json.dumps(spec.labels, ensure_ascii=False),
    }
    helper.set_model_props(model, entries)


def _content(model: ModelProto, out: Path) -> bytes:
    if model.ByteSize() > LARGEST:
        raise EngineError(
            f"{out}: not written: the cascade has {model.ByteSize():,} bytes, one ONNX file can "
            f"have {LARGEST:,}. Export smaller forms, or use the bundle."
        )
    content: bytes = model.SerializeToString()
    return content


def _forms(text: str | None) -> tuple[Form, ...] | None:
    """Return the forms that ``fp32/int8_host`` names; the bundle says which there are."""
    return cast("tuple[Form, ...]", tuple(text.split("/"))) if text else None


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or not int(text):
        raise click.BadParameter(f"expected a number of frames, or 'dynamic', got {text!r}")
    return int(text)


@click.group()
def main() -> None:
    """Write a cascade in another shape than a bundle's.

    Example: python -m engines.export onnx zoo/fashion --out cascade.onnx
    """


@main.command("onnx", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--forms", help="Forms of the stages, as fp32/int8_host.  [default: all fp32]")
@click.option(
    "--batch",
    default="dynamic",
    show_default=True,
    type=_batch,
    metavar="N",
    help="Frames at once, fixed.",
)
@click.option(
    "--frame-size",
    type=parse_size,
    metavar="HxW",
    help="Height and width of the frames (as arrays), where the bundle takes any.",
)
@click.option(
    "--stage-int32", is_flag=True, help="Make the output stage i32; TensorRT cannot take i8."
)
@click.option("--json", "json_", is_flag=True, help="Print what was written as JSON.")
def onnx(bundle: Path, out: Path, json_: bool, **options: Any) -> None:
    """Write the cascade of BUNDLE as a single ONNX file, for those who want only a file.

    It takes frames as the bundle does, u8 [n, H, W, C], and gives label, confidence and stage of
    each. Resizing and normalising are inside, and a later stage runs only where a frame is
    escalated. The file's metadata hold labels, thresholds and what is known of its accuracy.

    TensorRT-RTX cannot build it (no NonZero), and a CUDA graph cannot hold it; for these, use the
    bundle. See docs/engines.md.

    \b
    Examples
      python -m engines.export onnx zoo/fashion --out cascade.onnx
      python -m engines.export onnx BUNDLE --out cascade.onnx --frame-size 720x1280 --batch 8
    """
    exported = export_onnx(
        load_bundle(bundle),
        out,
        forms=_forms(options["forms"]),
        batch=options["batch"],
        size=options["frame_size"],
        wide_stage=options["stage_int32"],
    )
    if json_:
        click.echo(json.dumps({**asdict(exported), "file": str(out)}, indent=2))
        return
    shape = ", ".join(map(str, exported.frames))
    click.echo(f"{out}: {exported.nbytes:,} bytes, opset {exported.opset}")
    click.echo(f"  frames       u8 [{shape}]")
    click.echo(f"  forms        {'/'.join(exported.forms)}")
    click.echo(f"  checked      {exported.check}")
    click.echo(f"  certificate  {exported.certification}")


if __name__ == "__main__":
    main(prog_name="python -m engines.export")
