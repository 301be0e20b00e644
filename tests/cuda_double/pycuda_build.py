"""The real pycuda, built once for the double and kept in the cache folder of the tests.

It is compiled from its source distribution against the ``cuda.h`` of a wheel and linked to the
shim: no toolkit and no driver is needed, and nothing is optimised, since nobody measures it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

from tests.cuda_cpu import build
from tests.cuda_double.shim import library_folder
from tests.tensorrt_double.libraries import cache_folder

VERSION = "2026.1"
# In no wheel.
_PROFILER = """
#pragma once
#include <cuda.h>
typedef enum { CU_OUT_KEY_VALUE_PAIR, CU_OUT_CSV } CUoutput_mode;
extern "C" {
CUresult cuProfilerInitialize(const char*, const char*, CUoutput_mode);
CUresult cuProfilerStart(void);
CUresult cuProfilerStop(void);
}
"""


def pycuda_folder() -> Path:
    """Return a folder for ``sys.path`` that holds pycuda; the first call of all takes minutes."""
    tag = f"{sysconfig.get_config_var('SOABI')}-numpy{np.__version__.split('.')[0]}"
    folder = cache_folder() / f"pycuda-{VERSION}-{tag}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process builds, the others wait for it
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _build(Path(scratch)).rename(folder)
    return folder


def _build(scratch: Path) -> Path:
    source = _unpack(scratch)
    (scratch / "include").mkdir()
    (scratch / "include" / "cudaProfiler.h").write_text(_PROFILER)
    (source / "siteconf.py").write_text(_settings(scratch / "include"))
    jobs = str(os.cpu_count() or 1)
    _run(sys.executable, "setup.py", "--quiet", "build_ext", f"-j{jobs}", folder=source)
    (built,) = (source / "build").glob("lib.*")
    made = scratch / "made"
    shutil.copytree(source / "pycuda", made / "pycuda")
    shutil.copytree(built / "pycuda", made / "pycuda", dirs_exist_ok=True)
    return made


def _unpack(scratch: Path) -> Path:
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:")
    options = ("--no-build-isolation", "--disable-pip-version-check", "--dest", str(scratch))
    _run(*command, *options, f"pycuda=={VERSION}", folder=scratch)
    _run("tar", "-xzf", f"pycuda-{VERSION}.tar.gz", folder=scratch)
    return scratch / f"pycuda-{VERSION}"


def _settings(own_headers: Path) -> str:
    headers = [str(own_headers), *map(str, build.cuda_headers())]
    settings = {
        "CUDA_ROOT": None,
        "CUDA_INC_DIR": headers,
        "CUDADRV_LIB_DIR": [str(library_folder())],
        "CUDADRV_LIBNAME": ["cuda"],
        "CUDA_ENABLE_GL": False,
        "CUDA_ENABLE_CURAND": False,
        "CUDA_TRACE": False,
        "USE_SHIPPED_BOOST": True,
        "BOOST_INC_DIR": [],
        "BOOST_LIB_DIR": [],
        "BOOST_COMPILER": "gcc43",
        "CXXFLAGS": ["-O0", "-w"],
        "LDFLAGS": [],
    }
    return "".join(f"{name} = {value!r}\n" for name, value in settings.items())


def _run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
