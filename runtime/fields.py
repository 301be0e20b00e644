"""What the schemas of all formats are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Form = Literal["fp32", "fp16", "int8_host", "int8_trt"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
Threshold = UnitInterval | list[UnitInterval]
"""One number, or one per predicted class."""


class Schema(BaseModel):
    """Frozen; an unknown field is an error, so that a typing mistake is not read as a default."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


def digest(part: BaseModel, *, later: Collection[str] = ()) -> str:
    """Return the sha256 of a schema object's canonical JSON.

    Parameters
    ----------
    later
        Names of fields, of the object or of one in it, that are left out where they are None: they
        came after the first hashes were written down.
    """
    content = _without(part.model_dump(mode="json"), later)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _without(content: Any, later: Collection[str]) -> Any:
    if isinstance(content, dict):
        return {
            name: _without(value, later)
            for name, value in content.items()
            if name not in later or value is not None
        }
    return content
