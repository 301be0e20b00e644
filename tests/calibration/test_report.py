"""The verb report on the small world of conftest, and the page it writes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from calibration import report_plots
from calibration.front import Single
from calibration.records import load_record, save_record
from calibration.report import main
from calibration.report_figures import Changed, Point, Trade
from calibration.report_page import SECTIONS
from calibration.report_plots import ROLES
from calibration.threshold import main as threshold
from runtime.bundle import load_bundle, save_spec

Invoke = Callable[..., Result]
World = Any
VOID = {"meta", "img", "link", "br", "use", "path"}


@pytest.fixture
def report(invoke: Invoke, world: World, tmp_path: Path) -> Callable[..., Result]:
    """Run the verb on a bundle tiny -> large, without times unless told."""
    world.make_bundle("tiny", "large")

    def run(*options: object, code: int = 0, times: bool = False) -> Result:
        quick = () if times else ("--macs-only",)
        out = ("--out", tmp_path / "report.html", "--threads", 1)
        return invoke(main, world.bundle, *quick, *out, *options, code=code)

    return run


@pytest.fixture
def page(report: Callable[..., Result], tmp_path: Path) -> Callable[..., str]:
    """Run the verb and return the page."""

    def made(*options: object, **more: bool) -> str:
        report(*options, **more)
        return (tmp_path / "report.html").read_text("utf-8")

    return made


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the plots out of the page: drawing them takes most of the time."""
    monkeypatch.setattr(report_plots, "as_svg", lambda figure, name, description: "<svg></svg>")


