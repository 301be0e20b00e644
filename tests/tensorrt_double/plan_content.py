"""What the double puts into a plan: the ONNX model, and what a runtime must know of its build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

MAGIC = b"ptrt, but not a plan\n"


@dataclass(frozen=True)
class PlanContent:
    """A plan of the double.

    Attributes
    ----------
    name
        What tests see running.
    version
        Of the TensorRT that built it.
    profiles
        Each the least, best and most batch.
    scratch
        Bytes that a running context needs beside its tensors.
    shares_profiles
        Built with PROFILE_SHARING_0806, which matters to 8.6.
    host_code
        Has code for the host, as version-compatible plans do.
    captured_as
        Kinds of the nodes that a run becomes in a graph, the first of which does it.
    capturable
        What TensorRT-RTX says when it is asked whether it can be captured.
    verbosity
        The ``ProfilingVerbosity`` it was built with.
    """

    name: str
    version: str
    profiles: Sequence[tuple[int, int, int]]
    onnx: bytes
    scratch: int = 4096
    shares_profiles: bool = True
    host_code: bool = False
    captured_as: Sequence[str] = ("KERNEL",)
    capturable: bool = True
    verbosity: str = "DETAILED"

    def to_bytes(self) -> bytes:
        """Return the plan file's content."""
        header = {name: value for name, value in asdict(self).items() if name != "onnx"}
        return MAGIC + json.dumps(header).encode() + b"\n" + self.onnx

    @classmethod
    def from_bytes(cls, content: bytes) -> PlanContent:
        """Read a plan file's content.

        Raises
        ------
        ValueError
            When it is none.
        """
        if not content.startswith(MAGIC):
            raise ValueError("Magic tag does not match")
        header, _, onnx = content[len(MAGIC) :].partition(b"\n")
        return cls(onnx=onnx, **json.loads(header))
