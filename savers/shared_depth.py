"""``python -m savers.shared_depth``: a saver and a large model that are one set of weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.terminal import Command, progress_bar

if TYPE_CHECKING:
    from savers.depth_design import Design
    from savers.depth_memory import SharedMemory, Times
    from savers.depth_training import Row

_FILE = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Train a transformer whose block is shared over depth, and use it with any number of steps.

    Fewer steps make a saver, more the large model. Both are the same weights: one file, and on the
    CPU one copy in memory. A model that is trained for the saver's steps alone is always shown
    beside it.
    """


def _designed(**defaults: int) -> Callable[[Any], Any]:
    """Return the options that all trainings have."""
    options = [
        click.option(
            "--training",
            type=click.Choice(["plain", "small-step", "step-randomised"]),
            default="step-randomised",
            show_default=True,
            help="Steps of size 1; of size 1/4; or their number drawn anew for each batch.",
        ),
        click.option(
            "--steps", type=click.IntRange(1), default=4, show_default=True, help="Saver."
        ),
        click.option(
            "--large-steps", type=click.IntRange(1), default=12, show_default=True, help="Large."
        ),
        click.option("--partly", is_flag=True, help="First and last block with their own weights."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        click.option(
            "--work",
            type=_FILE,
            default=Path("build/shared-depth"),
            show_default=True,
            help="Checkpoints after each epoch. Training goes on from them.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        *(
            click.option(f"--{name}", type=click.IntRange(1), default=value, show_default=True)
            for name, value in defaults.items()
        ),
    ]

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@main.command(cls=Command)
@click.option(
    "--data", type=click.Choice(["digits", "fashion"]), default="digits", show_default=True
)
@click.option("--folder", type=_FILE, help="With the four idx .gz files of Fashion-MNIST.")
@click.option("--epochs", type=click.IntRange(1), help="[default: 15 of digits, 24 of fashion]")
@click.option("--out", type=_FILE, required=True, help="Bundle to make; must not hold anything.")
@_designed(width=32, heads=4, hidden=128)
def images(
    data: str, folder: Path | None, epochs: int | None, out: Path, as_json: bool, **options: Any
) -> None:
    """Train a classifier of images and write its cascade as a bundle.

    digits are scikit-learn's 1,797 scans of 8x8 pixels, scored on 500 that it did not learn from;
    fashion is Fashion-MNIST, scored on the selection split.

    \b
    Examples
      python -m savers.shared_depth images --out build/digits-depth
      python -m savers.shared_depth images --data fashion --width 64 --out build/fashion-depth
    """
    design, steps = _design(options), options["steps"]
    from engines.packing import check_free
    from savers.depth_tasks import image_task

    check_free(out)
    task = image_task(data, folder, epochs=epochs, seed=options["seed"])
    with progress_bar() as progress:
        study = task.study(options["work"], progress)
        network = study.train(design).network
        rows = study.rows(network, study.train(design.dedicated(steps)).network)
    from savers.depth_export import write_cascade

    written = write_cascade(network, task.pictures, (steps, design.steps), out)
    macs = {stage.name: stage.macs for stage in written.spec.stages}
    if as_json:
        click.echo(_as_json(design, rows, measure="accuracy", bundle=str(out), macs=macs))
        return
    click.echo(_table(rows, design, "accuracy", lambda score: f"{100 * score:.2f} %"))
    click.echo(f"{out}: {steps} -> {design.steps} steps on one file of weights; MACs {macs}")


@main.command(cls=Command)
@click.option(
    "--file", type=_FILE, help="Any text.  [default: pydoc_data/topics.py of this Python]"
)
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Bytes seen.")
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True)
@_designed(width=64, heads=4, hidden=256)
def text(file: Path | None, tokens: int, epochs: int, as_json: bool, **options: Any) -> None:
    """Train a causal language model of bytes; the last tenth of the text is held out.

    \b
    Example
      python -m savers.shared_depth text --training small-step --epochs 2
    """
    design, steps = _design(options), options["steps"]
    from savers.depth_tasks import text_study

    with progress_bar() as progress:
        study = text_study(
            file,
            tokens=tokens,
            epochs=epochs,
            seed=options["seed"],
            work=options["work"],
            progress=progress,
        )
        network, control = (study.train(d).network for d in (design, design.dedicated(steps)))
        rows = study.rows(network, control)
    if as_json:
        click.echo(_as_json(design, rows, measure="perplexity per byte"))
    else:
        click.echo(_table(rows, design, "perplexity per byte", lambda score: f"{score:.3f}"))


