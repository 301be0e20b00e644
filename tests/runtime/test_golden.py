"""Golden samples: a cascade whose models answer otherwise than when it was made does not load."""

import hashlib
import math

import numpy as np
import pytest

from runtime.cascade import Cascade
from runtime.errors import BundleError


def load(folder, **options):
    return Cascade.load(folder, threads=1, **options)


def write_golden(folder, frames, **logits):
    arrays = {"frames": frames} if frames is not None else {}
    arrays |= {f"logits/{name}/fp32": values for name, values in logits.items()}
    np.savez(folder / "golden.npz", **arrays)
    return describe(folder)


def describe(folder):
    content = (folder / "golden.npz").read_bytes()
    return {"file": "golden.npz", "sha256": hashlib.sha256(content).hexdigest()}


@pytest.fixture
def golden(tmp_path, make_bundle, random_frames):
    """Write a bundle of echo and negated whose golden samples are changed by ``change``."""

    def make(change=lambda arrays: None):
        folder = tmp_path / "bundle"
        folder.mkdir()
        frames = random_frames(5, seed=1)
        flat = frames.reshape(5, 4).astype(np.float32)
        arrays = {"frames": frames, "echo": flat, "negated": -flat}
        change(arrays)
        described = write_golden(folder, arrays.pop("frames", None), **arrays)
        return make_bundle("echo", "negated", thresholds=[0.5], golden=described)

    return make


def test_golden_samples_that_agree_let_the_cascade_load(golden, random_frames):
    with load(golden()) as cascade:
        cascade.check_golden()
        assert [stage.timings.rows for stage in cascade.executor.stages] == [0, 0]
        assert len(cascade.run(random_frames(3))) == 3


def test_golden_samples_are_checked_up_to_the_batch(golden):
    load(golden(), batch=2).close()


@pytest.mark.parametrize("name", ["echo", "negated"])
@pytest.mark.parametrize("difference", [0.02, -3.0, math.nan])
def test_golden_samples_refuse_other_logits(golden, name, difference):
    def change(arrays):
        arrays[name][3, 2] += difference

    with pytest.raises(BundleError, match="golden samples give other logits") as caught:
        load(golden(change))
    assert f"{name}.onnx" in str(caught.value) and "rebuild the bundle" in str(caught.value)


def test_golden_samples_allow_rounding(golden):
    def change(arrays):
        arrays["echo"] += 0.009

    load(golden(change)).close()


def test_golden_samples_notice_a_model_swapped_with_its_hash(golden, models):
    folder = golden()
    old, new = ((models / f"{name}.onnx").read_bytes() for name in ("negated", "echo"))
    (folder / "negated.onnx").write_bytes(new)
    spec = folder / "cascade.json"
    hashes = [hashlib.sha256(content).hexdigest() for content in (old, new)]
    spec.write_text(spec.read_text().replace(*hashes))
    with pytest.raises(BundleError, match=r"negated\.onnx: golden samples give other logits"):
        load(folder)


def drop_frames(arrays):
    del arrays["frames"]


def drop_logits(arrays):
    del arrays["negated"]


def drop_all(arrays):
    for name in arrays:
        arrays[name] = arrays[name][:0]


def drop_row(arrays):
    arrays["negated"] = arrays["negated"][:-1]


def add_class(arrays):
    arrays["echo"] = np.pad(arrays["echo"], ((0, 0), (0, 1)))


def drop_channel(arrays):
    arrays["frames"] = arrays["frames"][..., 0]


@pytest.mark.parametrize(
    "change", [drop_frames, drop_logits, drop_all, drop_row, add_class, drop_channel]
)
def test_golden_samples_that_do_not_fit_the_bundle_are_refused_by_name(golden, change):
    with pytest.raises(BundleError, match=r"golden\.npz: .*expected .*, got .*Rebuild the bundle"):
        load(golden(change))


def test_a_golden_file_that_is_no_npz_is_refused(golden):
    folder = golden()
    before = describe(folder)["sha256"]
    (folder / "golden.npz").write_bytes(b"PK\3\4 nothing more")
    spec = folder / "cascade.json"
    spec.write_text(spec.read_text().replace(before, describe(folder)["sha256"]))
    with pytest.raises(BundleError, match=r"golden\.npz: not an npz .*Rebuild the bundle"):
        load(folder)


def test_a_golden_file_with_other_content_is_refused(golden):
    folder = golden()
    (folder / "golden.npz").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"golden\.npz: content differs"):
        load(folder)
