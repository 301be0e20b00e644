"""Histograms of activations: counts in one pass, whatever the order of values, and the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration import histograms
from calibration.errors import CalibrationError
from calibration.histogram_cache import Key, load_histograms, save_histograms
from calibration.histograms import BINS, Histogram, observe
from tests.engines.form_graphs import activations, images, model, node, residual_network, scalar

KEY = Key(model_sha256=("a" * 64,), data_sha256="b" * 64, preprocessing_sha256="c" * 64)


def histogram(*parts: np.ndarray) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(np.asarray(part, np.float32))
    return made


def normal(n: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def test_every_value_is_in_the_bin_of_its_place() -> None:
    values = normal(10_007)
    made = histogram(values)
    assert made.limit == 4.0 or made.limit == 8.0
    expected, _ = np.histogram(values, BINS, (-made.limit, made.limit))
    np.testing.assert_array_equal(made.counts, expected)


def test_a_span_that_doubles_gives_what_the_whole_would_have_given() -> None:
    values = np.concatenate([normal(999) * 10.0**power for power in (-3, -1, 0, 2)])
    whole, parts = histogram(values), histogram(*values.reshape(4, -1))
    assert whole.limit == parts.limit
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert (parts.low, parts.high) == (whole.low, whole.high)
    # In the other order the first span is the last.
    np.testing.assert_array_equal(histogram(*values.reshape(4, -1)[::-1]).counts, whole.counts)


def test_zeros_are_counted_apart() -> None:
    made = histogram([[0.0, 0.0, -0.0, 2.0]])
    assert (made.total, made.zeros, made.counts.sum()) == (4, 3, 1)
    assert (made.low, made.high, made.largest) == (0.0, 2.0, 2.0)


def test_a_value_at_the_limit_is_in_the_last_bin() -> None:
    made = histogram([1.0, -1.0, 0.5])
    assert made.limit == 1.0
    assert made.counts[0] == made.counts[-1] == 1
    assert made.counts.sum() == 3


def test_folding_adds_both_signs() -> None:
    made = histogram([1.0, -1.0, 0.26, -0.26, 0.26])
    folded = made.folded()
    assert len(folded) == BINS // 2
    assert folded[-1] == 2 and folded[int(0.26 * BINS / 2)] == 3


def test_small_values_are_told_from_zeros() -> None:
    extremes = histogram([0.0, 1e-6, 1e-7, 1.0, 2.0]).extremes
    assert (extremes.largest, extremes.small_share) == (2.0, 0.5)
    assert histogram([0.0]).extremes == (0.0, 0.0)


def test_every_activation_of_a_network_is_observed() -> None:
    network, x = residual_network(), images(23)
    told: list[int] = []
    found = observe(
        network,
        lambda size: ({"x": x[k : k + size]} for k in range(0, len(x), size)),
        path=Path("net.onnx"), threads=1, advance=told.append,
    )  # fmt: skip
    expected = activations(network, x)
    assert set(found) == set(expected) == {"x", "c1", "r1", "p1", "c2", "r2", "s", "m", "y"}
    for name, values in expected.items():
        assert (found[name].low, found[name].high) == (
            min(0, float(values.min())), max(0, float(values.max())),
        )  # fmt: skip
        assert found[name].total == values.size
    assert sum(told) == 23


def test_runs_are_small_where_activations_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    x = images(12)

    def feeds(size: int):
        sizes.append(size)
        return ({"x": x[k : k + size]} for k in range(0, len(x), size))

    one = sum(v.nbytes for name, v in activations(residual_network(), x[:1]).items() if name != "x")
    monkeypatch.setattr(histograms, "RUN_BYTES", 5 * one)
    observe(residual_network(), feeds, path=Path("net.onnx"), threads=1)
    assert sizes == [1, 5]


@pytest.mark.parametrize(("x", "kind"), [(-1.0, "nan"), (1e30, "inf")])
def test_an_activation_that_is_not_finite_names_node_and_image(x: float, kind: str) -> None:
    network = model([node("Sqrt", "x", "a"), node("Mul", "a huge", "y")], {"huge": scalar(3e38)})
    batch = np.ones((7, 4), np.float32) * 1e-3
    batch[4, 2] = x
    wrong = "a" if kind == "nan" else "y"
    with pytest.raises(CalibrationError, match=f"node node_{wrong} .* gives {kind} for .*image 4"):
        observe(network, lambda _: [{"x": batch}], path=Path("net.onnx"), threads=1)


def test_an_input_that_is_not_finite_is_named() -> None:
    x = images(2)
    x[1, 0, 3, 3] = np.nan
    with pytest.raises(CalibrationError, match="the preprocessing gives nan for calibration im"):
        observe(residual_network(), lambda _: [{"x": x}], path=Path("net.onnx"), threads=1)


def test_stored_histograms_come_back(tmp_path: Path) -> None:
    found = {"a": histogram(normal(99)), "zero": histogram([0.0, 0.0]), "one": histogram([5.0])}
    save_histograms(tmp_path / "cache", KEY, found, samples=3)
    again = load_histograms(tmp_path / "cache", KEY)
    assert again is not None and set(again) == set(found)
    for name, made in again.items():
        np.testing.assert_array_equal(made.counts, found[name].counts)
        assert vars(made).keys() == vars(found[name]).keys()
        assert all(vars(made)[k] == v for k, v in vars(found[name]).items() if k != "counts")


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": ("d" * 64,)}, {"model_sha256": ("a" * 64, "a" * 64)},
        {"data_sha256": "d" * 64}, {"preprocessing_sha256": "d" * 64}, {"tools": "onnx 0.1"},
    ],
)  # fmt: skip
def test_histograms_of_something_else_are_not_taken(tmp_path: Path, change: dict) -> None:
    save_histograms(tmp_path, KEY, {"a": histogram([1.0])}, samples=1)
    assert load_histograms(tmp_path, KEY.model_copy(update=change)) is None
    # Nor under the name of the other one.
    other = KEY.model_copy(update=change)
    (tmp_path / KEY.file_name).rename(tmp_path / other.file_name)
    assert load_histograms(tmp_path, other) is None


def edited(content: str, edit: str) -> bytes:
    stored = json.loads(content)
    if edit == "truncated":
        return content[:-40].encode()
    if edit == "not text":
        return b"\xff\xfe\x00"
    if edit == "other counts":
        stored["tensors"]["a"]["counts"][0] += 1
    if edit == "beyond the bins":
        stored["tensors"]["a"]["first"] = BINS
    if edit == "other bins":
        stored["bins"] = 128
    if edit == "other format":
        stored["format"] = "tinysaver.histograms/0"
    return json.dumps(stored).encode()


@pytest.mark.parametrize(
    "edit",
    ["truncated", "not text", "other counts", "beyond the bins", "other bins", "other format"],
)
def test_a_damaged_cache_counts_as_absent(tmp_path: Path, edit: str) -> None:
    path = save_histograms(tmp_path, KEY, {"a": histogram([1.0, 2.0])}, samples=1)
    path.write_bytes(edited(path.read_text(), edit))
    assert load_histograms(tmp_path, KEY) is None


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CalibrationError, match="cannot be written"):
        save_histograms(tmp_path / "file" / "cache", KEY, {}, samples=1)


def test_shapes_and_integers_are_no_activations() -> None:
    network = model(
        [node("Shape", "x", "size"), node("Reshape", "x size", "flat"), node("Relu", "flat", "y")],
        {},
    )
    assert isinstance(network, onnx.ModelProto)
    x = np.ones((2, 4), np.float32)
    assert set(observe(network, lambda _: [{"x": x}], path=Path("n"), threads=1)) == {
        "x", "flat", "y",
    }  # fmt: skip
