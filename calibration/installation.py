"""Further forms into a bundle: whole, or not at all.

Files are written beside those that ``cascade.json`` names, and the one rename that puts the new
``cascade.json`` in place is what makes them part of the bundle. A file that takes the name of one
in use first gets a name of its own, so that whoever reads in between finds a bundle that fits.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from calibration.npz import read_npz, unwritable, write_npz
from kernels.files import replacing
from runtime.bundle import SPEC_NAME, Bundle, load_bundle, save_spec
from runtime.schema import CascadeSpec, Form, Golden, ModelFile, Provenance, Setting, Stage

Logits = npt.NDArray[np.float32]


Files = dict[str, bytes]

_INTERIM = ".new"


@dataclass
class Addition:
    """What is added to a bundle.

    Attributes
    ----------
    models
        ONNX files by stage and form.
    golden
        Logits f32 [g, K] of the bundle's golden frames, by stage and form.
    provenance
        Content of a provenance file of the data that gave ranges.
    settings
        By the forms they are for. Where the bundle has a certificate for the very same models, that
        setting stays.
    """

    models: dict[tuple[str, Form], bytes] = field(default_factory=dict)
    golden: dict[tuple[str, Form], Logits] = field(default_factory=dict)
    provenance: bytes | None = None
    settings: dict[str, Setting] = field(default_factory=dict)


def install(bundle: Bundle, addition: Addition) -> CascadeSpec:
    """Add forms to the bundle's folder and return what ``cascade.json`` says now.

    Raises
    ------
    CalibrationError
        When the bundle's models are no longer those the forms were made from, or a file cannot be
        written; the bundle is then as it was.
    """
    current = load_bundle(bundle.folder)
    _check_same(bundle, current)
    files: Files = {}
    stages = tuple(_with_forms(stage, addition, files) for stage in current.spec.stages)
    changed = current.spec.model_copy(
        update={
            "stages": stages,
            "golden": _with_golden(current, addition, files),
            "provenance": _with_provenance(current.spec, addition, files),
        }
    )
    settings = {**changed.settings, **_changed_settings(changed, addition)}
    # Built anew rather than copied, so that the schema checks the whole.
    spec = CascadeSpec(**{**dict(changed), "settings": settings})
    _write(bundle.folder, current.spec, spec, files)
    return spec


def copy_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """Copy all files of a bundle to a new folder and return the bundle there.

    Raises
    ------
    CalibrationError
        When a file cannot be written.
    BundleError
        When a file is missing.
    """
    for name in sorted(_names(bundle.spec)):
        _put(folder / name, bundle.file(name).read_bytes())
    _save(folder, bundle.spec)
    return load_bundle(folder)


def _check_same(calibrated: Bundle, current: Bundle) -> None:
    before, now = (
        [s.forms.get("fp32") for s in item.spec.stages] for item in (calibrated, current)
    )
    if before != now:
        raise CalibrationError(
            f"{current.folder}: its FP32 models changed while forms were made from them. Run again."
        )


def _with_forms(stage: Stage, addition: Addition, files: Files) -> Stage:
    forms = dict(stage.forms)
    for (name, form), content in addition.models.items():
        if name == stage.name:
            beside = PurePosixPath(stage.forms["fp32"].file)
            file = beside.with_name(f"{name}.{form}.onnx").as_posix()
            files[file] = content
            forms[form] = ModelFile(file=file, sha256=_sha256(content))
    return stage.model_copy(update={"forms": forms})


def _with_golden(current: Bundle, addition: Addition, files: Files) -> Golden | None:
    golden = current.spec.golden
    if golden is None or not addition.golden:
        return golden
    stored = read_npz(current.verified(golden.file, golden.sha256), ("frames",))
    logits = {f"logits/{name}/{form}": z for (name, form), z in addition.golden.items()}
    # After an interruption it may still have the name of its own.
    file = golden.file.replace(_INTERIM, "")
    files[file] = _npz({**stored, **logits})
    return Golden(file=file, sha256=_sha256(files[file]))


def _with_provenance(spec: CascadeSpec, addition: Addition, files: Files) -> tuple[Provenance, ...]:
    if addition.provenance is None:
        return spec.provenance
    sha256 = _sha256(addition.provenance)
    integer = {(s.name, form) for s in spec.stages for form in s.forms if form.startswith("int8")}
    kept = spec.provenance
    if integer <= set(addition.models):
        # No form is left whose ranges the former data gave.
        kept = tuple(entry for entry in kept if entry.purpose != "ranges")
    elif any(entry.sha256 == sha256 for entry in kept):
        return kept
    taken = {entry.file for entry in kept}
    file = "provenance/ranges.npz"
    if file in taken:
        file = f"provenance/ranges-{sha256[:8]}.npz"
    files[file] = addition.provenance
    return (*kept, Provenance(purpose="ranges", file=file, sha256=sha256))


def _changed_settings(spec: CascadeSpec, addition: Addition) -> dict[str, Setting]:
    return {
        key: setting for key, setting in addition.settings.items() if not _is_certified(spec, key)
    }


def _is_certified(spec: CascadeSpec, key: str) -> bool:
    """Return whether a setting's certificate is of the models that the bundle has now."""
    setting = spec.settings.get(key)
    if setting is None or setting.certificate is None or setting.certificate.covers is None:
        return False
    covered = setting.certificate.covers.stages
    return len(covered) == len(spec.stages) and all(
        item.form in stage.forms and stage.forms[item.form].digest == item.model_sha256
        for item, stage in zip(covered, spec.stages, strict=True)
    )


