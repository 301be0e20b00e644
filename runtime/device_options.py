"""The options of command lines that choose a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from runtime.devices import GpuOptions

_Command = TypeVar("_Command", bound=Callable[..., Any])

LIBRARY = click.option(
    "--library",
    default="tensorrt",
    show_default=True,
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    help="What built the plans and runs them on a GPU.",
)
HOST_CODE = click.option(
    "--host-code",
    is_flag=True,
    help="Allow plans that hold code for the host, as version-compatible ones do: only your own.",
)
_DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda or cuda:1; auto takes a GPU that can run the bundle, else the CPU.",
)
_MODE = click.option(
    "--mode",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "host", "padded", "graph"]),
    help="How a GPU's engines are launched: after the host has waited for a count, always full, "
    "or as one CUDA graph.",
)
_NO_VERIFY = click.option(
    "--no-verify", is_flag=True, help="Skip the self-check of the first run on a GPU."
)


_NVTX = click.option(
    "--nvtx",
    is_flag=True,
    help="Name batches, stages and layers for Nsight Systems; needs the package nvtx.",
)


GEAR = click.option(
    "--gear",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Run a gear above the thresholds, which sends more images on; the highest is the large "
    "model alone. A certificate covers all of them.",
)


def device_options(command: _Command) -> _Command:
    """Add ``--device``, ``--mode``, ``--library``, ``--host-code``, ``--no-verify``, ``--nvtx``."""
    for option in (_NVTX, _NO_VERIFY, HOST_CODE, LIBRARY, _MODE, _DEVICE):
        command = option(command)
    return command


def take_gpu_options(values: dict[str, Any]) -> GpuOptions:
    """Take out of a command's values what `device_options` added, but for ``device``."""
    mode, no_verify = values.pop("mode"), values.pop("no_verify")
    return GpuOptions(
        mode=None if mode == "auto" else mode,
        library=values.pop("library"),
        host_code=values.pop("host_code"),
        verify=not no_verify,
        nvtx=values.pop("nvtx"),
    )
