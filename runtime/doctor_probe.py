"""Import one library and tell what it is: ``python doctor_probe.py NAME SYS_PATH``.

The doctor runs this file in a process of its own for each library, since an import may crash or
hang. The last line of standard output is JSON: the facts, or ``error``, or ``missing``. Standard
library only, and imports by name, so that nothing is loaded but what is asked about.
"""

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from typing import Any

Facts = dict[str, Any]

LONGEST_ERROR = 1000


def main() -> None:
    """Answer for the library that the command line names."""
    name, path = sys.argv[1:]
    sys.path[:] = json.loads(path)
    print("\n" + json.dumps(probe(name)), flush=True)


def probe(name: str) -> Facts:
    """Return the facts of a library; whatever it raises is an answer too."""
    module, describe = PROBES[name]
    try:
        if not _is_installed(module):
            return {"missing": True}
        return describe(importlib.import_module(module))
    except BaseException as error:
        return {"error": _text(error)}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _plain(module: Any) -> Facts:
    return {"version": str(module.__version__), "file": module.__file__}


def _onnxruntime(module: Any) -> Facts:
    return {**_plain(module), "providers": list(module.get_available_providers())}


def _opencv(module: Any) -> Facts:
    found = re.search(r"GStreamer:\s*(\w+)", module.getBuildInformation())
    return {**_plain(module), "gstreamer": found is not None and found.group(1) == "YES"}


def _tensorrt(module: Any) -> Facts:
    """Find also the library that was loaded, its own version, and whether it starts."""
    facts: Facts = {**_plain(module), "runtime_error": None}
    library = _loaded(r"/libnvinfer\.so|/libtensorrt_rtx\.so")
    if library:
        facts["library"] = library
        facts["library_version"] = _library_version(library)
    try:
        logger = module.Logger(module.Logger.ERROR)
        if module.Runtime(logger) is None:
            facts["runtime_error"] = "no runtime was made"
    except Exception as error:
        facts["runtime_error"] = _text(error)
    return facts


def _pycuda(module: Any) -> Facts:
    """Import its driver module too, which needs the NVIDIA driver."""
    facts: Facts = {"version": str(module.VERSION_TEXT), "file": module.__file__}
    facts["driver_error"] = _failure(lambda: importlib.import_module("pycuda.driver"))
    return facts


def _cuda_bindings(module: Any) -> Facts:
    """Call the driver through them, which loads it."""
    metadata = importlib.import_module("importlib.metadata")  # half of a start-up by itself
    facts: Facts = {"version": metadata.version("cuda-bindings"), "file": module.__file__}
    facts["driver_error"] = _failure(lambda: module.cuDriverGetVersion())
    return facts


def _driver(module: Any) -> Facts:
    driver = module.ask_driver()
    return {"cuda": driver.cuda, "gpus": [vars(gpu) for gpu in driver.gpus]}


def _nvrtc(module: Any) -> Facts:
    """Find the compiler that would be used for the first GPU, and whether it has to be."""
    driver = importlib.import_module("runtime.driver").ask_driver()
    major, minor = map(int, driver.cuda.split("."))
    target = module.Target(driver.gpu().architecture, (major, minor))
    facts: Facts = {"shipped": _has_shipped(target), "missing_error": None}
    try:
        found = module.find(target)
    except Exception as error:
        return {**facts, "missing_error": str(error)}
    return {**facts, "version": ".".join(map(str, found.version)), "file": found.path}


def _has_shipped(target: Any) -> bool:
    """Return whether this release has its kernels compiled for a GPU."""
    prebuilt = importlib.import_module("kernels.prebuilt")
    sources = importlib.import_module("kernels.sources")
    return all(
        prebuilt.find_prebuilt(prebuilt.SHIPPED, sources.load_source(name), target)
        for name in sources.module_names()
    )


def _loaded(pattern: str) -> str | None:
    """Return the file of a shared library that this process has loaded."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return None
    files = (line.split(maxsplit=5)[-1] for line in lines if "/" in line)
    return next((file for file in files if re.search(pattern, file)), None)


def _library_version(path: str) -> str | None:
    """Return ``10.3.0``, as ``getInferLibVersion`` of the library says it."""
    try:
        library = importlib.import_module("ctypes").CDLL(path)
        number = int(library.getInferLibVersion())
    except (OSError, AttributeError):
        return None
    # Until version 8 a thousand is a major version, from 10 on ten thousand.
    major, rest = divmod(number, 10_000 if number >= 10_000 else 1000)
    minor, patch = divmod(rest, 100)
    return f"{major}.{minor}.{patch}"


def _failure(call: Callable[[], object]) -> str | None:
    try:
        call()
    except Exception as error:
        return _text(error)
    return None


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:LONGEST_ERROR]


PROBES: dict[str, tuple[str, Callable[[Any], Facts]]] = {
    "numpy": ("numpy", _plain),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "opencv": ("cv2", _opencv),
    "tensorrt": ("tensorrt", _tensorrt),
    "tensorrt_rtx": ("tensorrt_rtx", _tensorrt),
    "pycuda": ("pycuda", _pycuda),
    "cuda_bindings": ("cuda.bindings.driver", _cuda_bindings),
    "driver": ("runtime.driver", _driver),
    "nvrtc": ("kernels.nvrtc", _nvrtc),
}
"""By name: the module to import, and the function that describes it."""


if __name__ == "__main__":
    main()
