"""Bundles on disk: the only reader and writer of ``cascade.json``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pydantic

from kernels.files import replacing
from runtime.errors import BundleError
from runtime.schema import FORMAT, CascadeSpec, Form, ModelFile

SPEC_NAME = "cascade.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A folder whose ``cascade.json`` was read and checked. Model files are checked when used."""

    folder: Path
    spec: CascadeSpec

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle.

        Raises
        ------
        BundleError
            When the path leaves the folder, or the file is missing.
        """
        return _inside(self.folder, name)

    def described(self, stage: int, form: Form) -> ModelFile:
        """Return what ``cascade.json`` says of a stage's form.

        Raises
        ------
        BundleError
            When the stage lacks the form.
        """
        stage_spec = self.spec.stages[stage]
        if form not in stage_spec.forms:
            raise BundleError(
                f"{self.folder / SPEC_NAME}: stage {stage_spec.name} has no form {form}; "
                f"it has {', '.join(stage_spec.forms)}."
            )
        return stage_spec.forms[form]

    def model(self, stage: int, form: Form) -> Path:
        """Return the ONNX file of a stage's form after checking its hash, and its weights' too.

        Raises
        ------
        BundleError
            When the stage lacks the form, a file is missing, or a hash differs.
        """
        described = self.described(stage, form)
        for name, sha256 in described.external.items():
            self.verified(name, sha256)
        return self.verified(described.file, described.sha256)

    def verified(self, name: str, sha256: str) -> Path:
        """Return the path of a file of the bundle, its content checked against its hash.

        Raises
        ------
        BundleError
            When the file is missing, outside the folder, or has other content.
        """
        path = self.file(name)
        found = file_sha256(path)
        if found != sha256:
            raise BundleError(
                f"{path}: content differs from what cascade.json describes "
                f"(expected sha256 {sha256[:12]}..., got {found[:12]}..., "
                f"{path.stat().st_size} bytes). Copy the bundle again, or rebuild it."
            )
        return path


def demo_folder() -> Path:
    """Return the folder of the bundle that comes with the package, ``zoo/fashion``."""
    # Not by import: a folder zoo in the working directory could be taken for the package.
    return Path(__file__).resolve().parent.parent / "zoo" / "fashion"


def load_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read and check ``cascade.json`` in ``folder``.

    Raises
    ------
    BundleError
        When it is missing, is not JSON, has an unknown format or a field that does not fit, or
        names a path outside the folder.
    """
    root = Path(folder)
    path = root / SPEC_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{path}: not found. Give the folder of a bundle, as zoo/fashion."
        ) from None
    except UnicodeDecodeError:
        raise BundleError(f"{path}: not UTF-8 text. Copy the bundle again.") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}.") from None
    bundle = Bundle(root, _parse(path, text))
    for name in _file_names(bundle.spec):
        _inside(root, name, must_exist=False)
    return bundle


def save_spec(folder: Path, spec: CascadeSpec) -> Path:
    """Write ``cascade.json`` whole or not at all, and return its path."""
    path = folder / SPEC_NAME
    text = json.dumps(spec.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    with replacing(path) as stream:
        stream.write(text.encode() + b"\n")
    return path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal, without holding all of it."""
    content = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            content.update(chunk)
    return content.hexdigest()


def _parse(path: Path, text: str) -> CascadeSpec:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error}). Copy the bundle again.") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"{path}: format: expected {FORMAT!r}, got {found!r}. "
            "Use the release of tinysaver-runtime that wrote the bundle, or rebuild it."
        )
    try:
        return CascadeSpec.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise BundleError(f"{path}: {_describe(error)}") from None


def _describe(error: pydantic.ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False)[:3]:
        place = ".".join(str(part) for part in problem["loc"]) or "cascade"
        got = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
        lines.append(f"{place}: {problem['msg']}{got[:120]}")
    return "; ".join(lines) + ". See docs/formats.md."


def _file_names(spec: CascadeSpec) -> Iterator[str]:
    for stage in spec.stages:
        for form in stage.forms.values():
            yield from (form.file, *form.external_data)
    if spec.golden:
        yield spec.golden.file
    yield from (item.file for item in spec.provenance)


def _inside(root: Path, name: str, *, must_exist: bool = True) -> Path:
    path = root / name
    absolute = PurePosixPath(name).is_absolute() or Path(name).is_absolute()
    try:
        leaves = absolute or not path.resolve().is_relative_to(root.resolve())
        missing = must_exist and not path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(
            f"{root / SPEC_NAME}: path {name[:80]!r} cannot be followed ({str(error)[:80]})."
        ) from None
    if leaves:
        raise BundleError(
            f"{root / SPEC_NAME}: path {name!r} leaves the bundle folder; "
            "expected a relative path inside it."
        )
    if missing:
        raise BundleError(f"{path}: not found, but cascade.json names it. Copy the bundle again.")
    return path
