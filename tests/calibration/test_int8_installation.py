"""Forms into a bundle: at every moment its folder holds the old bundle or the new one."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import calibration.installation
from calibration import comparison
from calibration.comparison import GateRule, compare, race, undisturbed
from calibration.errors import CalibrationError
from calibration.installation import Addition, copy_bundle, install
from runtime.bundle import Bundle, file_sha256, load_bundle, save_spec
from runtime.schema import Score, Setting
from tests.calibration.int8_world import content, make_bundle

KEY = ("large", "fp16")


def addition(mark: bytes) -> Addition:
    return Addition(
        models={KEY: b"model " + mark, ("tiny", "int8_host"): b"integers " + mark},
        golden={KEY: np.full((8, 3), len(mark), np.float32)},
        provenance=b"samples " + mark,
        settings={"fp32/fp16": Setting(thresholds=(0.5,))},
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(make_bundle(tmp_path / "bundle"))


def is_whole(folder: Path) -> bool:
    """Check that every file that ``cascade.json`` names has the content that it says."""
    bundle = load_bundle(folder)
    for index, stage in enumerate(bundle.spec.stages):
        for form in stage.forms:
            bundle.model(index, form)
    items = [*bundle.spec.provenance, *([bundle.spec.golden] if bundle.spec.golden else [])]
    return all(bundle.verified(item.file, item.sha256) for item in items)


@contextmanager
def failing_at(step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """Let the given write of a file fail, counting from 1; yields the paths written."""
    written: list[Path] = []
    real = calibration.installation.replacing

    def replacing(path: Path):
        written.append(path)
        if len(written) == step:
            raise error
        return real(path)

    def save(folder: Path, spec: object) -> Path:
        written.append(folder / "cascade.json")
        if len(written) == step:
            raise error
        return save_spec(folder, spec)

    with monkeypatch.context() as patch:
        patch.setattr(calibration.installation, "replacing", replacing)
        patch.setattr(calibration.installation, "save_spec", save)
        yield written


def test_what_is_added_is_named_with_its_hash(bundle: Bundle) -> None:
    spec = install(bundle, addition(b"1"))
    assert load_bundle(bundle.folder).spec == spec and is_whole(bundle.folder)
    assert spec.stages[1].forms["fp16"].file == "models/large.fp16.onnx"
    assert (bundle.folder / "models" / "large.fp16.onnx").read_bytes() == b"model 1"
    assert spec.settings["fp32/fp16"].thresholds == (0.5,)
    assert [entry.purpose for entry in spec.provenance] == ["training", "selection", "ranges"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("again", [False, True], ids=["first forms", "forms anew"])
def test_an_interruption_at_any_write_leaves_a_whole_bundle(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    again: bool,
) -> None:
    if again:
        install(bundle, addition(b"0"))
    before = content(bundle.folder)
    expected = CalibrationError if isinstance(error, OSError) else KeyboardInterrupt
    committed = 0
    for step in range(1, 12):
        folder = tmp_path / f"step {step}"
        shutil.copytree(bundle.folder, folder)
        with failing_at(step, error, monkeypatch) as written, pytest.raises(expected):
            install(load_bundle(folder), addition(b"22"))
        assert is_whole(folder)
        if "cascade.json" in [path.name for path in written[:-1]]:
            committed += 1
            assert (
                folder / load_bundle(folder).spec.stages[1].forms["fp16"].file
            ).read_bytes() == (b"model 22")
        else:
            assert content(folder) == before
        # The next attempt comes to the end, and leaves nothing of this one.
        spec = install(load_bundle(folder), addition(b"22"))
        assert is_whole(folder) and not [name for name in content(folder) if ".new." in name]
        assert spec.stages[1].forms["fp16"].file == "models/large.fp16.onnx"
        if committed == (5 if again else 2):
            break
    # Four files and cascade.json; then those in use get their names back, and cascade.json again.
    assert step == (10 if again else 7)


def test_a_reader_between_two_writes_finds_a_whole_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(bundle, addition(b"0"))
    seen = []
    real = calibration.installation._save

    def watched(folder: Path, spec: object) -> None:
        real(folder, spec)
        seen.append(is_whole(folder))

    monkeypatch.setattr(calibration.installation, "_save", watched)
    install(bundle, addition(b"1"))
    assert seen == [True, True]


def test_the_same_addition_again_changes_no_byte(bundle: Bundle) -> None:
    install(bundle, addition(b"1"))
    before = content(bundle.folder)
    install(bundle, addition(b"1"))
    assert content(bundle.folder) == before


def test_models_that_changed_meanwhile_are_refused(bundle: Bundle) -> None:
    path = bundle.folder / "models" / "large.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    stages = list(bundle.spec.stages)
    form = stages[1].forms["fp32"].model_copy(update={"sha256": file_sha256(path)})
    stages[1] = stages[1].model_copy(update={"forms": {"fp32": form}})
    save_spec(bundle.folder, bundle.spec.model_copy(update={"stages": tuple(stages)}))
    with pytest.raises(CalibrationError, match="changed while forms were made"):
        install(bundle, addition(b"1"))


def test_what_others_wrote_meanwhile_is_kept(bundle: Bundle) -> None:
    renamed = bundle.spec.model_copy(update={"name": "renamed"})
    save_spec(bundle.folder, renamed)
    assert install(bundle, addition(b"1")).name == "renamed"


def test_provenance_of_ranges_is_kept_while_a_form_depends_on_it(bundle: Bundle) -> None:
    def ranges() -> list[str]:
        entries = load_bundle(bundle.folder).spec.provenance
        return [entry.file for entry in entries if entry.purpose == "ranges"]

    install(bundle, addition(b"1"))
    assert ranges() == ["provenance/ranges.npz"]
    partly = addition(b"2")
    del partly.models["tiny", "int8_host"]
    install(bundle, partly)
    first, second = ranges()
    assert first == "provenance/ranges.npz" and second.startswith("provenance/ranges-")
    install(bundle, partly)
    assert ranges() == [first, second]
    install(bundle, addition(b"3"))
    assert ranges() == ["provenance/ranges.npz"] and is_whole(bundle.folder)


def test_a_copy_has_every_file_that_is_named_and_no_other(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_bundle(bundle, tmp_path / "copy")
    assert is_whole(copy.folder) and copy.spec == bundle.spec
    assert "data/selection.npz" not in content(copy.folder)


def test_a_bundle_without_golden_samples_stays_without(bundle: Bundle) -> None:
    save_spec(bundle.folder, bundle.spec.model_copy(update={"golden": None}))
    assert install(load_bundle(bundle.folder), addition(b"1")).golden is None


def test_runs_that_were_interrupted_do_not_count() -> None:
    quiet = [2.0 + k / 1000 for k in range(10)]
    assert undisturbed([9.0, *quiet[5:], *[30.0] * 80, *quiet[:5], 9.0, 9.0, 9.0, 9.0, 9.0]) == (
        pytest.approx(2.004)
    )
    assert undisturbed([3.0, 2.0]) == 2.0


def test_a_race_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SECONDS", 0)
    order: list[str] = []
    found = race({name: lambda name=name: order.append(name) for name in ("fp32", "form")}, batch=8)
    assert order == ["fp32", "form"] * (1 + comparison.ROUNDS)
    assert found.batch == 8 and min(found) > 0


def test_a_comparison_counts_answers_and_decisions() -> None:
    sure, unsure = [9.0, 0.0, 0.0], [0.2, 0.1, 0.0]
    reference = np.array([sure, sure, unsure, sure], np.float32)
    found = np.array([sure, unsure, unsure, sure[::-1]], np.float32)
    gate = GateRule(Score(), 0.9)
    labels = np.array([0, 0, 1, 0], np.int32)
    assert compare(reference, found, labels, gate) == (0.5, 0.25, 0.75, 0.25)
    assert compare(reference, found, None, None) == (None, 0.25, 0.75, None)
    assert compare(reference, reference, labels, gate) == (0.75, 0.0, 1.0, 0.0)
