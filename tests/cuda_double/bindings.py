"""An older release of cuda-bindings, whose signatures differ, beside the one that is installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.tensorrt_double.libraries import cache_folder

OLDER = "12.9.4"


def older_bindings() -> Path:
    """Return a folder for ``sys.path`` that holds cuda-bindings of CUDA 12."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = cache_folder() / f"cuda-bindings-{OLDER}-{tag}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            _download(Path(scratch))
            (wheel,) = Path(scratch).glob("*.whl")
            made = Path(scratch) / "made"
            with zipfile.ZipFile(wheel) as content:
                content.extractall(made)
            try:
                made.rename(folder)
            except OSError:
                assert folder.exists()  # another process was faster
    return folder


def _download(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    options = ["--disable-pip-version-check", "--dest", str(folder)]
    subprocess.run([*command, *options, f"cuda-bindings=={OLDER}"], check=True)
