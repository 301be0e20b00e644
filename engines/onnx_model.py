"""What an ONNX file holds, told without running it: ``python -m engines.onnx_model --help``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from engines.errors import EngineError
from runtime.terminal import Command

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes
    ----------
    dtype
        NumPy's name, as ``float32``.
    shape
        Sizes, names of dynamic axes, None where the file says nothing; None if the rank is unknown.
    """

    name: str
    dtype: str
    shape: Shape | None

    def __str__(self) -> str:
        """Return ``name: float32 [n, 3, 224, 224]``."""
        sizes = "unknown" if self.shape is None else ", ".join(map(_size, self.shape))
        return f"{self.name}: {self.dtype} [{sizes}]"


@dataclass(frozen=True)
class OnnxModel:
    """A file that was read and checked; see `load_model`.

    Attributes
    ----------
    producer
        What wrote it, with its version.
    opset
        Version of ONNX's own operators.
    fixed_batch
        The batch that inputs or outputs are declared with; None if they are dynamic.
    batch_obstacle
        The node that keeps the batch from being another one; None if shapes show none.
    batch_freeable
        Whether ``python -m engines.bundle`` can make a batch dynamic that is not.
    external_data
        Files that hold weights, relative to the model's folder.
    parameters
        Numbers in all weights and constants.
    macs
        Multiply-accumulates for one sample; None where shapes are unknown.
    macs_note
        What was left out of the count, or why there is none.
    operators
        Nodes by operator, the most frequent first.
    notes
        What matters for building engines.
    """

    path: Path
    producer: str
    ir_version: int
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    fixed_batch: int | None
    batch_obstacle: str | None
    batch_freeable: bool
    external_data: tuple[str, ...]
    parameters: int
    macs: int | None
    macs_note: str | None
    operators: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether, by its shapes, the model takes any batch."""
        return self.fixed_batch is None and self.batch_obstacle is None


def load_model(path: Path, *, size: tuple[int, int] | None = None) -> OnnxModel:
    """Read, check and describe an ONNX file; nothing is run.

    Parameters
    ----------
    size
        Height and width to count MACs at, where the file leaves them dynamic.

    Raises
    ------
    UnsupportedModel
        When the file is damaged, has an unknown operator, shapes that do not fit together, or
        weights outside its folder.
    """
    # The base install lacks onnx, and the command line must be able to say so.
    from engines.description import describe
    from engines.onnx_file import read_onnx

    return describe(read_onnx(path), size=size)


def report(model: OnnxModel) -> str:
    """Return a description in plain text."""
    lines = [str(model.path)]
    lines += [f"  {name:<11} {text}" for name, text in _facts(model)]
    return "\n".join(lines)


def as_json(model: OnnxModel) -> dict[str, Any]:
    """Return the same as plain data."""
    return {**dataclasses.asdict(model), "path": str(model.path)}


def _facts(model: OnnxModel) -> Iterator[tuple[str, str]]:
    yield "made by", f"{model.producer or 'unknown'}, IR version {model.ir_version}"
    yield "opset", str(model.opset)
    yield from (("input", str(tensor)) for tensor in model.inputs)
    yield from (("output", str(tensor)) for tensor in model.outputs)
    yield "batch", _batch(model)
    yield "parameters", f"{model.parameters:,}"
    yield "weights", ", ".join(model.external_data) or "in the file"
    macs = "unknown" if model.macs is None else f"{model.macs:,} for one sample"
    yield "MACs", f"{macs} ({model.macs_note})" if model.macs_note else macs
    yield "operators", ", ".join(f"{name} {count}" for name, count in model.operators.items())
    yield from (("note", note) for note in model.notes)


def _batch(model: OnnxModel) -> str:
    declared = "dynamic" if model.fixed_batch is None else f"fixed at {model.fixed_batch}"
    if model.is_dynamic:
        return declared
    cause = f", but {model.batch_obstacle}" if model.batch_obstacle else ""
    if model.batch_freeable:
        return f"{declared}{cause}; python -m engines.bundle makes it dynamic"
    return f"{declared}{cause}; export the model with a dynamic batch"


def _size(size: int | str | None) -> str:
    return "?" if size is None else str(size)


def parse_size(text: str) -> tuple[int, int]:
    """Return height and width of ``224x160``, or of ``224`` for a square.

    Raises
    ------
    click.BadParameter
        When the text is neither.
    """
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise click.BadParameter(f"expected HEIGHTxWIDTH, as 224x224, got {text!r}")
    return int(numbers[0]), int(numbers[-1])


@click.command(
    cls=Command,
    epilog="Example: python -m engines.onnx_model zoo/fashion/models/*.onnx",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--size", type=parse_size, metavar="HxW", help="Count MACs at this size, where it is dynamic."
)
@click.option("--json", "json_", is_flag=True, help="Print a list of objects, one a file.")
def main(files: tuple[Path, ...], size: tuple[int, int] | None, json_: bool) -> None:
    """Describe ONNX files and refuse damaged ones, without running them.

    Shown are inputs, outputs, opset, whether the batch is dynamic and else what fixes it, where
    the weights are, operators, and multiply-accumulates. The exit code is 1 if a file was refused.
    """
    found, refused = [], []
    for path in files:
        try:
            model = load_model(path, size=size)
        except EngineError as error:
            refused.append({"path": str(path), "error": str(error)})
            click.echo(f"Error: {error}", err=True)
            continue
        found.append(as_json(model))
        if not json_:
            click.echo(report(model))
    if json_:
        click.echo(json.dumps([*found, *refused], indent=2))
    if refused:
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="python -m engines.onnx_model")
