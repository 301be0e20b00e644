"""What every kernel may take of a GPU, for every architecture and without one."""

from __future__ import annotations

import re
import subprocess
from collections import Counter

import pytest

from kernels.errors import CompileError
from kernels.prebuilt import ARCHITECTURES
from kernels.sources import Source, module_names
from tests.budgets import builds, tables
from tests.budgets.builds import Build, Job
from tests.budgets.limits import BUDGETS, Budget, budget_of, violations
from tests.budgets.occupancy import MULTIPROCESSORS, resident_blocks
from tests.budgets.sass import count, disassemble, tool
from tests.budgets.usage import Usage, parse_log
from tests.cuda_cpu.build import COMPILER, cuda_headers, has_compiler

WANTED = {
    12: (75, 80, 86, 87, 89, 90, 100, 120),
    13: (75, 80, 86, 87, 89, 90, 100, 110, 120, 121),
}
TARGETS = [(cuda, f"sm_{number}") for cuda, numbers in WANTED.items() for number in numbers]
QUICK = (13, "sm_87")
REFRESH = "docs/kernels.md is out of date; run: python -m tests.budgets"


@pytest.fixture(scope="module")
def quick() -> list[Build]:
    """The kernels of one architecture, which scripts/test takes the time for."""
    cuda, architecture = QUICK
    return list(builds.build_all(builds.jobs(cuda, [architecture])))


@pytest.fixture(scope="module")
def everything() -> list[Build]:
    """The kernels of all architectures."""
    return list(builds.build_all(job for cuda in WANTED for job in builds.jobs(cuda)))


def over_budget(found: list[Build]) -> list[str]:
    return [
        f"CUDA {build.job.cuda} {build.job.architecture} {kernel}: {problem}"
        for build in found
        for kernel, usage in build.usage.items()
        for problem in violations(usage, build.opcodes[kernel], budget_of(kernel))
    ]


def test_the_architectures_of_the_project_are_those_that_are_built():
    built = {cuda: tuple(f"sm_{n}" for n in numbers) for cuda, numbers in WANTED.items()}
    assert built == ARCHITECTURES
    assert set(MULTIPROCESSORS) == {architecture for _, architecture in TARGETS}


def test_every_kernel_of_one_architecture_is_within_its_budget(quick):
    assert {build.job.module for build in quick} == set(module_names())
    assert over_budget(quick) == []


@pytest.mark.slow
@pytest.mark.parametrize(("cuda", "architecture"), TARGETS)
def test_every_kernel_is_within_its_budget(everything, cuda, architecture):
    found = [build for build in everything if build.job[:2] == (cuda, architecture)]
    assert {build.job.module for build in found} == set(module_names())
    assert {build.version[0] for build in found} == {cuda}
    assert over_budget(found) == []


@pytest.mark.slow
@pytest.mark.parametrize("cuda", WANTED)
def test_the_document_tells_what_was_compiled(everything, cuda):
    made = tables.resources([build for build in everything if build.job.cuda == cuda])
    written = tables.find(tables.DOCUMENT.read_text(encoding="utf-8"), f"resources-{cuda}")
    if made.splitlines()[0] == written.splitlines()[0]:
        assert written == made, REFRESH
    # Another NVRTC may take other registers, but not for other kernels.
    assert names(written) == names(made), REFRESH


def names(table: str) -> list[str]:
    return [line.split("|")[1] for line in table.splitlines()[1:]]


def test_the_document_states_the_budgets():
    written = tables.find(tables.DOCUMENT.read_text(encoding="utf-8"), "budgets")
    assert written == tables.budgets(), REFRESH


def test_every_budget_is_for_a_kernel_that_exists(quick):
    kernels = [kernel for build in quick for kernel in build.usage]
    for pattern in BUDGETS:
        assert any(re.fullmatch(pattern, kernel) for kernel in kernels), pattern


def test_disassembler_and_compiler_tell_of_the_same_kernels(quick):
    for build in quick:
        assert set(build.usage) == set(build.opcodes)
        for kernel, opcodes in build.opcodes.items():
            assert count(opcodes, "EXIT"), kernel


def test_cuobjdump_reports_the_registers_and_memory_that_the_compiler_did(quick, tmp_path):
    path = tmp_path / "module.cubin"
    pattern = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    for build in quick:
        path.write_bytes(build.cubin)
        command = (tool("cuobjdump"), "--dump-resource-usage", path)
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        reported = {name: tuple(map(int, numbers)) for name, *numbers in pattern.findall(text)}
        assert {
            name: (regs, stack, local) for name, (regs, stack, _, local) in reported.items()
        } == {name: (usage.registers, usage.stack, 0) for name, usage in build.usage.items()}


def toy(text: str, *options: str) -> tuple[Usage, Counter[str]]:
    """Compile a kernel ``toy`` and return what it takes."""
    cuda, architecture = QUICK
    job = Job(cuda, architecture, "toy")
    source = Source("toy.cu", f'extern "C" __global__ void toy({text}\n')
    built = builds.compile_source(source, job, builds.compiler(job), options=options)
    return built.usage["toy"], built.opcodes["toy"]


