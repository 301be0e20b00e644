"""The real Python bindings of several TensorRT versions, without TensorRT.

The wheels hold only the bindings, about 1 MB each. They are imported over empty shared libraries
that export the few C functions the bindings link to, each of which returns a null pointer.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.tensorrt_double.libraries import HERE, ROOT, cache_folder, compile_library, driver_folder

DISTRIBUTIONS = {
    "8.6.1": "tensorrt-bindings",
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.0.0.114": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu12-bindings",
}
VERSIONS = list(DISTRIBUTIONS)
NEWEST_PYTHON = {"8.6.1": (3, 11), "10.3.0": (3, 12), "11.4.0.106": (3, 14)}
"""The last Python that a version has a wheel for, where that is not 3.13."""

# What every shared library may leave undefined; the rest is TensorRT's.
_COMMON = re.compile(r"@|^(_ITM|__gmon|Py|_Py|_ZGT|pthread|dl|__cxa|__tls)")


def bindings(version: str) -> Path:
    """Return a folder with ``tensorrt_bindings`` and, in ``libraries``, what it links to."""
    newest = NEWEST_PYTHON.get(version, (3, 13))
    assert sys.version_info[:2] <= newest, f"TensorRT {version} has no bindings for this Python"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = cache_folder() / f"bindings-{version}-{tag}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            with zipfile.ZipFile(_download(version, Path(scratch))) as wheel:
                wheel.extractall(made)
            _make_libraries(made / "tensorrt_bindings" / "tensorrt.so", made / "libraries")
            _publish(made, folder)
    return folder


def environment(version: str) -> dict[str, str]:
    """Return variables under which ``import tensorrt`` is the double over a version's bindings."""
    real = bindings(version)
    return {
        "PYTHONPATH": f"{HERE / 'site'}:{real}:{ROOT}",
        "LD_LIBRARY_PATH": f"{real / 'libraries'}:{driver_folder()}",
    }


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    options = ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    wanted = f"{DISTRIBUTIONS[version]}=={version}"
    result = subprocess.run(
        [*command, *options, wanted], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    assert wheels, f"{wanted} could not be downloaded:\n{result.stderr}"
    return wheels[0]


def _make_libraries(extension: Path, folder: Path) -> None:
    """Make the NVIDIA libraries that an extension module needs: the first has all functions."""
    needed = re.findall(r"\(NEEDED\).*\[(libnv\S+)\]", _output("readelf", "-d", extension))
    undefined = re.findall(r" U (\S+)", _output("nm", "-D", "--undefined-only", extension))
    functions = [name for name in undefined if not _COMMON.search(name)]
    lines = [f'extern "C" void* {name}() {{ return nullptr; }}' for name in functions]
    for index, name in enumerate(needed):
        source = "\n".join(lines) if index == 0 else ""
        compile_library(folder / name, source.encode())


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _publish(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        assert folder.exists()  # another process was faster
