"""The GPU: its driver, CUDA, TensorRT, and the libraries that reach them from Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kernels.nvrtc import OLDEST_MAJOR
from runtime.doctor_checks import Examination, Finding, explain
from runtime.doctor_software import hidden_packages, show_system_packages
from runtime.doctor_system import Answer

OLDEST_TENSORRT = (8, 6)
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

# In the driver's error: what it means, and the way out.
_DRIVER_ERRORS: tuple[tuple[str, str, str], ...] = (
    (
        "SYSTEM_DRIVER_MISMATCH",
        "the driver's library and its kernel module are of different versions",
        "Restart the machine",
    ),
    (
        "CUDA_ERROR_UNKNOWN",
        "the kernel module is not loaded, or was suspended",
        "sudo nvidia-modprobe -u, or restart the machine",
    ),
    (
        "CUDA_ERROR_NO_DEVICE",
        "the driver runs and sees no GPU",
        "Look at CUDA_VISIBLE_DEVICES; in a container start it with the GPU (docker: --gpus all, "
        "on Jetson --runtime nvidia)",
    ),
)


def check_driver(examination: Examination) -> Finding:
    """Tell driver and GPUs; a driver that is there must work."""
    answer = examination.answers["driver"]
    if answer.works:
        gpus = answer.facts["gpus"]
        version = _kernel_module(examination)
        facts = {**answer.facts, "version": version}
        named = ", ".join(
            f"{gpu['name']} ({gpu['architecture']}, {gpu['memory_bytes'] / 2**30:.1f} GiB)"
            for gpu in gpus
        )
        text = f"{f'{version}, ' if version else ''}up to CUDA {answer.facts['cuda']}: {named}"
        if gpus and examination.driver_cuda[0] < OLDEST_MAJOR:
            cause = f"CUDA {OLDEST_MAJOR} is the oldest that works"
            fix = "Install a newer driver; on a Jetson, JetPack 6 or newer"
            return Finding("driver", "problem", text, cause, fix, facts)
        if gpus:
            return Finding("driver", "ok", text, facts=facts)
    return _driver_problem(examination, answer.error or "CUDA_ERROR_NO_DEVICE: no GPU")


def _driver_problem(examination: Examination, error: str) -> Finding:
    hardware, loaded = has_nvidia_hardware(examination), _kernel_module(examination)
    absent = "no NVIDIA driver" in error
    if not hardware and absent:
        return Finding("driver", "absent", "no NVIDIA GPU; cascades run on the CPU")
    if absent and examination.in_container:
        how = "--runtime nvidia" if examination.is_jetson else "--gpus all"
        cause = "this container was started without the NVIDIA runtime"
        return Finding("driver", "problem", "not in this container", cause, f"docker run {how} ...")
    if absent and not loaded and not examination.is_jetson:
        cause = "this machine has an NVIDIA GPU, but no driver for it; cascades run on the CPU"
        fix = "Install the driver: sudo ubuntu-drivers install, or see nvidia.com/drivers"
        return Finding("driver", "warning", "not installed", cause, fix)
    if absent:
        cause = "libcuda.so.1 is not where the loader looks"
        folder = "/usr/lib/aarch64-linux-gnu/nvidia" if examination.is_jetson else "its folder"
        fix = f"export LD_LIBRARY_PATH={folder}:$LD_LIBRARY_PATH, or install the driver again"
        return Finding("driver", "problem", "its library is missing", cause, fix)
    for pattern, cause, fix in _DRIVER_ERRORS:
        if pattern in error:
            return Finding("driver", "problem", f"does not work ({pattern})", cause, fix)
    fix = "See nvidia-smi and dmesg; restart the machine"
    return Finding("driver", "problem", "does not work", error.strip().splitlines()[0], fix)


def has_nvidia_hardware(examination: Examination) -> bool:
    """Return whether a GPU of NVIDIA is there, whatever the driver says."""
    system = examination.system
    if examination.is_jetson or _kernel_module(examination):
        return True
    for vendor in system.find("sys/bus/pci/devices/*/vendor"):
        kind = system.text(vendor.with_name("class")) or ""
        if (system.text(vendor) or "").strip() == _NVIDIA and kind.startswith(_DISPLAY):
            return True
    return False


def _kernel_module(examination: Examination) -> str | None:
    """Return the version of the driver's kernel module."""
    text = examination.system.text("proc/driver/nvidia/version") or ""
    found = re.search(r"Kernel Module.*?\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else None


def check_cuda(examination: Examination) -> Finding:
    """Tell the CUDA toolkit; only building pycuda needs one."""
    found = _toolkit(examination)
    if found is None:
        return Finding("cuda", "absent", "no toolkit; only building pycuda needs one")
    folder, version = found
    facts = {"version": version, "folder": str(folder)}
    text = f"toolkit {version} in {folder}"
    driver = examination.driver_cuda
    if driver != (0, 0) and int(version.partition(".")[0]) > driver[0]:
        return Finding(
            "cuda",
            "warning",
            text,
            cause=f"the driver runs CUDA up to {driver[0]}.{driver[1]}, not what this one builds",
            fix=f"Install a toolkit of CUDA {driver[0]}, or a newer driver",
            facts=facts,
        )
    return Finding("cuda", "ok", text, facts=facts)


def _toolkit(examination: Examination) -> tuple[Path, str] | None:
    """Return folder and version of the CUDA toolkit, by its header: what pycuda is built with."""
    for folder in examination.system.find("usr/local/cuda*"):
        header = examination.system.text(folder / "include" / "cuda.h") or ""
        found = re.search(r"#define CUDA_VERSION (\d+)", header)
        if found:
            major, rest = divmod(int(found.group(1)), 1000)
            return folder, f"{major}.{rest // 10}"
    return None


def check_nvrtc(examination: Examination) -> Finding:
    """Tell the run-time compiler, which GPUs need that a release has no compiled kernels for."""
    answer = examination.answers["nvrtc"]
    if not examination.has_gpu:
        return Finding("nvrtc", "absent", "not needed without a GPU")
    if not answer.works:
        reason = explain(answer.error, pip=examination.pip, package="tinysaver-runtime")
        return Finding("nvrtc", "problem", "cannot be looked for", reason.cause, reason.fix)
    facts = answer.facts
    if facts["missing_error"] is None:
        return Finding("nvrtc", "ok", f"{facts['version']} ({facts['file']})", facts=facts)
    if facts["shipped"]:
        text = "none, and not needed: this release has kernels compiled for this GPU"
        return Finding("nvrtc", "absent", text, facts=facts)
    cause, _, fix = facts["missing_error"].removeprefix("NVRTC: ").partition("Install it: ")
    fix = fix or "Install a newer driver"
    return Finding("nvrtc", "problem", "none that fits", cause.strip(), fix, facts)


def check_tensorrt(examination: Examination) -> Finding:
    """Tell TensorRT's version, and whether it starts."""
    answer = examination.answers["tensorrt"]
    if answer.state != "missing":
        return _tensorrt_found(examination, "tensorrt", answer)
    if "tensorrt" in hidden_packages(examination):
        cause = "JetPack has it for the system's Python, which this environment does not see"
        fix = show_system_packages(examination)
        return Finding("tensorrt", "problem", "hidden from this environment", cause, fix)
    if examination.is_jetson:
        cause = "JetPack brings it, but it is not installed for this Python"
        fix = "sudo apt install python3-libnvinfer"
        return Finding("tensorrt", "problem", "not installed", cause, fix)
    if not examination.has_gpu:
        return Finding("tensorrt", "absent", "not installed; not needed without a GPU")
    fix = f"{examination.pip} tensorrt-cu{examination.driver_cuda[0]}"
    return Finding("tensorrt", "warning", "not installed", "the GPU is not used without it", fix)


def check_tensorrt_rtx(examination: Examination) -> Iterator[Finding]:
    """Tell TensorRT-RTX where it is installed; nobody needs it."""
    answer = examination.answers["tensorrt_rtx"]
    if answer.state != "missing":
        yield _tensorrt_found(examination, "tensorrt_rtx", answer)


def _tensorrt_found(examination: Examination, name: str, answer: Answer) -> Finding:
    if not answer.works:
        return _tensorrt_broken(examination, name, answer.error)
    facts = answer.facts
    version, library = str(facts["version"]), facts.get("library_version")
    text = version if facts.get("library") is None else f"{version} ({facts['library']})"
    if name == "tensorrt" and _numbers(version)[:2] < OLDEST_TENSORRT:
        fix = "On Jetson flash JetPack 6; elsewhere: pip install --upgrade tensorrt"
        return Finding(name, "problem", text, "8.6 is the oldest that works", fix, facts)
    if library and _numbers(library) != _numbers(version)[:3]:
        cause = f"the Python package is {version}, the library it loads is {library}"
        fix = _reinstall(examination, name)
        return Finding(name, "problem", text, cause, fix, facts)
    if facts["runtime_error"] and examination.has_gpu:
        cause = f"it is installed and does not start: {facts['runtime_error']}"
        fix = f"See the line 'driver' above, then: {_reinstall(examination, name)}"
        return Finding(name, "problem", text, cause, fix, facts)
    unsupported = name == "tensorrt" and examination.is_jetson
    if unsupported and (11,) <= _numbers(version)[:3] < (11, 4, 1):
        cause = "TensorRT 11.0 to 11.4.0 do not support JetPack"
        fix = "Use the TensorRT of JetPack: sudo apt install python3-libnvinfer"
        return Finding(name, "problem", text, cause, fix, facts)
    idle = "" if examination.has_gpu else "; idle without a GPU"
    return Finding(name, "ok", text + idle, facts=facts)


def _tensorrt_broken(examination: Examination, name: str, error: str) -> Finding:
    library = re.search(r"(lib\w+\.so[.\d]*): cannot open", error)
    if library is None:
        reason = explain(error, pip=examination.pip, package=name.replace("_", "-"))
        return Finding(name, "problem", "does not import", reason.cause, reason.fix)
    cause = f"its library {library.group(1)} is missing, or of another version"
    return Finding(name, "problem", "does not import", cause, _reinstall(examination, name))


def _reinstall(examination: Examination, name: str) -> str:
    if examination.is_jetson:
        return "sudo apt install --reinstall libnvinfer-bin python3-libnvinfer"
    return f"{examination.pip} --force-reinstall {name.replace('_', '-')}"


def check_pycuda(examination: Examination) -> Finding:
    """Tell pycuda's version, and whether it loads the driver."""
    answer = examination.answers["pycuda"]
    if answer.works and (answer.facts["driver_error"] is None or not examination.has_gpu):
        idle = "" if examination.has_gpu else "; idle without a GPU"
        return Finding("pycuda", "ok", f"{answer.facts['version']}{idle}", facts=answer.facts)
    path = "PATH=/usr/local/cuda/bin:$PATH"
    if answer.state == "missing":
        if not examination.has_gpu:
            return Finding("pycuda", "absent", "not installed; not needed without a GPU")
        fix = f"{path} {examination.pip} pycuda  # it is compiled; needs nvcc and g++"
        return Finding("pycuda", "warning", "not installed", "the GPU is not used without it", fix)
    reason = explain(
        answer.error or str(answer.facts["driver_error"]),
        pip=f"{path} {examination.pip}",
        package="pycuda",
    )
    return Finding("pycuda", "problem", "does not import", reason.cause, reason.fix, answer.facts)


def check_cuda_bindings(examination: Examination) -> Finding:
    """Tell the version of cuda-bindings, and whether the driver is new enough for it."""
    answer, cuda = examination.answers["cuda_bindings"], examination.driver_cuda[0]
    wanted = f"{examination.pip} 'cuda-bindings=={cuda}.*'"
    if answer.state == "missing":
        if not examination.has_gpu:
            return Finding("cuda_bindings", "absent", "not installed; not needed without a GPU")
        cause = "CUDA graphs are not used without it"
        return Finding("cuda_bindings", "warning", "not installed", cause, wanted)
    if answer.state == "broken":
        reason = explain(answer.error, pip=examination.pip, package="cuda-bindings")
        return Finding("cuda_bindings", "problem", "does not import", reason.cause, reason.fix)
    version = str(answer.facts["version"])
    if not examination.has_gpu:
        text = f"{version}; idle without a GPU"
        return Finding("cuda_bindings", "ok", text, facts=answer.facts)
    if _numbers(version)[0] > cuda:
        cause = f"it is made for CUDA {version.partition('.')[0]}, the driver runs CUDA {cuda}"
        return Finding("cuda_bindings", "problem", version, cause, wanted, answer.facts)
    if answer.facts["driver_error"]:
        cause = str(answer.facts["driver_error"]).splitlines()[0]
        return Finding("cuda_bindings", "problem", version, cause, wanted, answer.facts)
    return Finding("cuda_bindings", "ok", version, facts=answer.facts)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
