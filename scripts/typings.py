"""Fetch the type stubs of TensorRT that mypy reads, mend them, and print their folder.

The package ``tensorrt-stubs`` cannot be an extra: it depends on all of TensorRT, some gigabytes.
Its files, generated from docstrings, have a few lines that are no Python, and shadow ``bool``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "10.13.0.35.1"
FOLDER = Path(sys.prefix) / "typings" / f"tensorrt-{VERSION}"
PACKAGES = ("tensorrt/", "tensorrt_bindings/")

# Pattern and replacement, in lines of functions and of variables.
MENDS = (
    (r"^(    def .*), in: ", r"\1, in_: "),
    (r"^(    def .*channel_axis: int)\)", r"\1 = ...)"),
    (r"^bool: .*$", ""),
)


def mended(text: str) -> str:
    """Return stubs that mypy can read."""
    for pattern, replacement in MENDS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def fetch(folder: Path) -> None:
    """Download the wheel and write its mended stubs to a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-deps"]
        options = ["--disable-pip-version-check", "--only-binary=:all:", "--dest", scratch]
        subprocess.run([*command, *options, f"tensorrt-stubs=={VERSION}"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(PACKAGES) and name.endswith(".pyi"):
                    path = folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(mended(archive.read(name).decode()), encoding="utf-8")


def main() -> int:
    """Print the folder, filled on first use."""
    if not FOLDER.exists():
        FOLDER.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
            try:
                fetch(Path(scratch) / "made")
            except subprocess.CalledProcessError as error:
                print(f"tinysaver: tensorrt-stubs {VERSION}: {error}", file=sys.stderr)
                return 1
            (Path(scratch) / "made").replace(FOLDER)
    print(FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
