"""cascade.json: what is read back, what is refused and with which words, what writing leaves."""

import errno
import hashlib
import json
import os
import re

import numpy as np
import pytest

from kernels.files import replacing
from runtime.bundle import demo_folder, file_sha256, load_bundle, save_spec
from runtime.errors import BundleError

OTHER_SHA = "0123456789abcdef" * 4


def test_what_is_saved_is_loaded(full_spec, tmp_path):
    path = save_spec(tmp_path, full_spec)
    assert path == tmp_path / "cascade.json"
    bundle = load_bundle(tmp_path)
    assert bundle.spec == full_spec
    assert bundle.folder == tmp_path


def test_saving_again_gives_the_same_bytes_and_readable_text(full_spec, tmp_path):
    first = save_spec(tmp_path, full_spec).read_bytes()
    assert save_spec(tmp_path, load_bundle(tmp_path).spec).read_bytes() == first
    assert "Größe" in first.decode() and first.endswith(b"}\n")
    assert b"null" not in first


def test_a_thousand_thresholds_keep_every_bit(make_spec, tmp_path):
    values = [float(v) for v in np.random.default_rng(1).random(1000)]
    spec = make_spec("echo", "negated", labels=[f"c{i}" for i in range(1000)], thresholds=[values])
    save_spec(tmp_path, spec)
    assert load_bundle(tmp_path).spec.settings["fp32/fp32"].thresholds[0] == values


