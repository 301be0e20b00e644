"""The table of planted bugs: the change, the kernel, who must see it, message and line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.kernels import gate_cases
from tests.kernels.dense_cases import Array, Plan, run_gather, run_scatter
from tests.kernels.every_kernel import LowGrid
from tests.kernels.gate_cases import Case, make_logits
from tests.kernels.machine import Machine
from tests.kernels.planted import Bug
from tests.kernels.preprocess_cases import Source, network, run_preprocess


def gate(*case: Any, **options: Any) -> Callable[[Machine], None]:
    return lambda machine: gate_cases.run(Case(*case, **options), machine)


def replayed_gate(machine: Machine) -> None:
    case = Case(70, 10)
    logits = case.values()
    arrays = gate_cases.upload(case, logits, machine)
    machine.run(*[gate_cases.launch(case, arrays)] * 3)
    gate_cases.check(case, logits, arrays, machine)


def exact_hits(machine: Machine) -> None:
    """At threshold 1 nothing is accepted, not even a row that is as sure as can be."""
    logits = np.full((20, 12), -np.inf, np.float32)
    logits[:, 5] = 3
    gate_cases.run(Case(20, 12, threshold=1.0, logits=logits), machine)


def leading_minus_infinity(machine: Machine) -> None:
    logits = make_logits(np.random.default_rng(0), 13, 131, "plain").astype(np.float32)
    logits[:, :130] = -np.inf
    gate_cases.run(Case(13, 131, threshold=0.5, logits=logits), machine)


class LooseEnd(Plan):
    """A plan whose idx goes on with samples past the count, which must not be written."""

    def idx(self) -> Array:
        idx = super().idx()
        idx[self.count :] = np.setdiff1d(np.arange(self.rows), idx[: self.count])
        return idx


def scatter(machine: Machine) -> None:
    plan = LooseEnd(13, 5, (13,))
    logits = make_logits(np.random.default_rng(0), 13, 40, "plain").astype(np.float32)
    run_scatter(plan, logits, machine)


def gather(machine: Machine) -> None:
    tensor = np.arange(8 * 37, dtype=np.float32).reshape(8, 37)
    run_gather(Plan(8, 8, (8,)), [tensor], LowGrid(machine))


def preprocess(machine: Machine) -> None:
    sources = [Source(6, 10, "nv12"), Source(7, 9, "rgb"), Source(4, 4, "grey")]
    run_preprocess(sources, network(33, 12), LowGrid(machine))


GATE_X4 = "GATE(float, 4, MAX_SOFTMAX, gate_max_softmax_fp32_x4)"
GATE_X32 = "GATE(float, 32, MAX_SOFTMAX, gate_max_softmax_fp32_x32)"
GATE_X256 = "GATE(float, 256, MAX_SOFTMAX, gate_max_softmax_fp32_x256)"
RACE = "WARNING: ThreadSanitizer: data race.*{at}"
UNEQUAL = "Arrays are not equal|Not equal to tolerance"

BUGS = (
    Bug(
        "missing barrier after partial rows",
        file="softmax.cuh",
        old="    __syncthreads();\n    row = lane",
        new="    row = lane",
        instance=GATE_X256,
        run=gate(2, 4100),
        detector="threads",
        message=RACE,
        at="row = lane < THREADS / WARP ? parts[lane] : empty_row();",
    ),
    Bug(
        "missing barrier before the last block is known",
        file="gate.cu",
        old="  __syncthreads();\n  return shared.is_last;",
        new="  return shared.is_last;",
        instance=GATE_X4,
        run=gate(70, 10),
        detector="threads",
        message=RACE,
        at="return shared.is_last;",
    ),
    Bug(
        "missing barrier before the next row of a gather",
        file="gather.cu",
        old="    const int source = shared_source;\n    __syncthreads();\n",
        new="    const int source = shared_source;\n",
        instance="GATHER(u32, gather_4)",
        run=gather,
        detector="threads",
        message=RACE,
        at="const int source = shared_source;",
    ),
    Bug(
        "missing barrier before the next frame",
        file="preprocess.cu",
        old="    __syncthreads();  // before the next row's frame takes its place\n",
        new="",
        instance="PREPROCESS(float, preprocess_fp32)",
        run=preprocess,
        detector="threads",
        message=RACE,
        at="shared.parts[threadIdx.x] = read(",
    ),
    Bug(
        "missing fence before the ticket",
        file="gate.cu",
        old="      __threadfence();\n      shared.is_last",
        new="      shared.is_last",
        instance=GATE_X4,
        run=gate(70, 10),
        detector="threads",
        message=RACE,
        at="read_fresh(args.masks + block)",
    ),
    Bug(
        "missing fence after the ticket",
        file="gate.cu",
        old="== blocks - 1;\n      __threadfence();\n",
        new="== blocks - 1;\n",
        instance=GATE_X4,
        run=gate(70, 10),
        detector="threads",
        message=RACE,
        at="read_fresh(args.masks + block)",
    ),
    Bug(
        "every block compacts",
        file="gate.cu",
        old="  if (!publish(args, shared, BLOCK_ROWS, blocks)) return;",
        new="  publish(args, shared, BLOCK_ROWS, blocks);",
        instance=GATE_X4,
        run=gate(70, 10),
        detector="threads",
        message=RACE,
        at="if (threadIdx.x == 0) write(args.count, count);",
    ),
    Bug(
        "divergent ballot",
        file="gate.cu",
        old="const u32 low = __ballot_sync(ALL_LANES, lane < rows && shared.goes_on[lane]);",
        new="const u32 low = lane < rows ? __ballot_sync(ALL_LANES, shared.goes_on[lane]) : 0;",
        instance=GATE_X32,
        run=gate(13, 131),
        detector="emulation",
        message="divergent warp: lane .* waits in ballot .*{at}",
        at="const u32 low =",
    ),
    Bug(
        "shuffle after lanes have left",
        file="scatter.cu",
        old="  const bool counts = row < settings.count;\n",
        new="  const bool counts = row < settings.count;\n  if (lane > 20) return;\n",
        instance="SCATTER(float, 32, false, scatter_fp32_x32)",
        run=scatter,
        detector="emulation",
        message=r"shuffle at softmax\.cuh:.* waits for lane 21, which has exited",
    ),
    Bug(
        "divergent barrier",
        file="gate.cu",
        old="  if (lane == WARP - 1) totals[warp] = up_to;\n  __syncthreads();\n",
        new="  if (lane == WARP - 1) {\n    totals[warp] = up_to;\n    __syncthreads();\n"
        "  } else {\n    __syncthreads();  // other\n  }\n",
        instance=GATE_X4,
        run=gate(70, 10),
        detector="emulation",
        message="divergent __syncthreads: others wait at {at}",
        at="__syncthreads();  // other",
    ),
    Bug(
        "vectors from the start of a misaligned row",
        file="softmax.cuh",
        old="    head = min(int(-(u64)start / sizeof(T) % WIDTH), classes);\n",
        new="    head = 0;\n",
        instance=GATE_X32,
        run=gate(13, 131),
        detector="emulation",
        message="misaligned: read of 16 bytes from 0x.* at {at}",
        at="return read(reinterpret_cast<const uint4*>(start + head) + index);",
    ),
    Bug(
        "constant read of what blocks have written",
        file="gate.cu",
        old="read_fresh(args.masks + block)",
        new="read(args.masks + block)",
        instance=GATE_X4,
        run=gate(70, 10),
        detector="emulation",
        message="constant read of memory that this launch has written: read of 8 bytes.*{at}",
        at="read(args.masks + block)",
    ),
    Bug(
        "out-of-bounds read",
        file="softmax.cuh",
        old="tail[k] = last < row.classes ?",
        new="tail[k] = last <= row.classes ?",
        instance=GATE_X32,
        run=gate(13, 131),
        detector="addresses",
        message="ERROR: AddressSanitizer: heap-buffer-overflow.*READ of size 4.*{at}",
        at="tail[k] = last <= row.classes ?",
    ),
    Bug(
        "out-of-bounds write",
        file="gather.cu",
        old="    if (first + k * THREADS < units) write(",
        new="    if (first + k * THREADS <= units) write(",
        instance="GATHER(u32, gather_4)",
        run=gather,
        detector="addresses",
        message="ERROR: AddressSanitizer: heap-buffer-overflow.*WRITE of size 4.*{at}",
        at="if (first + k * THREADS <= units) write(",
    ),
    Bug(
        "partial rows of warps that do not exist",
        file="softmax.cuh",
        old="row = lane < THREADS / WARP ? parts[lane] : empty_row();",
        new="row = parts[lane];",
        instance=GATE_X256,
        run=gate(2, 4100),
        detector="addresses",
        message=r"{at}.*runtime error: index \d+ out of bounds for type 'Row \[8\]'",
        at="row = parts[lane];",
    ),
    Bug(
        "bits shifted out of an int",
        file="gate.cu",
        old="bit = 1ull << place % BLOCK_ROWS;",
        new="bit = 1 << place % BLOCK_ROWS;",
        instance=GATE_X4,
        run=gate(70, 10),
        detector="addresses",
        message=r"{at}.*runtime error: shift exponent \d+ is too large for 32-bit type 'int'",
        at="bit = 1 << place % BLOCK_ROWS;",
    ),
    Bug(
        "unreset control word",
        file="gate.cu",
        old="atomicInc(args.ticket, blocks - 1) == blocks - 1;",
        new="atomicInc(args.ticket, ALL_LANES) == blocks - 1;",
        instance=GATE_X4,
        run=replayed_gate,
        detector="values",
        message="control word not reset",
    ),
    Bug(
        "unstable compaction",
        file="gate.cu",
        old="const int target = shared.offsets[place / BLOCK_ROWS] + __popcll(bits & (bit - 1));",
        new="const int target = atomicAdd(&shared.offsets[place / BLOCK_ROWS], 1);",
        instance=GATE_X4,
        run=gate(70, 10),
        options={"order": "descending"},
        detector="values",
        message="Arrays are not equal\norder of the escalated rows",
    ),
    Bug(
        "wrong tail",
        file="softmax.cuh",
        old="int tail() const { return head + vectors * WIDTH; }",
        new="int tail() const { return vectors * WIDTH; }",
        instance=GATE_X32,
        run=gate(13, 131, threshold=0.0, offset=4),
        detector="values",
        message=UNEQUAL,
    ),
    Bug(
        "lost tie rule",
        file="softmax.cuh",
        old="(other.largest == row.largest && other.label < row.label)",
        new="(other.largest == row.largest && other.label > row.label)",
        instance=GATE_X32,
        run=gate(13, 131, "float32", "ties", threshold=0.0),
        detector="values",
        message=UNEQUAL,
    ),
    Bug(
        "non-strict threshold",
        file="gate.cu",
        old="fmaf(row.total, threshold, -1.0f) < 0.0f",
        new="fmaf(row.total, threshold, -1.0f) <= 0.0f",
        instance=GATE_X4,
        run=exact_hits,
        detector="values",
        message="too many decided otherwise near the threshold",
    ),
    Bug(
        "exp of -inf + inf",
        file="softmax.cuh",
        old="    if (z == negative_infinity()) continue;",
        new="   ",
        instance=GATE_X32,
        run=leading_minus_infinity,
        detector="values",
        message="decided otherwise: rows",
    ),
    Bug(
        "padding scattered",
        file="scatter.cu",
        old="  if (!counts || lane != 0) return;",
        new="  if (row >= args.rows || lane != 0) return;",
        instance="SCATTER(float, 32, false, scatter_fp32_x32)",
        run=scatter,
        detector="values",
        message=UNEQUAL,
    ),
    Bug(
        "taps without the half pixel",
        file="preprocess.cu",
        old="max((2 * place + 1) * source - target, 0)",
        new="max(2 * place * source, 0)",
        instance="PREPROCESS(float, preprocess_fp32)",
        run=preprocess,
        detector="values",
        message="off by .* times what is allowed",
    ),
    Bug(
        "swapped chroma",
        file="preprocess.cu",
        old="read(pair) - 128.0f, read(pair + 1) - 128.0f",
        new="read(pair + 1) - 128.0f, read(pair) - 128.0f",
        instance="PREPROCESS(float, preprocess_fp32)",
        run=preprocess,
        detector="values",
        message="off by .* times what is allowed",
    ),
)
