"""Plans that are wanted, and builds that make them of nothing, for tests of the cache."""

from __future__ import annotations

from pathlib import Path

from engines.build_messages import Built
from engines.plan_store import Wanted
from runtime.plans import Flags, Machine, PlanKey, bucket_profiles

ORIN = Machine(
    library="tensorrt", version="10.3.0", cuda="12.6", gpu="Orin (AGX)", architecture="sm_87"
)


def key(**changes) -> PlanKey:
    fields = {
        "model_sha256": "01" * 32,
        "form": "fp16",
        "machine": ORIN,
        "profiles": bucket_profiles([1, 8]),
        "flags": Flags(),
    }
    return PlanKey(**{**fields, **changes})


def wanted(folder: Path, **changes) -> Wanted:
    return Wanted(folder, "saver", key(**changes))


def maker(content: bytes = b"plan", *, warnings: tuple[str, ...] = ()):
    """Return a build that writes this content, and a list that grows with every call of it."""
    calls = []

    def make(partial: Path) -> Built:
        calls.append(partial)
        partial.write_bytes(content)
        return Built(inputs=(), outputs=(), seconds=0.5, warnings=warnings)

    return make, calls