@main.command(cls=Command)
@click.option("--folder", type=_FILE, help="With the four idx .gz files of Fashion-MNIST.")
@click.option("--epochs", type=click.IntRange(1), default=24, show_default=True)
@click.option(
    "--out",
    type=_FILE,
    default=Path("zoo/fashion"),
    show_default=True,
    help="Bundle folder: the teacher is read from its models/, and ours are written there.",
)
@_designed(width=64, heads=4, hidden=128)
def pool(folder: Path | None, epochs: int, out: Path, as_json: bool, **options: Any) -> None:
    """Train on Fashion-MNIST for the search: a model with a card for each of both step numbers.

    Networks learn from the pool's model large, as its others do. Two controls become models too:
    each is trained for one number of steps alone, for as many epochs as cost what the training of
    the shared weights costs in blocks. Scores are of the selection split.

    \b
    Example
      python -m savers.shared_depth pool --out /tmp/pool
    """
    design, steps = _design(options), options["steps"]
    from savers.depth_tasks import image_task, publish_steps, pupil_task

    task = image_task("fashion", folder, epochs=epochs, seed=options["seed"])
    with progress_bar() as progress:
        task = pupil_task(out, task, options["work"], progress)
        study = task.study(options["work"], progress)
        shared = study.train(design)
        names = publish_steps(shared, (steps, design.steps), out, design, task.recipe)
        controls = []
        for count in (steps, design.steps):
            alone, longer = design.dedicated(count), design.epochs_alone(count, epochs)
            control = study.train(alone, epochs=longer)
            recipe = replace(task.recipe, epochs=longer)
            names += publish_steps(control, (count,), out, alone, recipe)
            controls.append(control.network)
        rows = study.rows(shared.network, *controls)
    if as_json:
        click.echo(_as_json(design, rows, measure="accuracy", models=names))
        return
    click.echo(_table(rows, design, "accuracy", lambda score: f"{100 * score:.2f} %"))
    click.echo(f"{out / 'models'}: {', '.join(names)}")


@main.command(cls=Command)
@click.option("--bundle", type=_FILE, help="[default: random weights of the given width]")
@click.option("--width", type=click.IntRange(12), default=768, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def memory(bundle: Path | None, width: int, threads: int, as_json: bool) -> None:
    """Measure what the second stage on shared weights adds to memory, and what sharing costs.

    Linux only. With the default width the block has 28 MB of weights.

    \b
    Examples
      python -m savers.shared_depth memory
      python -m savers.shared_depth memory --bundle build/digits-depth
    """
    from savers.depth_memory import measure_sharing, measure_times

    with tempfile.TemporaryDirectory() as place:
        if bundle is None:
            from savers.depth_tasks import random_cascade

            bundle = random_cascade(width, Path(place) / "bundle")
        found = measure_sharing(bundle, threads=threads)
        times = measure_times(bundle, threads=threads)
    click.echo(_memory_json(found, times) if as_json else _memory_text(found, times))


def _design(options: dict[str, Any]) -> Design:
    steps, large = options["steps"], options["large_steps"]
    if steps >= large:
        raise click.UsageError(f"--steps {steps}: expected fewer than --large-steps, {large}.")
    import torch

    from savers.depth_design import Design

    # On one thread the weights do not depend on how many there are.
    torch.set_num_threads(1)
    return Design(
        options["training"],
        large,
        options["width"],
        options["heads"],
        options["hidden"],
        partly=options["partly"],
    )


def _table(rows: list[Row], design: Design, measure: str, shown: Callable[[float], str]) -> str:
    lines = [f"{design.training}, trained with {', '.join(map(str, design.draws))} steps", ""]
    lines.append(f"steps  {measure}")
    for row in rows:
        note = "  trained for these steps alone" if row.dedicated else ""
        lines.append(f"{row.steps:>5}  {shown(row.score)}{note}")
    return "\n".join([*lines, ""])


def _as_json(design: Design, rows: list[Row], *, measure: str, **more: Any) -> str:
    return json.dumps(
        {
            "training": design.training,
            "steps": list(design.draws),
            "measure": measure,
            "rows": [row._asdict() for row in rows],
            **more,
        },
        indent=2,
    )


def _memory_json(found: SharedMemory, times: Times) -> str:
    return json.dumps(
        {
            "weights_bytes": found.weights,
            "shared_bytes": found.shared._asdict(),
            "own_bytes": found.own._asdict(),
            "second_stage_over_weights": found.ratio,
            "passed": found.is_met,
            "shared_ms": times.shared,
            "own_ms": times.own,
        },
        indent=2,
    )


def _memory_text(found: SharedMemory, times: Times) -> str:
    def line(name: str, memory: Any, times: tuple[float, ...]) -> str:
        sizes = "  ".join(f"{size / 1e6:8.1f}" for size in (*memory, memory.second))
        return f"{name:<16}{sizes}  {'  '.join(f'{time:8.2f}' for time in times)}"

    verdict = "MET" if found.is_met else "NOT MET"
    return "\n".join(
        [
            f"weights {found.weights / 1e6:.1f} MB; resident memory in MB, time of a sample in ms",
            f"{'':<16}{'one':>8}  {'two':>8}  {'second':>8}  {'saver':>8}  {'large':>8}",
            line("shared", found.shared, times.shared),
            line("of each session", found.own, times.own),
            f"The second stage adds {found.ratio:.2f} of the weights; bar <= 0.3: {verdict}",
        ]
    )


if __name__ == "__main__":
    main(prog_name="python -m savers.shared_depth")
