"""Thresholds for forms that a bundle has none for: forecast, written, certified later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from calibration.combinations import choose_thresholds
from calibration.recorded import Claim, load_recorded, starting_path, starting_setting
from calibration.threshold import main
from runtime.bundle import load_bundle, save_spec
from runtime.schema import Combination, Setting, ThresholdPath

Invoke = Callable[..., Result]
World = Any


@pytest.fixture
def ready(world: World) -> World:
    world.make_bundle("tiny", "large")
    world.record("selection")
    return world


def without_settings(world: World) -> None:
    spec = load_bundle(world.bundle).spec
    save_spec(world.bundle, spec.model_copy(update={"settings": {}}))


def forecast(invoke: Invoke, world: World, *options: object, code: int = 0) -> Result:
    return invoke(
        main, world.bundle, "--records", world.records / "selection", "--forecast",
        "--epsilon", 0.02, "--size", 1500, "--draws", 5, *options, code=code,
    )  # fmt: skip


def test_a_forecast_is_written_only_when_asked(invoke: Invoke, ready: World) -> None:
    without_settings(ready)
    forecast(invoke, ready)
    assert load_bundle(ready.bundle).spec.settings == {}
    shown = forecast(invoke, ready, "--write").stdout
    setting = load_bundle(ready.bundle).spec.settings["fp32/fp32"]
    assert f"{setting.thresholds[0]:.4f}" in shown and setting.certificate is None
    assert setting.path == ThresholdPath()


def test_a_forecast_does_not_replace_a_certificate(invoke: Invoke, ready: World) -> None:
    ready.record("certificate")
    invoke(main, ready.bundle, "--records", ready.records / "certificate",
           "--data", ready.data("certificate"), "--epsilon", 0.02)  # fmt: skip
    before = (ready.bundle / "cascade.json").read_bytes()
    assert "are certified; a forecast" in forecast(invoke, ready, "--write", code=1).stderr
    assert (ready.bundle / "cascade.json").read_bytes() == before


def test_write_goes_with_forecast_only(invoke: Invoke, ready: World) -> None:
    result = invoke(main, ready.bundle, "--records", ready.records / "selection", "--write", code=2)
    assert "--write goes with --forecast" in result.stderr


def test_certifying_forms_without_a_setting_says_how_to_begin(invoke: Invoke, ready: World) -> None:
    without_settings(ready)
    ready.record("certificate")
    result = invoke(main, ready.bundle, "--records", ready.records / "certificate",
                    "--data", ready.data("certificate"), code=1)  # fmt: skip
    assert "--forecast --write" in result.stderr


def test_a_start_is_taken_from_the_nearest_setting(ready: World) -> None:
    spec = load_bundle(ready.bundle).spec
    forms = ("fp16", "fp16")
    own = Setting(thresholds=(0.3,), path=ThresholdPath(points=7))
    without_path = Setting(thresholds=(0.4,))
    fp32 = spec.settings["fp32/fp32"]
    assert fp32.path

    def with_settings(**settings: Setting):
        return spec.model_construct(
            **{**dict(spec), "settings": {k.replace("_", "/"): v for k, v in settings.items()}}
        )

    both = with_settings(fp32_fp32=fp32, fp16_fp16=own)
    assert (starting_setting(both, forms).thresholds, starting_path(both, forms)) == (
        (0.3,),
        own.path,
    )
    partly = with_settings(fp32_fp32=fp32, fp16_fp16=without_path)
    assert starting_setting(partly, forms) == Setting(thresholds=(0.4,), path=fp32.path)
    only = with_settings(fp32_fp32=fp32)
    assert starting_setting(only, forms) == Setting(thresholds=fp32.thresholds, path=fp32.path)
    assert starting_setting(with_settings(), forms) == Setting(
        thresholds=(1.0,), path=ThresholdPath()
    )


def test_forms_of_a_combination_are_forecast_with_it(ready: World) -> None:
    """One that loses more than epsilon at the first point leaves nothing to promise."""
    recorded = load_recorded(load_bundle(ready.bundle), ready.records / "selection")
    spec, claim = recorded.bundle.spec, Claim(0.02, 0.0125, "wsr")

    def note(weight: float) -> str:
        combined = spec.model_copy(update={"combination": Combination(stage="tiny", weight=weight)})
        found = choose_thresholds(
            combined, recorded.forms, recorded.logits, recorded.labels, claim, size=1500
        )
        return found.note

    assert note(0.01) == ""
    assert note(50.0) == "nothing can be promised: all is escalated"
