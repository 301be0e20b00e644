"""Driver, CUDA, TensorRT and the Python libraries that reach them, whole and broken."""

import pytest

from runtime.doctor_gpu import (
    check_cuda,
    check_cuda_bindings,
    check_driver,
    check_nvrtc,
    check_pycuda,
    check_tensorrt,
    check_tensorrt_rtx,
)
from runtime.doctor_system import System
from tests.runtime.fake_machine import FakeMachine
from tests.tensorrt_double.wheels import bindings

MISMATCHED = """
import ctypes
ctypes.CDLL("{library}")
__version__ = "10.3.0"
class Logger:
    ERROR = 1
    def __init__(self, severity): pass
class Runtime:
    def __init__(self, logger): pass
"""
BINDINGS = """
def cuDriverGetVersion():
    {body}
"""


@pytest.fixture
def machine(tmp_path):
    return FakeMachine(tmp_path)


@pytest.fixture
def pc(machine):
    """A PC with a working driver for CUDA 12.6."""
    machine.driver()
    return machine


@pytest.fixture
def jetson(machine):
    machine.jetson()
    machine.driver(name="Orin", major=8, minor=7)
    return machine


def assert_is(finding, status, found="", cause="", fix=""):
    assert finding.status == status, finding
    assert found in finding.found
    assert cause in (finding.cause or "")
    assert fix in (finding.fix or "")
    assert (finding.status in ("warning", "problem")) == (finding.fix is not None), finding


def gpu_of_a_pc(machine):
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.file("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")


def test_a_machine_without_a_gpu_lacks_nothing(machine):
    """NVIDIA also makes what is no GPU, as network cards."""
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.file("sys/bus/pci/devices/0000:01:00.0/class", "0x020000\n")
    examination = machine.examination("driver", "nvrtc")
    checks = (check_driver, check_cuda, check_nvrtc, check_tensorrt, check_pycuda)
    for check in (*checks, check_cuda_bindings):
        assert_is(check(examination), "absent")
    assert list(check_tensorrt_rtx(examination)) == []


def test_a_working_driver_tells_its_gpus(pc):
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n"
    pc.file("proc/driver/nvidia/version", text)
    finding = check_driver(pc.examination("driver"))
    assert_is(finding, "ok", "550.54.14, up to CUDA 12.6: NVIDIA RTX A2000 (sm_86, 8.0 GiB)")
    assert finding.facts["gpus"][0]["architecture"] == "sm_86"


def test_the_open_kernel_module_is_read_too(pc):
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n"
    pc.file("proc/driver/nvidia/version", text)
    assert check_driver(pc.examination("driver")).facts["version"] == "540.4.0"


def test_a_driver_that_is_too_old_is_a_problem(machine):
    machine.driver(version=11040)
    finding = check_driver(machine.examination("driver"))
    assert_is(finding, "problem", "up to CUDA 11.4", "CUDA 12 is the oldest", "JetPack 6")


def test_a_gpu_without_a_driver_is_a_warning(machine):
    gpu_of_a_pc(machine)
    assert_is(check_driver(machine.examination("driver")), "warning", fix="Install the driver")


def test_a_container_without_the_runtime_is_told(machine):
    gpu_of_a_pc(machine)
    machine.file(".dockerenv")
    finding = check_driver(machine.examination("driver"))
    assert_is(finding, "problem", cause="without the NVIDIA runtime", fix="--gpus all")
    machine.jetson()
    assert "--runtime nvidia" in check_driver(machine.examination("driver")).fix


@pytest.mark.parametrize("jetson", [True, False])
def test_a_driver_whose_library_is_not_found_is_a_problem(machine, jetson):
    machine.file("proc/driver/nvidia/version", "Kernel Module  550.54.14\n")
    if jetson:
        machine.jetson()
    finding = check_driver(machine.examination("driver"))
    assert_is(finding, "problem", "library is missing", fix="LD_LIBRARY_PATH")


@pytest.mark.parametrize(
    ("status", "error", "fix"),
    [
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "Restart"),
        (999, "CUDA_ERROR_UNKNOWN", "nvidia-modprobe"),
        (100, "CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"),
        (2, "CUDA_ERROR_OUT_OF_MEMORY", "dmesg"),
    ],
)
def test_a_driver_that_does_not_start_is_a_problem(machine, status, error, fix):
    machine.driver(status=status, error=error)
    assert_is(check_driver(machine.examination("driver")), "problem", "does not work", fix=fix)


def test_a_driver_that_crashes_is_a_problem(machine):
    machine.library("libcuda.so.1", "int cuDriverGetVersion(int *v) { return *(volatile int *)0; }")
    finding = check_driver(machine.examination("driver"))
    assert_is(finding, "problem", cause="crashed (SIGSEGV)")


def test_a_driver_without_gpus_is_a_problem(machine):
    machine.driver(gpus=0)
    finding = check_driver(machine.examination("driver"))
    assert_is(finding, "problem", cause="sees no GPU")


