"""NVRTC: which library is taken, what it makes of a source, and what is said when it cannot."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import nvrtc
from kernels.errors import CompileError, CompilerMissingError, KernelError
from kernels.nvrtc import Nvrtc, Target
from kernels.sources import Source

ROOT = Path(__file__).resolve().parents[2]
ORIN = Target("sm_87", (13, 0))

DOUBLE = Source(
    "double.cu",
    '#include "twice.cuh"\n'
    'extern "C" __global__ void double_it(float* x) { x[threadIdx.x] = twice(x[threadIdx.x]); }\n',
    (("twice.cuh", "__device__ float twice(float x) { return 2.0f * x; }\n"),),
)


def wheel_folder(distribution: str) -> Path:
    """Return the folder of an installed wheel's libraries."""
    files = importlib.metadata.files(distribution) or []
    (library,) = (item for item in files if item.name.startswith("libnvrtc.so."))
    return Path(str(library.locate())).resolve().parent


@pytest.fixture(scope="module")
def newest() -> Nvrtc:
    return nvrtc.find(ORIN, [wheel_folder("nvidia-cuda-nvrtc")])


def test_a_source_with_a_header_becomes_an_elf_file_without_an_include_path(newest):
    cubin = newest.compile(DOUBLE, "sm_87").cubin
    assert cubin.startswith(b"\x7fELF")
    assert b"double_it" in cubin


def test_compiling_twice_gives_the_same_bytes_and_another_architecture_others(newest):
    first = newest.compile(DOUBLE, "sm_87")
    assert newest.compile(DOUBLE, "sm_87") == first
    assert newest.compile(DOUBLE, "sm_90").cubin != first.cubin


def test_a_source_without_headers_compiles(newest):
    source = Source("plain.cu", 'extern "C" __global__ void plain() {}\n')
    assert b"plain" in newest.compile(source, "sm_75").cubin


def test_the_log_of_a_success_holds_what_was_asked_for(newest):
    options = (*nvrtc.OPTIONS, "--ptxas-options=-v")
    assert "Used " in newest.compile(DOUBLE, "sm_87", options).log
    assert newest.compile(DOUBLE, "sm_87").log == ""


def test_a_lambda_needs_no_mark(newest):
    text = 'extern "C" __global__ void f(int* x) { [&](auto y) { *x = y; }(3); }\n'
    newest.compile(Source("lambda.cu", text), "sm_87")


def test_a_refused_source_shows_log_line_architecture_and_compiler(newest):
    broken = DOUBLE._replace(text=DOUBLE.text.replace("twice(", "thrice("))
    with pytest.raises(CompileError) as caught:
        newest.compile(broken, "sm_87")
    message = str(caught.value)
    assert message.startswith("double.cu: NVRTC 13.")
    assert "cannot compile it for sm_87: NVRTC_ERROR_COMPILATION" in message
    assert 'double.cu(2): error: identifier "thrice" is undefined' in message
    assert newest.path in message


def test_a_missing_header_is_named(newest):
    with pytest.raises(CompileError, match=r'cannot open source file "twice.cuh"'):
        newest.compile(DOUBLE._replace(headers=()), "sm_87")


def test_an_unknown_architecture_is_named_with_the_compilers_words(newest):
    with pytest.raises(CompileError, match=r"for sm_72: NVRTC_ERROR_INVALID_OPTION\n.*invalid val"):
        newest.compile(DOUBLE, "sm_72")


def test_an_architecture_unknown_to_the_library_names_the_package():
    folder = wheel_folder("nvidia-cuda-nvrtc")
    with pytest.raises(CompilerMissingError) as caught:
        nvrtc.find(Target("sm_72", (13, 0)), [folder])
    message = str(caught.value)
    assert message.startswith("NVRTC: expected one of CUDA 13 or older (the driver has 13.0)")
    assert "does not know sm_72." in message
    assert "apt install cuda-nvrtc-13-0 " in message
    assert "pip install 'nvidia-cuda-nvrtc==13.*'" in message


