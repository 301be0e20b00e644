"""A ``libcuda.so.1`` whose every function calls back into Python."""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

from tests.cuda_cpu import build
from tests.tensorrt_double.libraries import cache_folder, compile_library

LIBRARY = "libcuda.so.1"
# Integer arguments of the driver's functions: reading more than a function has does no harm here.
_MOST_ARGUMENTS = 12
_DECLARED = re.compile(r"CUDAAPI\s+(cu[A-Z]\w*)\s*\(")
_RENAMED = re.compile(r"#define\s+cu[A-Z]\w*\s+(?:__CUDA_API_PT\w+\()?(cu[A-Z]\w*)\)?")

Dispatch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64))


class Shim:
    """The loaded library; code that opens ``libcuda.so.1`` later gets it too.

    Parameters
    ----------
    call
        Gets the name of a function and its arguments as integers; returns a CUresult.
    """

    def __init__(self, call: Callable[[str, Callable[[int], list[int]]], int]) -> None:
        self.path = library_path()
        self._library = ctypes.CDLL(str(self.path), mode=ctypes.RTLD_GLOBAL)

        def dispatch(name: bytes, arguments: ctypes.Array) -> int:
            return call(name.decode(), lambda count: arguments[:count])

        self._dispatch = Dispatch(dispatch)
        self._library.cuda_double_dispatch_to(self._dispatch)

    def address(self, name: str) -> int | None:
        """Return the address of a function, or None if there is none of that name."""
        try:
            return ctypes.cast(self._library[name], ctypes.c_void_p).value
        except AttributeError:
            return None


def library_path() -> Path:
    """Return the library, built if need be from the functions that ``cuda.h`` declares."""
    header = (build.cuda_headers()[0] / "cuda.h").read_text(encoding="utf-8", errors="replace")
    names = sorted({*_DECLARED.findall(header), *_RENAMED.findall(header)})
    source = _source(names).encode()
    folder = cache_folder() / f"cuda-double-{hashlib.sha256(source).hexdigest()[:12]}"
    if not (folder / LIBRARY).exists():
        compile_library(folder / LIBRARY, source)
    link = folder / "libcuda.so"  # what a linker asks for
    if not link.exists():
        link.symlink_to(LIBRARY)
    return folder / LIBRARY


def _source(names: list[str]) -> str:
    parameters = ", ".join(f"u64 a{k}" for k in range(_MOST_ARGUMENTS))
    values = ", ".join(f"a{k}" for k in range(_MOST_ARGUMENTS))
    functions = "\n".join(
        f"int {name}({parameters}) {{ const u64 a[] = {{{values}}}; "
        f'return dispatch ? dispatch("{name}", a) : 3; }}'
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


def parameter_count(function: Callable[..., int]) -> int:
    """Return how many arguments a bound function of the double takes."""
    return len(inspect.signature(function).parameters)
