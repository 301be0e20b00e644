"""A plan's ONNX model at work: run by ONNX Runtime in the memory of the doubled driver."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tests.cuda_cpu.emulation import Span
from tests.cuda_double.work import Touched

TYPES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(double)": ("DOUBLE", np.float64),
}


def run_model(
    model: ort.InferenceSession, batch: int, addresses: dict[str, int], used: list[Span]
) -> Touched:
    """Run a model on tensors in memory; ``used`` is what it writes besides."""
    feeds, reads = {}, []
    for item in model.get_inputs():
        feeds[item.name], part = _view(addresses[item.name], item, batch)
        reads.append(part)
    scratch, _ = used
    ctypes.memset(scratch.start, 0x5A, scratch.stop - scratch.start)
    writes = list(used)
    for item, result in zip(model.get_outputs(), model.run(None, feeds), strict=True):
        array, part = _view(addresses[item.name], item, batch)
        array[...] = result
        writes.append(part)
    return Touched(reads, writes)


@functools.cache
def layer_names(model: bytes, verbosity: str) -> list[str]:
    """Return the layers that a profiler hears of: the model's nodes, by number if not by name."""
    nodes = onnx.load_from_string(model).graph.node
    if verbosity == "NONE":
        return [str(number) for number in range(len(nodes))]
    return [node.name or f"{node.op_type} {node.output[0]}" for node in nodes]


@functools.cache
def session(model: bytes, threads: int) -> ort.InferenceSession:
    """Return a session for a model; all engines of it share one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def span(start: int, nbytes: int) -> Span:
    """Return the bytes of a part of memory."""
    return Span(start, start + nbytes)


def _view(address: int, item: Any, batch: int) -> tuple[np.ndarray, Span]:
    """Return a tensor in memory, and its bytes."""
    _, kind = TYPES[item.type]
    shape = (batch, *item.shape[1:])
    nbytes = int(np.prod(shape)) * np.dtype(kind).itemsize
    buffer = (ctypes.c_char * nbytes).from_address(address)
    return np.frombuffer(buffer, kind).reshape(shape), span(address, nbytes)