@pytest.mark.parametrize(("number", "status"), [(12060, "ok"), (11080, "ok"), (13000, "warning")])
def test_a_toolkit_newer_than_the_driver_is_a_warning(pc, number, status):
    pc.file("usr/local/cuda/include/cuda.h", f"/* */\n#define CUDA_VERSION {number}\n")
    finding = check_cuda(pc.examination("driver"))
    assert_is(finding, status, f"toolkit {number // 1000}.{number % 1000 // 10}")


FOUND = "from types import SimpleNamespace; return SimpleNamespace(version=(12, 6), path='/x')"
MISSING = "raise LookupError('NVRTC: expected 12. Install it: apt install it')"


@pytest.mark.parametrize(
    ("find", "shipped", "status", "found", "fix"),
    [
        (FOUND, [], "ok", "12.6 (/x)", ""),
        (MISSING, ["gate"], "problem", "none that fits", "apt install it"),
        (MISSING, ["gate", "gather"], "absent", "not needed", ""),
        ("raise LookupError('NVRTC: too old')", [], "problem", "none that fits", "newer driver"),
    ],
)
def test_a_compiler_is_needed_unless_all_kernels_are_shipped(pc, find, shipped, status, found, fix):
    folder = pc.package("kernels", "")
    target = "from collections import namedtuple\nTarget = namedtuple('Target', 'sm cuda')\n"
    (folder / "nvrtc.py").write_text(f"{target}def find(target): {find}")
    modules = "def module_names(): return ('gate', 'gather')\ndef load_source(name): return name"
    (folder / "sources.py").write_text(modules)
    has = f"def find_prebuilt(folder, source, target): return source in {shipped}"
    (folder / "prebuilt.py").write_text(f"SHIPPED = ''\n{has}")
    assert_is(check_nvrtc(pc.examination("driver", "nvrtc")), status, found, "", fix)


def test_the_compiler_is_looked_for_by_our_own_code(pc):
    """Whatever this machine has; what matters is that the question can be asked."""
    finding = check_nvrtc(pc.examination("driver", "nvrtc", import_path=System().import_path))
    assert finding.found != "cannot be looked for", finding


def test_tensorrt_that_starts_is_fine(pc):
    pc.tensorrt("10.3.0")
    assert_is(check_tensorrt(pc.examination("driver", "tensorrt")), "ok", "10.3.0")


def test_tensorrt_that_is_there_and_does_not_start_is_a_problem(pc):
    pc.tensorrt(start="raise TypeError('factory function returned nullptr')")
    finding = check_tensorrt(pc.examination("driver", "tensorrt"))
    assert_is(finding, "problem", cause="returned nullptr", fix="force-reinstall tensorrt")


def test_tensorrt_that_does_not_start_without_a_gpu_is_idle(machine):
    machine.tensorrt(start="raise TypeError('factory function returned nullptr')")
    finding = check_tensorrt(machine.examination("driver", "tensorrt"))
    assert_is(finding, "ok", "idle without a GPU")


