"""The part of the bench that asks for memory: peak of a process with the cascade, and without.

Each side runs in a process of its own, started afresh, because a peak never falls. Both load the
same models and run the same batches; one through the cascade, the other by bare ONNX Runtime
sessions on the row groups that the cascade gave them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from runtime.errors import TinysaverError
from runtime.images import load_arrays
from runtime.preprocess import Frames
from runtime.schema import Form
from runtime.session import HostModel

BATCHES = 100
Groups = list[list[int]]


class MeasurementError(TinysaverError, RuntimeError):
    """A process that was to be measured failed."""


class PeakMemory(NamedTuple):
    """Peak resident set sizes in bytes, of whole processes with Python and all libraries."""

    cascade: int
    sessions: int

    @property
    def ratio(self) -> float:
        """Cascade over bare sessions."""
        return self.cascade / self.sessions


class _Answer(NamedTuple):
    peak: int
    groups: Groups


def measure_memory(
    bundle: Path, data: Path, forms: Sequence[Form], *, batch: int, threads: int
) -> PeakMemory:
    """Run both processes, one after the other."""
    task = {
        "bundle": str(bundle),
        "data": str(data),
        "forms": forms,
        "batch": batch,
        "threads": threads,
    }
    cascade = _child({**task, "groups": None})
    sessions = _child({**task, "groups": cascade.groups})
    return PeakMemory(cascade.peak, sessions.peak)


def _child(task: dict[str, object]) -> _Answer:
    command = [sys.executable, "-m", "runtime.bench_memory"]
    done = subprocess.run(
        command, input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MeasurementError(f"--memory: the measured process failed: {last_line}")
    return _Answer(**json.loads(done.stdout))


def _main() -> None:
    task = json.loads(sys.stdin.read())
    frames = load_arrays(Path(task["data"]))[0][: BATCHES * task["batch"]]
    groups, forms, threads = task["groups"], task["forms"], task["threads"]
    if groups is None:
        groups = _run_cascade(task["bundle"], forms, frames, batch=task["batch"], threads=threads)
    else:
        _run_sessions(task["bundle"], forms, groups, threads)
    print(json.dumps({"peak": _peak_bytes(), "groups": groups}))


def _peak_bytes() -> int:
    # Not getrusage: its peak is handed down through exec from the process that started this one.
    status = Path("/proc/self/status").read_text()
    kilobytes = status.split("VmHWM:")[1].split()[0]
    return 1024 * int(kilobytes)


def _run_cascade(
    bundle: str, forms: Sequence[Form], frames: Frames, *, batch: int, threads: int
) -> Groups:
    groups = []
    with Cascade.load(bundle, batch=batch, threads=threads, forms=forms) as cascade:
        for start in range(0, len(frames), batch):
            stage = cascade.run(frames[start : start + batch]).stage
            groups.append([int((stage >= k).sum()) for k in range(len(cascade.stage_names))])
    return groups


def _run_sessions(folder: str, forms: Sequence[Form], groups: Groups, threads: int) -> None:
    bundle = load_bundle(folder)
    models = [
        HostModel(bundle.model(index, form), threads=threads) for index, form in enumerate(forms)
    ]
    for group in groups:
        for model, rows in zip(models, group, strict=True):
            if rows:
                model.run(
                    {k: np.zeros((rows, *v[1:]), np.float32) for k, v in model.inputs.items()}
                )


if __name__ == "__main__":
    _main()
