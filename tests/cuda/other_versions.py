"""A short run of a cascade on the doubles, with other versions of what lies below.

Run as a program, it prints what came of each launch mode, and of a profiled one, as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime import Cascade
from runtime.devices import GpuOptions
from runtime.errors import TinysaverError
from tests.cuda import bundles
from tests.cuda_double.driver import Driver, Machine
from tests.cuda_double.install import TENSORRT, install, kernels
from tests.cuda_double.plans import write_plans
from tests.cuda_double.shim import shim
from tests.tensorrt_double.libraries import ROOT, cache_folder, run_python

MODES = ("host", "padded", "graph", None)
_ROWS = 8


def run_with(*, home: Path | None = None, **settings: Any) -> list[dict[str, Any]]:
    """Return what came of each of `MODES`, and of the last of them profiled, in an own process.

    Parameters
    ----------
    home
        Folder of the user's caches; by default one of the tests.
    settings
        Of `_run`, as JSON holds them.
    """
    program = run_python(
        "-m",
        "tests.cuda.other_versions",
        json.dumps(settings),
        environment={"XDG_CACHE_HOME": str(home or cache_folder() / "home")},
        cwd=ROOT,
    )
    assert program.returncode == 0, program.stderr
    outcomes: list[dict[str, Any]] = json.loads(program.stdout.splitlines()[-1])
    return outcomes


def _run(
    *,
    tensorrt: str = TENSORRT,
    library: str = "tensorrt",
    driver: tuple[int, int] = (13, 0),
    bindings: str | None = None,
    content: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    if bindings is not None:
        sys.path.insert(0, bindings)
    install(tensorrt, library)
    machine = Machine(driver=tuple(driver))
    shim().use(Driver(kernels(), machine))
    with tempfile.TemporaryDirectory() as scratch:
        folder = bundles.three_stages(Path(scratch) / "bundle")
        write_plans(folder, (1, 4, _ROWS), tensorrt=tensorrt, library=library, **(content or {}))
        options = [GpuOptions(mode=mode, library=library, verify=False) for mode in MODES]
        options.append(replace(options[-1], profile_layers=True, nvtx=True))
        return [_outcome(folder, option, machine) for option in options]


def _outcome(folder: Path, options: GpuOptions, machine: Machine) -> dict[str, Any]:
    frames = bundles.random_frames(3 * _ROWS, bundles.NV12["shape"])
    with Cascade.load(folder, "cpu") as cascade:
        expected = cascade.run(frames)
    driver = Driver(kernels(), machine)
    shim().use(driver)
    try:
        with Cascade.load(folder, "cuda", batch=_ROWS, gpu=options) as cascade:
            found = list(cascade.stream(frames.reshape(3, _ROWS, *frames.shape[1:])))
            chosen = cascade.executor.mode, cascade.executor.mode_reason
            layers = [list(used) for used in cascade.executor.take_layer_times()]
    except TinysaverError as error:
        return {"error": str(error)}
    labels = [int(label) for answers in found for label in answers.label]
    library = sys.modules[options.library].library
    seen = list(library.compiled)
    library.compiled.clear()
    marked = sorted({name for name, _ in library.marked})
    library.marked.clear()
    return {
        "compiled": seen,
        "layers": layers,
        "marked": marked,
        "mode": chosen[0],
        "reason": chosen[1],
        "equal": labels == expected.label.tolist(),
        "errors": driver.errors,
        "left": driver.leaked or driver.live(),
    }


if __name__ == "__main__":
    print(json.dumps(_run(**json.loads(sys.argv[1]))))
