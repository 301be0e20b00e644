"""What the NVIDIA driver says of this machine's GPUs, through ctypes: no pycuda and no context."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import DeviceError

LIBRARY = "libcuda.so.1"

_BOARD = Path("/proc/device-tree/model")

_NAME_BYTES = 256
# CUdevice_attribute
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED, which cuInit returns in a forked child
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_OF_AN_EMULATION = "cuda_double_dispatch_to"  # no real driver has it


class DriverError(DeviceError):
    """The NVIDIA driver is missing, cannot be used, or reports no GPU."""


class NoDriverError(DriverError):
    """There is no NVIDIA driver on this machine."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes
    ----------
    architecture
        Its compute capability as compilers name it, ``sm_87``.
    """

    name: str
    architecture: str
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """The driver and its GPUs, by index.

    Attributes
    ----------
    cuda
        The newest CUDA version that the driver runs, ``12.6``.
    """

    cuda: str
    gpus: tuple[Gpu, ...]

    def gpu(self, index: int = 0) -> Gpu:
        """Return one GPU.

        Raises
        ------
        DriverError
            When the driver reports fewer.
        """
        if not 0 <= index < len(self.gpus):
            raise DriverError(f"GPU {index}: the NVIDIA driver reports {len(self.gpus)} GPU(s).")
        return self.gpus[index]


def ask_driver() -> Driver:
    """Ask the driver for its version and GPUs. The first call of a process starts it (``cuInit``).

    Raises
    ------
    NoDriverError
        When there is no driver.
    DriverError
        When it does not start.
    """
    library = _Library()
    version, count = ctypes.c_int(), ctypes.c_int()
    library.call("cuDriverGetVersion", ctypes.byref(version))
    library.call("cuInit", 0)
    library.call("cuDeviceGetCount", ctypes.byref(count))
    major, minor = version.value // 1000, version.value % 1000 // 10
    return Driver(f"{major}.{minor}", tuple(_gpu(library, i) for i in range(count.value)))


def is_emulated() -> bool:
    """Return whether the driver is no driver, but the stand-in of our tests, on the CPU.

    Raises
    ------
    DriverError
        When there is none.
    """
    return _Library().has(_OF_AN_EMULATION)


def wait_for_stream(stream: int, other: int) -> None:
    """Let a ``CUstream``'s further work start after all that another one holds now.

    For streams of other libraries, which pycuda cannot take. The context must be current.

    Raises
    ------
    DriverError
        When the driver refuses.
    """
    library, event = _Library(), ctypes.c_void_p()
    library.call("cuEventCreate", ctypes.byref(event), _DISABLE_TIMING)
    try:
        library.call("cuEventRecord", event, ctypes.c_void_p(other))
        library.call("cuStreamWaitEvent", ctypes.c_void_p(stream), event, 0)
    finally:
        library.call("cuEventDestroy_v2", event)


def pop_context() -> None:
    """Take the current context from the thread's stack, as pycuda alone does not.

    Raises
    ------
    DriverError
        When there is none.
    """
    _Library().call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def board() -> str | None:
    """Return the name of the board, as ``NVIDIA Jetson AGX Orin Developer Kit``; None on a PC.

    All Jetson modules of a generation call their GPU alike; the board tells them apart.
    """
    try:
        return _BOARD.read_text(encoding="utf-8", errors="replace").rstrip("\0\n")
    except OSError:
        return None


class _Library:
    """The functions of libcuda; a status other than 0 raises."""

    def __init__(self) -> None:
        try:
            self._functions = ctypes.CDLL(LIBRARY)
        except OSError:
            raise NoDriverError(
                f"{LIBRARY}: not found, so this machine has no NVIDIA driver. "
                "Install it, or, in a container, start it with the NVIDIA runtime."
            ) from None

    def has(self, name: str) -> bool:
        """Return whether there is a function of that name."""
        return hasattr(self._functions, name)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that returns a CUresult."""
        status = self._functions[name](*arguments)
        if status == _NOT_INITIALIZED:
            raise DriverError(
                f"{name}: this process was forked after its parent had used the GPU, and cannot "
                "use it. Start it with multiprocessing's 'spawn'."
            )
        if status != 0:
            raise DriverError(
                f"the NVIDIA driver does not work: {name}: {self._describe(status)}. "
                "See nvidia-smi (on Jetson: tegrastats); restart the machine after an update of "
                "the driver."
            )

    def _describe(self, status: int) -> str:
        text = ctypes.c_char_p()
        known = self._functions["cuGetErrorName"](status, ctypes.byref(text)) == 0
        return text.value.decode() if known and text.value else f"error {status}"


def _gpu(library: _Library, index: int) -> Gpu:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    library.call("cuDeviceGet", ctypes.byref(device), index)
    library.call("cuDeviceGetName", name, _NAME_BYTES, device)
    library.call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    library.call("cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    library.call("cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), f"sm_{major.value}{minor.value}", memory.value)
