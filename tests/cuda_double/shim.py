"""A ``libcuda.so.1`` whose every function calls back into Python."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import re
from pathlib import Path

from tests.cuda_cpu import build
from tests.cuda_double.driver import Driver
from tests.cuda_double.structures import Status
from tests.tensorrt_double.libraries import cache_folder, compile_library

LIBRARY = "libcuda.so.1"
# Integer arguments of the driver's functions: reading more than a function has does no harm here.
_MOST_ARGUMENTS = 12
_DECLARED = re.compile(r"CUDAAPI\s+(cu[A-Z]\w*)\s*\(")
_RENAMED = re.compile(r"#define\s+cu[A-Z]\w*\s+(?:__CUDA_API_PT\w+\()?(cu[A-Z]\w*)\)?")
_ELSEWHERE = {"cuProfilerInitialize", "cuProfilerStart", "cuProfilerStop"}  # cudaProfiler.h

_Dispatch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64))


class Shim:
    """The loaded library; code that opens ``libcuda.so.1`` later gets it too.

    Attributes
    ----------
    driver
        What answers; without one, all functions say that the driver has shut down.
    """

    def __init__(self) -> None:
        self.driver: Driver | None = None
        self._library = ctypes.CDLL(str(library_folder() / LIBRARY), mode=ctypes.RTLD_GLOBAL)
        self._dispatch = _Dispatch(self._call)
        self._library.cuda_double_dispatch_to(self._dispatch)
        # What is freed while the interpreter ends must not reach Python any more; it succeeds.
        atexit.register(self._library.cuda_double_dispatch_to, None)

    def use(self, driver: Driver | None) -> None:
        """Let a driver answer from now on."""
        self.driver = driver
        if driver is not None:
            driver.address_of = self.address

    @functools.cache  # noqa: B019 - there is one of it
    def address(self, name: str) -> int | None:
        """Return the address of a function, or None if there is none of that name."""
        try:
            return ctypes.cast(self._library[name], ctypes.c_void_p).value
        except AttributeError:
            return None

    def _call(self, name: bytes, arguments: ctypes.Array) -> int:
        if self.driver is None:
            return Status.DEINITIALIZED
        return self.driver.call(name.decode(), lambda count: arguments[:count])


@functools.cache
def shim() -> Shim:
    """Load the library, once a process."""
    return Shim()


@functools.cache
def library_folder() -> Path:
    """Return its folder, built if need be from the functions that ``cuda.h`` declares."""
    header = (build.cuda_headers()[0] / "cuda.h").read_text(encoding="utf-8", errors="replace")
    names = sorted({*_DECLARED.findall(header), *_RENAMED.findall(header), *_ELSEWHERE})
    source = _source(names).encode()
    folder = cache_folder() / f"cuda-double-{hashlib.sha256(source).hexdigest()[:12]}"
    if not (folder / LIBRARY).exists():
        compile_library(folder / LIBRARY, source)
    link = folder / "libcuda.so"  # what a linker asks for
    if not link.exists():
        link.symlink_to(LIBRARY)
    return folder


def _source(names: list[str]) -> str:
    parameters = ", ".join(f"u64 a{k}" for k in range(_MOST_ARGUMENTS))
    values = ", ".join(f"a{k}" for k in range(_MOST_ARGUMENTS))
    functions = "\n".join(
        f"int {name}({parameters}) {{ const u64 a[] = {{{values}}}; "
        f'return dispatch ? dispatch("{name}", a) : 0; }}'
        for name in names
    )
    return f"""
using u64 = unsigned long long;
static int (*dispatch)(const char*, const u64*);
extern "C" {{
void cuda_double_dispatch_to(int (*to)(const char*, const u64*)) {{ dispatch = to; }}
{functions}
}}
"""