def test_a_library_newer_than_the_driver_is_not_taken():
    folder = wheel_folder("nvidia-cuda-nvrtc")
    with pytest.raises(CompilerMissingError) as caught:
        nvrtc.find(Target("sm_87", (12, 6)), [folder])
    message = str(caught.value)
    assert "None was found." in message
    assert message.endswith(
        "Install it: sudo apt install cuda-nvrtc-12-6 (JetPack, CUDA toolkit), "
        "or pip install nvidia-cuda-nvrtc-cu12"
    )


@pytest.mark.slow  # the wheel of NVRTC 12 comes with scripts/test --all
@pytest.mark.parametrize(
    ("architecture", "driver", "major"),
    [
        ("sm_87", (12, 2), 12),
        ("sm_87", (13, 0), 13),
        ("sm_87", (14, 1), 13),
        ("sm_110", (13, 2), 13),
        ("sm_70", (13, 0), 12),  # NVRTC 13 has dropped it
    ],
)
def test_the_newest_library_that_suits_driver_and_architecture_is_taken(
    architecture, driver, major
):
    folders = [wheel_folder("nvidia-cuda-nvrtc-cu12"), wheel_folder("nvidia-cuda-nvrtc")]
    assert nvrtc.find(Target(architecture, driver), folders).version[0] == major


@pytest.mark.slow  # the wheel of NVRTC 12 comes with scripts/test --all
def test_a_lambda_needs_no_mark_for_nvrtc_12():
    text = 'extern "C" __global__ void f(int* x) { [&](auto y) { *x = y; }(3); }\n'
    compiler = nvrtc.find(Target("sm_87", (12, 9)), [wheel_folder("nvidia-cuda-nvrtc-cu12")])
    compiler.compile(Source("lambda.cu", text), "sm_87")
    with pytest.raises(CompileError, match="without execution space annotations"):
        compiler.compile(Source("lambda.cu", text), "sm_87", ())


def test_by_default_the_wheel_of_this_environment_or_the_systems_library_is_found():
    assert "sm_87" in nvrtc.find(ORIN).architectures


@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_a_file_that_is_no_library_is_passed_over_and_reported(tmp_path, content):
    (tmp_path / "libnvrtc.so.13").write_bytes(content)
    with pytest.raises(CompilerMissingError, match=r"libnvrtc.so.13: not a usable NVRTC"):
        nvrtc.find(ORIN, [tmp_path])
    assert nvrtc.find(ORIN, [tmp_path, wheel_folder("nvidia-cuda-nvrtc")]).version[0] == 13


def test_another_library_is_not_taken_for_nvrtc():
    with pytest.raises(KernelError, match=r"libc.so.6: not a usable NVRTC .*nvrtcVersion"):
        Nvrtc("libc.so.6")


WITHOUT_RUNPATH = """
import sys
from kernels.nvrtc import Nvrtc
from kernels.sources import Source
print(len(Nvrtc(sys.argv[1]).compile(Source("a.cu", "__global__ void a() {}"), "sm_87").cubin))
"""


@pytest.mark.slow  # copies 140 MB
def test_a_wheel_that_does_not_say_where_its_builtins_are_works(tmp_path):
    folder = wheel_folder("nvidia-cuda-nvrtc")
    for path in folder.glob("libnvrtc-builtins.so.*"):
        (tmp_path / path.name).symlink_to(path)
    copy = tmp_path / "libnvrtc.so.13"
    copy.write_bytes((folder / copy.name).read_bytes().replace(b"$ORIGIN", b"$NOWHER"))
    command = [sys.executable, "-c", WITHOUT_RUNPATH, copy]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_driver_too_old_for_any_is_told_so():
    with pytest.raises(CompilerMissingError, match=r"CUDA 12 or newer, got CUDA 11.4. .*JetPack 6"):
        nvrtc.find(Target("sm_72", (11, 4)))


def test_a_target_is_made_of_the_numbers_that_the_driver_reports():
    assert Target.of((8, 7), 12060) == Target("sm_87", (12, 6))
    assert Target.of((12, 1), 13000) == Target("sm_121", (13, 0))