def test_a_failing_save_leaves_the_old_file_and_nothing_beside_it(full_spec, tmp_path, monkeypatch):
    before = save_spec(tmp_path, full_spec).read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save_spec(tmp_path, full_spec.model_copy(update={"name": "other"}))
    assert (tmp_path / "cascade.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["cascade.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as stream:
        stream.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_of_a_file_is_seen_before_it_is_whole(tmp_path):
    path = tmp_path / "file.bin"
    with replacing(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_writing_into_a_missing_folder_says_so(full_spec, tmp_path):
    with pytest.raises(FileNotFoundError):
        save_spec(tmp_path / "absent", full_spec)


def test_the_demo_folder_is_found_in_the_package():
    assert (demo_folder() / "models").is_dir()


@pytest.mark.parametrize("place", ["absent", "file/inside", "empty"])
def test_a_folder_without_a_bundle_is_refused(tmp_path, place, refusal):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    message = refusal(tmp_path / place)
    assert message.startswith(str(tmp_path / place / "cascade.json"))
    assert "not found" in message and "Give the folder of a bundle" in message


def test_a_cascade_json_that_cannot_be_read_is_refused(tmp_path, refusal):
    (tmp_path / "cascade.json").mkdir()
    message = refusal(tmp_path)
    assert "cannot be read" in message and "directory" in message


@pytest.mark.parametrize(
    "text", ["", "{", "nonsense", '{"format": }', "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_text_that_is_not_json_is_refused(write_bundle, text, refusal):
    message = refusal(write_bundle(text))
    assert "not JSON" in message and "Copy the bundle again" in message
    assert len(message) < 500


def test_truncated_json_is_refused(write_bundle, content, refusal):
    message = refusal(write_bundle(json.dumps(content)[:-20]))
    assert "not JSON" in message


def test_bytes_that_are_not_utf8_are_refused(tmp_path, refusal):
    (tmp_path / "cascade.json").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize("found", ["tinysaver.cascade/2", "", 1, None])
def test_an_unknown_version_is_refused_with_both_and_advice(write_bundle, content, found, refusal):
    message = refusal(write_bundle({**content, "format": found}))
    assert f"expected 'tinysaver.cascade/1', got {found!r}" in message
    assert "rebuild it" in message


@pytest.mark.parametrize("text", ["[]", "3", '"tinysaver.cascade/1"', "{}"])
def test_json_that_is_not_a_cascade_is_refused(write_bundle, text, refusal):
    assert "expected 'tinysaver.cascade/1', got None" in refusal(write_bundle(text))


@pytest.mark.parametrize(
    "name", ["../echo.onnx", "/etc/passwd", "a/../../echo.onnx", "..", "link.onnx", "out/echo.onnx"]
)
@pytest.mark.parametrize("place", ["file", "external_data", "golden", "provenance"])
def test_a_path_that_leaves_the_folder_is_refused(
    write_bundle, content, tmp_path, name, place, refusal, changed
):
    (tmp_path / "echo.onnx").write_bytes(b"outside")
    described = {"file": name, "sha256": OTHER_SHA}
    if place == "file":
        changed(content, ("stages", 0, "forms", "fp32"), described)
    elif place == "external_data":
        external = {"external_data": ["good.bin", name], "external_sha256": [OTHER_SHA] * 2}
        described = {**described, "file": "a.onnx", **external}
        changed(content, ("stages", 0, "forms", "fp32"), described)
    elif place == "golden":
        content["golden"] = described
    else:
        content["provenance"] = [{"purpose": "training", **described}]
    folder = write_bundle(content)
    (folder / "link.onnx").symlink_to(tmp_path / "echo.onnx")
    (folder / "out").symlink_to(tmp_path)
    message = refusal(folder)
    assert f"path {name!r} leaves the bundle folder" in message
    assert "expected a relative path inside it" in message


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "loop/x"])
def test_a_path_that_no_file_can_have_is_refused(write_bundle, content, name, changed):
    changed(content, ("stages", 0, "forms", "fp32", "file"), name)
    folder = write_bundle(content)
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(BundleError) as caught:
        load_bundle(folder).model(0, "fp32")
    assert "cascade.json" in str(caught.value)


def test_a_link_that_stays_inside_is_followed(write_bundle, content, changed):
    folder = write_bundle(content)
    (folder / "sub").mkdir()
    (folder / "sub" / "link.onnx").symlink_to(folder / "echo.onnx")
    changed(content, ("stages", 0, "forms", "fp32", "file"), "sub/link.onnx")
    path = load_bundle(write_bundle(content)).model(0, "fp32")
    assert path.read_bytes() == (folder / "echo.onnx").read_bytes()


def test_a_bundle_behind_a_link_is_opened(write_bundle, content, tmp_path):
    (tmp_path / "alias").symlink_to(write_bundle(content))
    assert load_bundle(tmp_path / "alias").model(1, "fp32").is_file()


def test_model_returns_the_file_of_the_stage(make_bundle):
    folder = make_bundle("echo", "negated")
    assert load_bundle(str(folder)).model(1, "fp32") == folder / "negated.onnx"


def test_a_form_the_stage_lacks_is_refused_with_those_it_has(make_bundle):
    bundle = load_bundle(make_bundle("echo", "negated"))
    with pytest.raises(BundleError, match=r"stage negated has no form int8_trt; it has fp32\."):
        bundle.model(1, "int8_trt")


def test_a_missing_model_is_refused(make_bundle):
    folder = make_bundle("echo", "negated")
    (folder / "echo.onnx").unlink()
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match=r"echo\.onnx: not found, but cascade\.json names it"):
        bundle.model(0, "fp32")


def test_missing_external_data_is_refused(make_bundle, stage):
    described = stage("echo")
    weights = {"external_data": ["echo.bin"], "external_sha256": [OTHER_SHA]}
    described["forms"]["fp32"].update(weights)
    bundle = load_bundle(make_bundle(described, "negated"))
    with pytest.raises(BundleError, match=r"echo\.bin: not found"):
        bundle.model(0, "fp32")


def test_external_data_with_other_content_are_refused(make_bundle, stage):
    described = stage("echo")
    weights = {"external_data": ["echo.bin"], "external_sha256": [hashlib.sha256(b"w").hexdigest()]}
    described["forms"]["fp32"].update(weights)
    folder = make_bundle(described, "negated")
    (folder / "echo.bin").write_bytes(b"w")
    assert load_bundle(folder).model(0, "fp32") == folder / "echo.onnx"
    (folder / "echo.bin").write_bytes(b"v")
    with pytest.raises(BundleError, match=r"echo\.bin: content differs from what cascade\.json"):
        load_bundle(folder).model(0, "fp32")


@pytest.mark.parametrize("hashes", [[], [OTHER_SHA] * 2])
def test_external_data_without_a_hash_each_are_refused(make_bundle, stage, hashes, refusal):
    described = stage("echo")
    described["forms"]["fp32"].update(external_data=["echo.bin"], external_sha256=hashes)
    message = refusal(make_bundle(described, "negated"))
    assert "expected one external_sha256 for each of 1 files of external_data" in message
    assert f"got {len(hashes)}" in message


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"\0", lambda b: b"?" + b[1:]]
)
def test_a_model_with_other_content_is_refused_with_both_hashes(make_bundle, damage):
    folder = make_bundle("echo", "negated")
    path = folder / "echo.onnx"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    expected, found = hashlib.sha256(whole).hexdigest(), file_sha256(path)
    message = (
        f"expected sha256 {expected[:12]}..., got {found[:12]}..., {path.stat().st_size} bytes"
    )
    with pytest.raises(BundleError, match=re.escape(message)) as caught:
        load_bundle(folder).model(0, "fp32")
    assert "Copy the bundle again, or rebuild it" in str(caught.value)


def test_an_error_names_the_file_that_was_to_be_written(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", source)

    monkeypatch.setattr(os, "replace", full)
    with (
        pytest.raises(OSError, match="No space left") as caught,
        replacing(tmp_path / "out.json") as stream,
    ):
        stream.write(b"{}")
    assert caught.value.filename == str(tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []
