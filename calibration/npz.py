"""Reading and writing npz files: whole or not at all, never unpickled, errors a user can act on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pydantic

from calibration.errors import CalibrationError
from kernels.files import replacing
from runtime import images
from runtime.errors import InputError
from runtime.schema import Schema

Array = npt.NDArray[Any]
Meta = TypeVar("Meta", bound=Schema)


def write_npz(path: Path, arrays: Mapping[str, Array]) -> Path:
    """Write a compressed npz, making its folder if need be, and return its path.

    Raises
    ------
    CalibrationError
        When the folder or file cannot be written; what was there before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(path) as stream,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def read_npz(path: Path, required: tuple[str, ...]) -> dict[str, Array]:
    """Return all arrays of an npz file.

    Raises
    ------
    CalibrationError
        When the file is missing, is not a whole npz of plain arrays, or lacks a required array.
    """
    try:
        arrays = images.read_npz(path)
    except InputError as error:
        raise CalibrationError(f"{error} Write or copy it again.") from None
    missing = [name for name in required if name not in arrays]
    if missing:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise CalibrationError(
            f"{path}: expected the arrays {', '.join(required)}; found {found}. "
            "See docs/formats.md."
        )
    return arrays


def pack_meta(meta: Schema) -> Array:
    """Return a schema object as the JSON text that an npz file keeps under ``meta``."""
    return np.array(json.dumps(meta.model_dump(mode="json", exclude_none=True)))


def unpack_meta(path: Path, packed: Array, schema: type[Meta]) -> Meta:
    """Return the schema object that `pack_meta` packed.

    Raises
    ------
    CalibrationError
        When ``packed`` is not JSON text of that schema.
    """
    return parse_json(path, str(packed), schema)


def parse_json(path: Path, text: str, schema: type[Meta]) -> Meta:
    """Return a schema object from JSON text that was read from ``path``.

    Raises
    ------
    CalibrationError
        When it is not JSON, or does not fit the schema; names the first field that does not.
    """
    try:
        return schema.model_validate_json(text)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        got = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"[:120]
        raise CalibrationError(
            f"{path}: {place or 'content'}: {problem['msg']}{got}. See docs/formats.md."
        ) from None


def unwritable(path: Path, error: OSError) -> CalibrationError:
    """Return the error for an output that the system did not let us write."""
    return CalibrationError(
        f"{path}: cannot be written ({error.strerror or error}). "
        "Check permission and free space, or give another place."
    )