def _write(folder: Path, old: CascadeSpec, new: CascadeSpec, files: Files) -> None:
    changed = {name: content for name, content in files.items() if _differs(folder / name, content)}
    moved = {name: _interim(name) for name in changed if name in _names(old)}
    written: list[Path] = []
    try:
        for name, content in changed.items():
            written.append(folder / moved.get(name, name))
            _put(written[-1], content)
        _save(folder, _renamed(new, moved))
    except BaseException:
        for path in written:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    # The bundle is complete. What follows only gives its files the names they had before.
    if moved:
        for name in moved:
            _put(folder / name, changed[name])
        _save(folder, new)
    for name in {_interim(name) for name in files} - _names(new):
        (folder / name).unlink(missing_ok=True)


def _differs(path: Path, content: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != content


def _interim(name: str) -> str:
    path = PurePosixPath(name)
    return path.with_name(f"{path.stem}{_INTERIM}{path.suffix}").as_posix()


def _names(spec: CascadeSpec) -> set[str]:
    forms = [form for stage in spec.stages for form in stage.forms.values()]
    models = {name for form in forms for name in (form.file, *form.external_data)}
    golden = {spec.golden.file} if spec.golden else set()
    return models | golden | {entry.file for entry in spec.provenance}


def _renamed(spec: CascadeSpec, names: Mapping[str, str]) -> CascadeSpec:
    """Return a specification whose files have other names."""

    def rename(item: Any) -> Any:
        return item.model_copy(update={"file": names.get(item.file, item.file)})

    stages = tuple(
        stage.model_copy(update={"forms": {k: rename(v) for k, v in stage.forms.items()}})
        for stage in spec.stages
    )
    golden = rename(spec.golden) if spec.golden else None
    provenance = tuple(rename(entry) for entry in spec.provenance)
    return spec.model_copy(update={"stages": stages, "golden": golden, "provenance": provenance})


def _put(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(content)
    except OSError as error:
        raise unwritable(path, error) from None


def _save(folder: Path, spec: CascadeSpec) -> None:
    try:
        save_spec(folder, spec)
    except OSError as error:
        raise unwritable(folder / SPEC_NAME, error) from None


def _npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_npz(Path(folder) / "arrays.npz", arrays).read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
