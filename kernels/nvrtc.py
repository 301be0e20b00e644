"""NVRTC, NVIDIA's run-time compiler, through ctypes: from CUDA C++ text to a cubin.

A library of CUDA 12 or 13 serves, wherever it comes from: JetPack, the toolkit, or a wheel. To
compile, neither a GPU nor a driver is needed. Nothing here starts nvcc.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kernels.errors import CompileError, CompilerMissingError, KernelError
from kernels.sources import Source

# NVRTC 12 refuses lambdas without __device__, which NVRTC 13 takes; the second option lets both.
OPTIONS = ("--std=c++17", "--device-as-default-execution-space")

OLDEST_MAJOR = 12
TOOLKIT_FOLDERS = (
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-*/lib64",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
)
WHEEL_FOLDERS = ("nvidia/cu*/lib", "nvidia/cuda_nvrtc/lib")


class Target(NamedTuple):
    """What a cubin is for.

    Attributes
    ----------
    architecture
        Of the device: ``sm_87``.
    driver
        CUDA version of its driver, major and minor: ``(12, 6)``.
    """

    architecture: str
    driver: tuple[int, int]

    @classmethod
    def of(cls, capability: tuple[int, int], driver_version: int) -> Target:
        """Return the target of a device, from the numbers that the driver reports.

        Parameters
        ----------
        capability
            Compute capability: ``(8, 7)``.
        driver_version
            As ``cuDriverGetVersion`` has it: 12060 is CUDA 12.6.
        """
        major, minor = capability
        return cls(f"sm_{major}{minor}", (driver_version // 1000, driver_version % 1000 // 10))


class Compiled(NamedTuple):
    """A cubin, and what the compiler had to say."""

    cubin: bytes
    log: str


class Nvrtc:
    """One loaded NVRTC library. Any number of threads may compile with it at the same time.

    Parameters
    ----------
    path
        A file, or a name that the loader finds.

    Attributes
    ----------
    version
        Major and minor: ``(13, 0)``.
    architectures
        Those it compiles for: ``sm_75``, ...

    Raises
    ------
    KernelError
        When the file is not an NVRTC that loads.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._library = _declare(ctypes.CDLL(path))
            self.version = self._ask_version()
            self._load_builtins()
        except (OSError, AttributeError) as error:
            raise KernelError(f"{path}: not a usable NVRTC ({error}).") from None
        self.architectures = self._ask_architectures()

    def __str__(self) -> str:
        return f"NVRTC {_dotted(self.version)} ({self.path})"

    def compile(
        self, source: Source, architecture: str, options: tuple[str, ...] = OPTIONS
    ) -> Compiled:
        """Return the cubin of a source for one architecture.

        Raises
        ------
        CompileError
            When the compiler refuses; has the architecture and the compiler's log.
        """
        flags = _strings((f"--gpu-architecture={architecture}", *options))
        with self._program(source) as program:
            status = self._library.nvrtcCompileProgram(program, len(flags), flags)
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            if status:
                raise CompileError(
                    f"{source.name}: {self} cannot compile it for {architecture}: "
                    f"{self._name(status)}\n{log}"
                )
            return Compiled(self._read(program, "CUBIN"), log)

    @contextmanager
    def _program(self, source: Source) -> Iterator[ctypes.c_void_p]:
        program = ctypes.c_void_p()
        names = _strings(name for name, _ in source.headers)
        texts = _strings(text for _, text in source.headers)
        text, name = source.text.encode(), source.name.encode()
        self._check(
            self._library.nvrtcCreateProgram(
                ctypes.byref(program), text, name, len(names), texts, names
            )
        )
        try:
            yield program
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        content = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, content))
        return content.raw

    def _load_builtins(self) -> None:
        # NVRTC loads this library by its bare name, and the wheel of 13.0 does not say where it is.
        beside = Path(self.path).parent / f"libnvrtc-builtins.so.{_dotted(self.version)}"
        if Path(self.path).is_absolute() and beside.is_file():
            ctypes.CDLL(str(beside))

    def _ask_version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return major.value, minor.value

    def _ask_architectures(self) -> tuple[str, ...]:
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        numbers = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(numbers))
        return tuple(f"sm_{number}" for number in numbers)

    def _check(self, status: int) -> None:
        if status:
            raise KernelError(f"{self.path}: {self._name(status)}")

    def _name(self, status: int) -> str:
        name: bytes = self._library.nvrtcGetErrorString(status)
        return name.decode()


