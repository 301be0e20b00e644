"""Plans of a bundle for the doubled TensorRT, written where the cascade looks for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.bundle import load_bundle
from runtime.plans import (
    FOLDER,
    Library,
    PlanKey,
    Profile,
    Sidecar,
    bucket_profiles,
    model_digest,
    plan_file,
    this_machine,
)
from runtime.schema import Form
from tests.cuda_double.install import TENSORRT
from tests.tensorrt_double.plan_content import PlanContent


def write_plans(
    bundle_folder: Path,
    buckets: Sequence[int] | Mapping[str, Sequence[int]],
    *,
    tensorrt: str = TENSORRT,
    library: Library = "tensorrt",
    form: Form = "fp32",
    **content: Any,
) -> None:
    """Write a plan for every stage.

    Parameters
    ----------
    buckets
        Batch sizes, of all stages or by their names.
    tensorrt
        The version that has built them.
    content
        Fields of `PlanContent` that are to be otherwise.
    """
    bundle = load_bundle(bundle_folder)
    machine = this_machine(library, tensorrt)
    folder = bundle_folder / FOLDER
    folder.mkdir(exist_ok=True)
    for number, stage in enumerate(bundle.spec.stages):
        sizes = buckets[stage.name] if isinstance(buckets, Mapping) else buckets
        profiles = bucket_profiles(sizes)
        key = PlanKey(
            model_sha256=model_digest(bundle, number, form),
            form=form,
            machine=machine,
            profiles=profiles,
        )
        built = PlanContent(
            name=stage.name,
            version=tensorrt,
            profiles=[_range(profile) for profile in profiles],
            onnx=bundle.model(number, form).read_bytes(),
        )
        plan = replace(built, **content).to_bytes()
        name = plan_file(stage.name, key)
        (folder / name).write_bytes(plan)
        sidecar = _sidecar(stage.name, key, name, plan)
        (folder / name).with_suffix(".json").write_text(sidecar.model_dump_json())


def _range(profile: Profile) -> tuple[int, int, int]:
    return profile.min, profile.opt, profile.max


def _sidecar(stage: str, key: PlanKey, name: str, plan: bytes) -> Sidecar:
    return Sidecar(
        stage=stage,
        key=key,
        file=name,
        sha256=hashlib.sha256(plan).hexdigest(),
        nbytes=len(plan),
        inputs=(),
        outputs=(),
        built="2026-01-01T00:00:00+00:00",
        build_seconds=0.0,
    )