SCALE = "const float4* x, float4* y) { float4 v = x[threadIdx.x]; v.x *= 2; y[threadIdx.x] = v; }"
INDEXED = """const int* x, int* y, int n) {
  int kept[64];
  for (int k = 0; k < 64; ++k) kept[k] = x[k];
  for (int k = 0; k < n; ++k) kept[x[k]] += k;
  y[0] = kept[n];
}"""
MANY = """const float* x, float* y, int n) {
  float v[160];
#pragma unroll
  for (int k = 0; k < 160; ++k) v[k] = x[k * 32 + threadIdx.x];
  for (int round = 0; round < n; ++round) {
#pragma unroll
    for (int k = 0; k < 160; ++k) v[k] = v[k] * v[(k + 7) % 160] + x[round];
  }
#pragma unroll
  for (int k = 0; k < 160; ++k) y[k * 32 + threadIdx.x] = v[k];
}"""
SHARED = "int* x) { __shared__ int s[256]; s[threadIdx.x] = *x; __syncthreads(); *x = s[*x]; }"


def test_a_small_kernel_is_within_a_budget():
    assert violations(*toy(SCALE), Budget(16, 0, vector_loads=1)) == []


def test_a_kernel_that_spills_is_found():
    usage, opcodes = toy(MANY, "--maxrregcount=32")
    assert usage.spill_stores > 0
    found = "; ".join(violations(usage, opcodes, Budget(255, 0)))
    assert re.match(r"spills \d+ bytes, reloads \d+; \d+ bytes of local memory; \d+ instr", found)


def test_a_kernel_with_an_array_indexed_by_a_variable_is_found():
    usage, opcodes = toy(INDEXED)
    assert usage.spill_stores == 0
    found = "; ".join(violations(usage, opcodes, Budget(255, 0)))
    assert re.match(r"256 bytes of local memory; \d+ instructions that access local", found)


def test_a_kernel_with_too_many_registers_is_found():
    usage, opcodes = toy(MANY)
    assert violations(usage, opcodes, Budget(40, 0)) == [f"{usage.registers} registers, budget 40"]


def test_a_kernel_with_too_much_shared_memory_is_found():
    assert violations(*toy(SHARED), Budget(16, 1023)) == [
        "1024 bytes of shared memory, budget 1023"
    ]


def test_a_kernel_without_128_bit_loads_is_found():
    narrow = SCALE.replace("float4", "float2")
    assert violations(*toy(narrow), Budget(16, 0, vector_loads=1)) == [
        "0 128-bit loads, expected 1"
    ]


def test_a_kernel_without_a_budget_is_an_error():
    with pytest.raises(KeyError, match=r"toy has no budget in tests/budgets/limits\.py"):
        budget_of("toy")


def test_a_log_without_numbers_is_an_error():
    with pytest.raises(ValueError, match="k: ptxas does not tell its stack frame and registers"):
        parse_log("ptxas info : Compiling entry function 'k' for 'sm_87'\n")
    assert parse_log("") == {}


def test_a_source_that_fails_for_one_architecture_fails_here():
    text = "int* x) {\n#if __CUDA_ARCH__ == 870\n#error not here\n#endif\n}"
    with pytest.raises(CompileError, match=r"cannot compile it for sm_87: .*\n.*not here"):
        toy(text)


def test_what_cannot_be_disassembled_is_an_error(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        disassemble(b"not a cubin", tmp_path)


OCCUPANCY = """
#include <climits>
#include <cstdio>
#include <cstdlib>
#include "cuda_occupancy.h"
// capability, threads and shared memory of a multiprocessor, reserved shared memory; then kernels.
int main(int argc, char** argv) {
  cudaOccDeviceProp device;
  device.computeMajor = atoi(argv[1]) / 10;
  device.computeMinor = atoi(argv[1]) % 10;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = atoi(argv[2]);
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerMultiprocessor = device.sharedMemPerBlockOptin = atoi(argv[3]);
  device.sharedMemPerBlock = 48 * 1024;
  device.numSms = 1;
  device.reservedSharedMemPerBlock = atoi(argv[4]);
  for (int k = 5; k < argc; k += 3) {
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = atoi(argv[k]);
    kernel.sharedSizeBytes = atoi(argv[k + 1]);
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const int threads = atoi(argv[k + 2]);
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0))
      return 1;
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""
KERNELS = [
    (registers, shared, threads)
    for registers in (16, 32, 33, 40, 41, 48, 64, 65, 128)
    for shared in (0, 4, 256, 3664, 4096, 20_000)
    for threads in (32, 64, 96, 256, 1000)
    if registers * threads <= 65536
]


@pytest.mark.skipif(not has_compiler(), reason=f"{COMPILER} not found")
def test_occupancy_equals_that_of_nvidias_header(tmp_path):
    source, program = tmp_path / "occupancy.cc", tmp_path / "occupancy"
    source.write_text(OCCUPANCY)
    includes = [f"-I{folder}" for folder in cuda_headers()]
    subprocess.run([COMPILER, "-w", *includes, source, "-o", program], check=True)
    for architecture, limits in MULTIPROCESSORS.items():
        capability = architecture.removeprefix("sm_")
        device = (capability, limits.threads, limits.shared, limits.shared_reserved)
        arguments = [str(n) for n in (*device, *(n for kernel in KERNELS for n in kernel))]
        done = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
        expected = [int(line) for line in done.stdout.split()]
        found = [
            resident_blocks(architecture, registers=registers, shared=shared, threads=threads)
            for registers, shared, threads in KERNELS
        ]
        assert found == expected, architecture