class Reader(HTMLParser):
    """Collects what a page refers to, its identifiers, and whether its elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.links.append(str(value))
            if name == "id":
                self.ids.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def change_spec(world: World, **changes: object) -> None:
    save_spec(world.bundle, load_bundle(world.bundle).spec.model_copy(update=changes))


def test_the_page_is_whole_and_loads_nothing(page: Callable[..., str]) -> None:
    text = page()
    read = Reader(text)
    assert read.open == []
    assert not {"script", "link", "iframe", "object"} & set(read.tags)
    assert len(set(read.ids)) == len(read.ids)
    anchors = {link.removeprefix("#") for link in read.links if link.startswith("#")}
    assert anchors <= set(read.ids)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in read.links)
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert set(SECTIONS) <= set(read.ids)
    assert {"svg", "img", "table"} <= set(read.tags)
    assert len(text) < 3e6


def test_the_page_decides_the_colours_of_the_plots(page: Callable[..., str]) -> None:
    text = page()
    plots = re.findall(r"<svg .*?</svg>", text, flags=re.S)
    assert len(plots) == 7
    for plot in plots:
        assert "var(--ink)" in plot
        assert not re.findall(r"#[0-9a-f]{6}\b(?=[;\"])", plot)
        assert 'role="img" aria-label="' in plot
    assert all(text.count(f"--{role}: #") == 2 for role in ROLES.values())
    assert "prefers-color-scheme: dark" in text


def test_the_same_records_give_the_same_plots() -> None:
    def drawn() -> str:
        figure = report_plots.agreement_plot({"large": 3, "saver": 2, "neither": 1}, "a", "b")
        return report_plots.as_svg(figure, "agreement", "Who is right")

    assert drawn() == drawn()


@pytest.mark.usefixtures("undrawn")
def test_every_plot_names_its_split_and_size(page: Callable[..., str]) -> None:
    text = page()
    figures = re.findall(r"<figure><svg.*?</figure>", text, flags=re.S)
    assert len(figures) == 7
    assert all("<figcaption>Selection split, n = 1,500." in figure for figure in figures)
    assert "Reporting only" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_test_split_is_shown_only_where_asked_for(
    report: Callable[..., Result], page: Callable[..., str], world: World
) -> None:
    shutil.copy(world.data("certificate"), world.data("test"))
    refused = report("--data", world.data("test"), code=1)
    assert "for reporting only" in refused.stderr
    text = page("--test")
    assert "Test split, n = 2,500." in text
    assert "Reporting only: nothing may be chosen from this page." in text
    assert "named test.npz" in report("--test", "--data", world.data("selection"), code=1).stderr


def test_the_certificate_split_is_refused(report: Callable[..., Result], world: World) -> None:
    result = report("--data", world.data("certificate"), code=1)
    assert "decides nothing but the certificate" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("undrawn")
def test_names_that_look_like_markup_stay_text(page: Callable[..., str], world: World) -> None:
    change_spec(world, labels=("<b>one", "two & more", '"three"'), name="<script>x</script>")
    read = Reader(text := page())
    assert "script" not in read.tags
    assert read.tags.count("b") == len(re.findall("<div><b>", text))
    assert "&lt;b&gt;one" in text
    assert read.open == []


@pytest.mark.usefixtures("undrawn")
def test_json_holds_the_numbers_of_the_page(report: Callable[..., Result]) -> None:
    found = json.loads(report("--json").stdout)
    assert found["data"] == "selection"
    assert found["n"] == 1500
    assert not found["reporting_only"]
    assert found["stages"] == ["tiny", "large"]
    assert sum(found["agreement"].values()) == 1500
    (macs,) = found["costs"]
    assert macs["unit"] == "macs"
    drop = (len(found["harmed"]) - len(found["helped"])) / 1500
    assert found["drop"] == pytest.approx(drop)
    large = next(row for row in found["models"] if row["name"] == "large")
    assert macs["in_force"]["accuracy"] == pytest.approx(large["accuracy"] - drop)
    assert set(found["scores"][0]["aurc"]) == {
        "max-softmax", "margin", "entropy", "p-norm p 2",
    }  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_plots_are_written_as_png_too(report: Callable[..., Result], tmp_path: Path) -> None:
    report("--png", tmp_path / "plots")
    found = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert found == [
        "agreement.png", "confidence-large.png", "confidence-tiny.png", "cost-macs.png",
        "gates.png", "harmed.png", "scores-tiny.png",
    ]  # fmt: skip
    heads = {path.read_bytes()[:8] for path in (tmp_path / "plots").iterdir()}
    assert heads == {b"\x89PNG\r\n\x1a\n"}


@pytest.mark.usefixtures("undrawn")
def test_times_are_measured_once_and_read_from_their_file(
    report: Callable[..., Result], page: Callable[..., str], tmp_path: Path
) -> None:
    options = ("--costs", tmp_path / "costs.json", "--batch", 2)
    text = page(*options, times=True)
    assert "By measured time" in text
    assert "as fast as large alone, measured here" in text
    written = (tmp_path / "costs.json").read_bytes()
    assert page(*options, times=True) == text
    assert (tmp_path / "costs.json").read_bytes() == written
    refused = report("--costs", tmp_path / "costs.json", "--batch", 3, times=True, code=1)
    assert "batch" in refused.stderr


@pytest.mark.usefixtures("undrawn")
def test_absent_records_are_made_and_others_left_alone(
    report: Callable[..., Result], world: World
) -> None:
    folder = world.record("selection")
    (folder / "middle.npz").unlink()
    before = (folder / "tiny.npz").read_bytes()
    report("--records", folder)
    assert (folder / "tiny.npz").read_bytes() == before
    assert load_record(folder / "middle.npz").meta.model == "middle"


@pytest.mark.usefixtures("undrawn")
def test_without_records_nothing_is_left_behind(
    report: Callable[..., Result], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report()
    assert not world.records.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"zoo", "report.html"}


@pytest.mark.usefixtures("undrawn")
def test_records_of_another_model_are_refused(report: Callable[..., Result], world: World) -> None:
    folder = world.record("selection")
    record = load_record(folder / "tiny.npz")
    other = record.meta.model_copy(update={"model_sha256": "0" * 64})
    save_record(folder / "tiny.npz", type(record)(record.logits, record.labels, other))
    assert "of another model" in report("--records", folder, code=1).stderr


@pytest.mark.usefixtures("undrawn")
def test_labels_outside_the_classes_are_refused(
    report: Callable[..., Result], world: World
) -> None:
    with np.load(world.data("selection")) as stored:
        images, labels = stored["images"], stored["labels"] + 1
    np.savez(world.data("selection"), images=images, labels=labels)
    assert "expected labels from 0 to 2" in report(code=1).stderr


@pytest.mark.usefixtures("undrawn")
def test_data_that_do_not_fit_the_bundle_are_refused(
    report: Callable[..., Result], world: World
) -> None:
    np.savez(world.data("odd"), images=np.zeros((3, 5, 5, 1), np.uint8), labels=np.zeros(3, int))
    assert "expected [4, 3, 1]" in report("--data", world.data("odd"), code=1).stderr


@pytest.mark.usefixtures("undrawn")
def test_a_pool_may_lie_elsewhere_or_be_absent(page: Callable[..., str], world: World) -> None:
    assert "<td>middle</td>" in page()
    for card in world.pool.glob("*.json"):
        card.unlink()
    text = page()
    assert "<td>middle</td>" not in text
    assert "<td>large</td>" in text


@pytest.mark.usefixtures("undrawn")
def test_without_a_certificate_nothing_is_promised(page: Callable[..., str]) -> None:
    text = page()
    assert "Nothing is promised: not certified." in text


def test_a_certificate_is_said_in_plain_words(
    page: Callable[..., str], invoke: Invoke, world: World
) -> None:
    page()
    invoke(
        threshold, world.bundle, "--records", world.record("certificate"), "--data",
        world.data("certificate"), "--epsilon", 0.03, "--delta", 0.05,
        "--allow-unknown-provenance",
    )  # fmt: skip
    certificate = load_bundle(world.bundle).spec.settings["fp32/fp32"].certificate
    assert certificate
    text = page().replace("&nbsp;", " ").replace("&#x27;", "'")
    assert "at most 3 points below that of large alone" in text
    assert "With a confidence of 95.00 % (epsilon 0.03, delta 0.05)" in text
    assert f"on {certificate.harm:,} only large was right (harm)" in text
    assert f"on {certificate.help:,} only the cascade (help)" in text
    assert "n = 2,500 labelled images" in text
    assert "It covers exactly the cascade of this report." in text
    assert ">certified</text>" in text


@pytest.mark.usefixtures("undrawn")
def test_a_cascade_that_does_not_pay_is_called_so(page: Callable[..., str], world: World) -> None:
    spec = load_bundle(world.bundle).spec
    key = "fp32/fp32"
    change_spec(world, settings={key: spec.settings[key].model_copy(update={"thresholds": (1.0,)})})
    text = page()
    assert "here the cascade does not pay" in text
    assert "No image is harmed." in text


def test_the_bundle_must_exist(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke(main, tmp_path / "nowhere", code=1)
    assert "Give the folder of a bundle" in result.stderr


def test_missing_data_are_asked_for(report: Callable[..., Result], world: World) -> None:
    world.data("selection").unlink()
    assert "Pass the selection split as --data NPZ" in report(code=1).stderr


def test_without_matplotlib_the_extra_is_named(
    report: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'tinysaver-runtime[plot]'" in report(code=1).stderr


def test_of_many_classes_those_with_changes_are_drawn() -> None:
    harmed, helped = np.array([0, 1, 2]), np.array([3])
    changed = Changed(harmed, helped, np.zeros(4, np.int32), np.zeros(4, np.int8))
    truth = np.array([90, 90, 7, 55], np.int32)
    names = [f"class {label} of $1" for label in range(100)]
    svg = report_plots.as_svg(report_plots.classes_plot(changed, truth, names), "c", "Classes")
    drawn = re.findall(r">class (\d+) of \$1<", svg)
    assert len(drawn) == report_plots.CLASSES
    assert {"90", "7", "55"} <= set(drawn)


def test_crowded_models_are_named_without_overlap() -> None:
    crowd = [Single(f"model-{place}", 1e6 * 1.02**place, 0.9 + place / 1000) for place in range(9)]
    singles = [Single("tiny", 1e5, 0.5), *crowd, Single("large", 1e8, 0.95)]
    curve = np.array([[1e8, 0.95], [1e5, 0.5]])
    trade = Trade("macs", singles, singles, curve, {}, Point(1e7, 0.94), [])
    svg = report_plots.as_svg(report_plots.trade_plot(trade, "tiny → large", "certified"), "t", "")
    named = re.findall(r">(tiny|large|model-\d)<", svg)
    assert {"tiny", "large"} <= set(named)
    assert 3 <= len(named) < len(singles)