def test_tensorrt_without_its_library_is_a_problem(pc, machine):
    pc.package("tensorrt", "raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    finding = check_tensorrt(pc.examination("driver", "tensorrt"))
    assert_is(finding, "problem", "does not import", "libnvinfer.so.10", "reinstall tensorrt")
    machine.jetson()
    finding = check_tensorrt(machine.examination("driver", "tensorrt"))
    assert_is(finding, "problem", fix="sudo apt install --reinstall")


@pytest.mark.parametrize(("number", "status"), [(100300, "ok"), (101600, "problem")])
def test_a_library_of_another_version_is_a_problem(pc, number, status):
    library = pc.library("libnvinfer.so.10", f"int getInferLibVersion(void) {{ return {number}; }}")
    pc.package("tensorrt", MISMATCHED.format(library=library))
    finding = check_tensorrt(pc.examination("driver", "tensorrt"))
    assert_is(finding, status, str(library), "" if status == "ok" else "it loads is 10.16.0")


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0.106"])
@pytest.mark.parametrize("libraries", [True, False])
def test_the_real_bindings_over_libraries_that_are_stubs_or_missing(pc, version, libraries):
    """As far as a machine without TensorRT can show it: the real classes, over empty functions."""
    real = bindings(version)
    pc.package(
        "tensorrt", "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__"
    )
    environ = dict(pc.system().environ)
    if libraries:
        environ["LD_LIBRARY_PATH"] += f":{real / 'libraries'}"
    path = (str(pc.site), str(real), *System().import_path)
    finding = check_tensorrt(
        pc.examination("driver", "tensorrt", environ=environ, import_path=path)
    )
    if libraries:
        assert_is(finding, "problem", version, "factory function returned nullptr")
        assert f"{real}/libraries/libnvinfer.so" in finding.facts["library"]
    else:
        assert_is(finding, "problem", "does not import", "its library libnv")


def test_version_8_counts_its_library_in_thousands(pc):
    library = pc.library("libnvinfer.so.8", "int getInferLibVersion(void) { return 8601; }")
    pc.package("tensorrt", MISMATCHED.replace("10.3.0", "8.6.1").format(library=library))
    assert_is(check_tensorrt(pc.examination("driver", "tensorrt")), "ok", "8.6.1")


@pytest.mark.parametrize(
    ("version", "status"), [("8.5.2.2", "problem"), ("8.6.1", "ok"), ("11.4.0.106", "ok")]
)
def test_tensorrt_that_is_too_old_is_a_problem(pc, version, status):
    pc.tensorrt(version)
    assert_is(check_tensorrt(pc.examination("driver", "tensorrt")), status, version)


@pytest.mark.parametrize(
    ("version", "status"), [("10.16.2", "ok"), ("11.4.0.106", "problem"), ("11.4.1.5", "ok")]
)
def test_tensorrt_11_supports_jetpack_from_11_4_1_on(jetson, version, status):
    jetson.tensorrt(version)
    assert_is(check_tensorrt(jetson.examination("driver", "tensorrt")), status, version)


def test_a_pc_with_a_gpu_is_told_which_tensorrt_to_install(pc):
    finding = check_tensorrt(pc.examination("driver"))
    assert_is(finding, "warning", fix="pip install tensorrt-cu12")


def test_a_jetson_should_have_tensorrt(jetson):
    finding = check_tensorrt(jetson.examination("driver"))
    assert_is(finding, "problem", "not installed", fix="apt install python3-libnvinfer")


def test_tensorrt_that_an_environment_hides_is_a_problem_with_the_way_out(jetson, tmp_path):
    (jetson.root / "usr/lib/python3.11/dist-packages/tensorrt").mkdir(parents=True)
    environment = tmp_path / "venv"
    finding = check_tensorrt(jetson.examination("driver", prefix=environment))
    assert_is(finding, "problem", "hidden", fix=f"{environment}/pyvenv.cfg")


def test_tensorrt_rtx_is_told_where_it_is(pc):
    pc.tensorrt("1.7.1.116", name="tensorrt_rtx")
    (finding,) = check_tensorrt_rtx(pc.examination("driver", "tensorrt_rtx"))
    assert_is(finding, "ok", "1.7.1.116")


def test_pycuda_that_loads_the_driver_is_fine(pc):
    pc.package("pycuda", "VERSION_TEXT = '2026.1'")
    pc.package("pycuda.driver", "")
    assert_is(check_pycuda(pc.examination("driver", "pycuda")), "ok", "2026.1")


def test_pycuda_built_against_a_stub_is_a_problem(pc):
    pc.package("pycuda", "VERSION_TEXT = '2026.1'")
    pc.package(
        "pycuda.driver", "raise ImportError('_driver.so: undefined symbol: cuArrayCreate_v2')"
    )
    finding = check_pycuda(pc.examination("driver", "pycuda"))
    cause = "built without the NVIDIA driver's library"
    assert_is(finding, "problem", "does not import", cause, "--no-cache-dir pycuda")


def test_pycuda_without_a_gpu_is_idle(machine):
    machine.package("pycuda", "VERSION_TEXT = '2026.1'")
    machine.package("pycuda.driver", "raise ImportError('libcuda.so.1: cannot open')")
    assert_is(check_pycuda(machine.examination("driver", "pycuda")), "ok", "idle without a GPU")


def test_pycuda_that_crashes_is_a_problem(machine):
    machine.package("pycuda", "import os; os.abort()")
    finding = check_pycuda(machine.examination("driver", "pycuda"))
    assert_is(finding, "problem", cause="crashed (SIGABRT)")


def test_a_gpu_without_pycuda_is_told_how_to_build_it(pc):
    finding = check_pycuda(pc.examination("driver"))
    assert_is(finding, "warning", "not installed", fix="PATH=/usr/local/cuda/bin:$PATH")


@pytest.mark.parametrize(
    ("version", "body", "status", "cause"),
    [
        ("12.9.0", "return (0, 12060)", "ok", ""),
        ("13.5.0", "return (0, 12060)", "problem", "made for CUDA 13, the driver runs CUDA 12"),
        ("12.9.0", "raise RuntimeError('no libcuda')", "problem", "no libcuda"),
    ],
)
def test_cuda_bindings_must_fit_the_driver(pc, version, body, status, cause):
    pc.package("cuda.bindings.driver", BINDINGS.format(body=body))
    pc.distribution("cuda-bindings", version)
    finding = check_cuda_bindings(pc.examination("driver", "cuda_bindings"))
    fix = "" if status == "ok" else "'cuda-bindings==12.*'"
    assert_is(finding, status, version, cause, fix)


def test_cuda_bindings_without_a_gpu_are_idle(machine):
    machine.package("cuda.bindings.driver", BINDINGS.format(body="raise RuntimeError('none')"))
    machine.distribution("cuda-bindings", "13.5.0")
    finding = check_cuda_bindings(machine.examination("driver", "cuda_bindings"))
    assert_is(finding, "ok", "13.5.0; idle without a GPU")


def test_a_gpu_without_cuda_bindings_lacks_graphs(pc):
    finding = check_cuda_bindings(pc.examination("driver"))
    assert_is(finding, "warning", cause="CUDA graphs", fix="'cuda-bindings==12.*'")