def find(target: Target, folders: Iterable[Path] | None = None) -> Nvrtc:
    """Return an NVRTC that knows the architecture and is not newer than the driver's CUDA major.

    A cubin of a newer CUDA major is refused by the driver; within a major, older drivers take what
    newer compilers make.

    Parameters
    ----------
    target
        What is to be compiled for.
    folders
        Where to look, in this order; by default where the loader looks, then in the folders of
        JetPack and the toolkit, then in the wheels of this environment.

    Raises
    ------
    CompilerMissingError
        When there is none; says what was found and which package to install.
    """
    refused: list[str] = []
    for path in _libraries(target.driver[0], folders):
        try:
            nvrtc = _load(path)
        except KernelError as error:
            refused.append(str(error))
            continue
        if target.architecture in nvrtc.architectures:
            return nvrtc
        refused.append(f"NVRTC {_dotted(nvrtc.version)} does not know {target.architecture}.")
    raise CompilerMissingError(_missing(target, refused))


@functools.cache
def _load(path: str) -> Nvrtc:
    return Nvrtc(path)


def _libraries(newest: int, folders: Iterable[Path] | None) -> Iterator[str]:
    searched = tuple(_standard_folders() if folders is None else folders)
    for major in range(newest, OLDEST_MAJOR - 1, -1):
        name = f"libnvrtc.so.{major}"
        if folders is None and _loader_finds(name):
            yield name
        yield from (str(folder / name) for folder in searched if (folder / name).exists())


def _loader_finds(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _standard_folders() -> Iterator[Path]:
    for pattern in TOOLKIT_FOLDERS:
        yield from sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    for place in dict.fromkeys(sys.path):
        for pattern in WHEEL_FOLDERS:
            yield from sorted(Path(place).glob(pattern), reverse=True)


def _missing(target: Target, refused: list[str]) -> str:
    major, minor = target.driver
    if major < OLDEST_MAJOR:
        return (
            f"NVRTC: expected a driver of CUDA {OLDEST_MAJOR} or newer, got CUDA {major}.{minor}. "
            "Install a newer driver; on a Jetson, JetPack 6 or newer."
        )
    wheel = f"nvidia-cuda-nvrtc-cu{major}" if major == 12 else f"'nvidia-cuda-nvrtc=={major}.*'"
    found = " ".join(dict.fromkeys(refused)) or "None was found."
    return (
        f"NVRTC: expected one of CUDA {major} or older (the driver has {major}.{minor}) that "
        f"compiles for {target.architecture}. {found} Install it: sudo apt install "
        f"cuda-nvrtc-{major}-{minor} (JetPack, CUDA toolkit), or pip install {wheel}"
    )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _strings(items: Iterable[str]) -> ctypes.Array[ctypes.c_char_p]:
    encoded = [item.encode() for item in items]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of every function that is used; misses one here, not in the middle."""
    number, program = ctypes.POINTER(ctypes.c_int), ctypes.c_void_p
    programs, size = ctypes.POINTER(program), ctypes.POINTER(ctypes.c_size_t)
    text, texts = ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)
    for name, arguments in (
        ("Version", (number, number)),
        ("GetNumSupportedArchs", (number,)),
        ("GetSupportedArchs", (number,)),
        ("CreateProgram", (programs, text, text, ctypes.c_int, texts, texts)),
        ("CompileProgram", (program, ctypes.c_int, texts)),
        ("GetProgramLogSize", (program, size)),
        ("GetProgramLog", (program, text)),
        ("GetCUBINSize", (program, size)),
        ("GetCUBIN", (program, text)),
        ("DestroyProgram", (programs,)),
    ):
        getattr(library, f"nvrtc{name}").argtypes = arguments
    library.nvrtcGetErrorString.restype = text
    return library
