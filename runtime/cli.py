"""The console command ``tinysaver``: lists the verbs and forwards to ``python -m package.verb``."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click

from runtime.environment import (
    DISTRIBUTION,
    EnvironmentConflict,
    refuse_foreign_packages,
    version,
)
from runtime.terminal import missing_package


class Verb(NamedTuple):
    """A module with a click command ``main``, and what it does in a line."""

    module: str
    summary: str


VERBS = {
    "bench": Verb("runtime.bench", "Measure a cascade against its models alone."),
    "run": Verb("runtime.run", "Classify image files, folders or an npz; JSON Lines out."),
    "verify": Verb("runtime.verify", "Check kernels, plans and launch modes on a GPU."),
    "record": Verb("calibration.record", "Store the logits of a model for a data set."),
    "threshold": Verb("calibration.threshold", "Choose thresholds and certify the accuracy drop."),
    "search": Verb("calibration.search", "Search the best cascade of a pool of models."),
    "worth": Verb("calibration.worth", "Compare a cascade with the cheapest model as accurate."),
    "reproduce": Verb("calibration.reproduce", "Reproduce TinySaver's own experiments on a pool."),
    "drift": Verb("calibration.drift", "Measure how soon a drift guard sees corrupted images."),
    "report": Verb("calibration.report", "Write a page about a bundle, with plots and pictures."),
    "bundle": Verb("engines.bundle", "Make a bundle of your own ONNX files."),
    "inspect": Verb("engines.onnx_model", "Describe and check ONNX files without running them."),
    "int8": Verb("calibration.int8", "Make INT8 and FP16 forms of a bundle's models."),
    "build": Verb("engines.build", "Build TensorRT plans of a bundle, on the device."),
    "cache": Verb("engines.cache", "List, verify and prune the plans of a bundle."),
    "export": Verb("engines.export", "Write a cascade as a single ONNX file."),
    "doctor": Verb("runtime.doctor", "Tell what is wrong on this machine, and what mends it."),
    "train": Verb("savers.train", "Train savers and large models."),
    "esn": Verb("savers.esn", "Add exits to a large model between its own blocks."),
    "kronecker": Verb("savers.kronecker", "Put a model's matrices into Kronecker factors."),
    "shared-depth": Verb("savers.shared_depth", "Train a saver and a large model of one block."),
    "incubate": Verb("savers.incubate", "Train a deep model in modules of their own."),
    "methods": Verb("savers.methods", "Compare models of three methods with controls."),
    "papers": Verb("savers.reproduce", "Repeat the experiments of three papers on digits."),
}


class Forwarding(click.Command):
    """Hands its arguments untouched to the command of a verb's module."""

    def __init__(self, name: str, verb: Verb) -> None:
        super().__init__(name, short_help=verb.summary)
        self._module = verb.module

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments as they are; the module's command knows its options."""
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> Any:
        """Import the module and run its command.

        Raises
        ------
        click.ClickException
            When an optional package is missing; names the extra that brings it.
        """
        try:
            command = importlib.import_module(self._module).main
            return command.main(args=ctx.args, prog_name=f"tinysaver {self.name}")
        except ModuleNotFoundError as error:
            message = missing_package(error, f"tinysaver {self.name}")
            if message is None:
                raise
            raise click.ClickException(message) from None


class Verbs(click.Group):
    """The verbs as commands; a module is imported only when its verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command that forwards to a verb's module."""
        return Forwarding(name, VERBS[name]) if name in VERBS else None


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    epilog=f"Example: tinysaver bench --batch 32. The same as: python -m {VERBS['bench'].module} "
    "--batch 32. Each verb has its own --help.",
)
@click.version_option(version(), prog_name=DISTRIBUTION)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Run classifier cascades with a certified accuracy loss."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        return
    if ctx.invoked_subcommand == "doctor":
        return  # it tells of such packages itself, beside all else that is wrong
    try:
        refuse_foreign_packages()
    except EnvironmentConflict as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main(prog_name="tinysaver")
