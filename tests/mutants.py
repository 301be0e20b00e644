"""Takes each wait, record and dependency out of the device code, and sees whether tests notice.

    python -m tests.mutants

Every mutant is run on the doubles of the driver and TensorRT, under several orders of streams; what
is held against it is `tests.cuda.ordering`. A mutant that nothing catches means that a wait is not
needed, or that a test is missing: the program then ends with 1.
"""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import click

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "cuda",
    "cuda_resources",
    "gpu",
    "gpu_slot",
    "gpu_stage",
    "graphs",
    "device_frames",
    "driver",
)
"""Of `runtime`: all that enqueues work, or waits for it."""

WAITS = frozenset({"sync", "wait", "settle", "synchronize", "wait_for_event", "_finish"})
RECORDS = frozenset({"record"})
ORDERS = frozenset({"order", "wait_for_stream"})
CALLS = frozenset({"cuEventRecord", "cuStreamWaitEvent", "cuStreamUpdateCaptureDependencies"})
EDGES = "cuGraphAddNode"
"""A node with all that it comes after."""

SEEDS = 10
_SECONDS = 120


class Mutant(NamedTuple):
    """One change: the line it is in, and what is not done any more.

    Attributes
    ----------
    number
        Among those of its module.
    """

    module: str
    number: int
    line: int
    text: str

    def __str__(self) -> str:
        """Return where and what."""
        return f"runtime/{self.module}.py:{self.line} without {self.text}"


class Outcome(NamedTuple):
    """What was noticed of a mutant, per seed; None where nothing was."""

    mutant: Mutant
    noticed: list[str | None]


def find_mutants(modules: Sequence[str] = MODULES) -> list[Mutant]:
    """Return every change there is."""
    found = []
    for module in modules:
        tree = ast.parse(_path(module).read_text(encoding="utf-8"))
        for number, node in enumerate(places(tree)):
            text = " ".join(ast.unparse(node).split())
            if isinstance(node, ast.Call):
                text = f"the edges of {text}"
            found.append(Mutant(module, number, node.lineno, text))
    return found


def mutated(mutant: Mutant) -> ast.Module:
    """Return the module of a mutant, changed; lines stay where they are."""
    tree = ast.parse(_path(mutant.module).read_text(encoding="utf-8"))
    node = list(places(tree))[mutant.number]
    changed = _without_edges(node) if isinstance(node, ast.Call) else ast.Pass()
    tree = _Replacing(node, ast.copy_location(changed, node)).visit(tree)
    return ast.fix_missing_locations(tree)


class _Replacing(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self._new if node is self._old else super().visit(node)


def places(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Yield statements that wait, record or order, and calls that add a node with its edges."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if _orders(node.value):
                yield node
        elif isinstance(node, ast.Call) and _first_argument(node) == EDGES:
            yield node


def _orders(call: ast.Call) -> bool:
    called = _name(call.func)
    if called in WAITS | RECORDS | ORDERS:
        return True
    # What is handed to another call: ``device.call(event.synchronize)``, ``callback(self.settle)``.
    return _first_argument(call) in WAITS | RECORDS | ORDERS | CALLS


def _first_argument(call: ast.Call) -> str | None:
    return _name(call.args[0]) if call.args else None


def _name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return node.id if isinstance(node, ast.Name) else None


def _without_edges(call: ast.Call) -> ast.Call:
    """Return ``cuGraphAddNode(graph, [], [], 0, parameters)``."""
    changed = copy.deepcopy(call)
    changed.args[2:5] = [ast.List([], ast.Load()), ast.List([], ast.Load()), ast.Constant(0)]
    return changed


def _path(module: str) -> Path:
    return ROOT / "runtime" / f"{module}.py"


# Running them: each in a fork of a process that has loaded everything but the device code.


class _Finder(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Gives the changed module where it is imported."""

    def __init__(self, mutant: Mutant) -> None:
        path = str(_path(mutant.module))
        self._name = f"runtime.{mutant.module}"
        self._code = compile(mutated(mutant), path, "exec")
        super().__init__(self._name, path)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return a spec for that module alone."""
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        """Return the changed code."""
        return self._code


def prepare() -> None:
    """Load what all mutants share, the doubles among it."""
    import cuda.bindings.driver  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import pydantic  # noqa: F401

    from tests.cuda_double.install import install, kernels
    from tests.tensorrt_double.libraries import cache_folder

    os.environ["XDG_CACHE_HOME"] = str(cache_folder() / "home")
    install()
    import pycuda.driver  # noqa: F401

    kernels()
    loaded = [name for name in sys.modules if name.startswith("runtime")]
    assert not loaded, f"{loaded} would be used unchanged"


def run_mutants(mutants: Sequence[Mutant], *, seeds: int, jobs: int) -> Iterator[Outcome]:
    """Run every mutant under every seed, in the order in which they end."""
    waiting = list(mutants)
    running: dict[int, tuple[Mutant, Path]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        _make_world(bundle)
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                result = Path(scratch) / f"{mutant.module}.{mutant.number}"
                running[_start(mutant, bundle, seeds, result)] = (mutant, result)
            child, status = os.wait()
            mutant, result = running.pop(child)
            assert status == 0, f"{mutant}: its process ended with status {status}"
            yield Outcome(mutant, json.loads(result.read_text()))


def _make_world(bundle: Path) -> None:
    """Find the right answers by the code as it is, in a process of its own."""
    child = os.fork()
    if child == 0:
        with _ending_with(1):
            from tests.cuda.ordering import make_world

            make_world(bundle)
    assert os.waitpid(child, 0)[1] == 0


def _start(mutant: Mutant, bundle: Path, seeds: int, result: Path) -> int:
    """Run a mutant in a child process, which writes what was noticed; return the child."""
    child = os.fork()
    if child == 0:
        with _ending_with(1):
            signal.alarm(_SECONDS)
            sys.meta_path.insert(0, _Finder(mutant))
            from tests.cuda.ordering import complaints, open_world

            world = open_world(bundle)
            noticed = [next(complaints(world, seed), None) for seed in range(seeds)]
            result.write_text(json.dumps(noticed))
    return child


@contextmanager
def _ending_with(status: int) -> Iterator[None]:
    """End the process: with 0, or with a traceback and a status."""
    try:
        yield
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@click.command()
@click.option("--seeds", default=SEEDS, show_default=True, help="Orders of streams.")
@click.option("--jobs", default=os.cpu_count(), show_default=True, help="At the same time.")
@click.option("--only", default="", help="Mutants whose description has this in it.")
def main(seeds: int, jobs: int, only: str) -> None:
    """Run all mutants of the device code."""
    prepare()
    mutants = [mutant for mutant in find_mutants() if only in str(mutant)]
    survivors = 0
    for mutant, noticed in run_mutants(mutants, seeds=seeds, jobs=jobs):
        missed = [seed for seed, complaint in enumerate(noticed) if complaint is None]
        survivors += bool(missed)
        click.echo(f"{mutant}\n    {noticed[0] if not missed else f'NOT NOTICED, seeds {missed}'}")
    click.echo(f"{len(mutants)} mutants, {seeds} seeds: {survivors} not noticed")
    sys.exit(1 if survivors or not mutants else 0)


if __name__ == "__main__":
    main()
