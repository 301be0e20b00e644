"""What each TensorRT is asked for, and which options it is refused, with reasons; on stand-ins.

That the names exist is shown on the real bindings, in test_build_versions.py.
"""

from __future__ import annotations

import sys
import types

import pytest

from engines.errors import EngineError
from engines.tensorrt_versions import TensorRT, load_tensorrt, refuse_flags, resolve_targets
from runtime.plans import Flags

AGX = "NVIDIA Jetson AGX Orin Developer Kit"
NANO = "NVIDIA Jetson Orin Nano Developer Kit"


def enumeration(*names):
    return types.SimpleNamespace(__members__={name: i for i, name in enumerate(names)})


def tensorrt(version, **enumerations):
    members = {
        "NetworkDefinitionCreationFlag": enumeration("STRONGLY_TYPED"),
        "HardwareCompatibilityLevel": enumeration("NONE", "AMPERE_PLUS"),
        **enumerations,
    }
    return TensorRT("tensorrt", types.SimpleNamespace(__version__=version, **members))


def rtx():
    names = enumeration("NONE", "CURRENT", "SM75", "SM120", "SM86", "SM89")
    module = types.SimpleNamespace(__version__="1.7.1.116", ComputeCapability=names)
    return TensorRT("tensorrt_rtx", module)


def refusal(library, flags, *, form="fp16", board=None):
    with pytest.raises(EngineError) as caught:
        refuse_flags(library, form, flags, board=board)
    return str(caught.value)


def test_targets_are_put_in_order_and_rtx_is_all_from_ampere_on():
    assert resolve_targets(rtx(), ["sm_89", "sm_75"]) == ("sm_75", "sm_89")
    assert resolve_targets(rtx(), ["rtx"]) == ("sm_86", "sm_89", "sm_120")
    assert resolve_targets(rtx(), ["sm_89", "rtx", "sm_75"]) == (
        "sm_75",
        "sm_86",
        "sm_89",
        "sm_120",
    )
    assert resolve_targets(tensorrt("10.3.0"), []) == ()


@pytest.mark.parametrize("target", ["sm_87", "sm_90", "89", "RTX"])
def test_an_unknown_target_is_refused_with_those_there_are(target):
    with pytest.raises(EngineError) as caught:
        resolve_targets(rtx(), [target])
    assert f"--target {target}: TensorRT-RTX 1.7.1.116 builds for sm_75, sm_86" in str(caught.value)


def test_tensorrt_rtx_counts_as_version_11_whatever_its_own_number():
    assert rtx().numbers == (11,)
    assert rtx().preview_features() == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (Flags(version_compatible=True), "--version-compatible: TensorRT-RTX 1.7.1.116 comes"),
        (Flags(hardware_compatible="ampere_plus"), "--target rtx"),
        (Flags(dla_core=0), "does not know the DLA"),
    ],
)
def test_tensorrt_rtx_refuses_what_it_cannot_do(flags, words):
    assert words in refusal(rtx(), flags)


def test_a_jetson_builds_no_plans_for_other_gpus():
    flags = Flags(hardware_compatible="ampere_plus")
    assert "not on Jetson (this is NVIDIA Jetson AGX" in refusal(
        tensorrt("10.3.0"), flags, board=AGX
    )
    refuse_flags(tensorrt("10.3.0"), "fp16", flags, board=None)


def test_a_level_that_a_version_lacks_is_refused():
    flags = Flags(hardware_compatible="same_compute_capability")
    assert "TensorRT 10.3.0 does not know it" in refusal(tensorrt("10.3.0"), flags)
    levels = enumeration("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
    newer = tensorrt("10.13.3.9", HardwareCompatibilityLevel=levels)
    refuse_flags(newer, "fp16", flags, board=None)


@pytest.mark.parametrize(
    ("version", "board"),
    [("8.6.2", NANO), ("10.3.0", AGX), ("10.7.0", AGX), ("11.4.1", AGX), ("11.4.1.12", AGX)],
)
def test_the_dla_is_used_where_it_is_supported(version, board):
    refuse_flags(tensorrt(version), "fp16", Flags(dla_core=0), board=board)


@pytest.mark.parametrize(
    ("version", "board", "words"),
    [
        ("10.8.0", AGX, "TensorRT 10.8.0 has no support for the DLA"),
        ("10.16.2", AGX, "TensorRT 10.16.2 has no support"),
        ("11.0.0.114", AGX, "no support"),
        ("11.4.0.106", AGX, "no support"),
        ("11.4.1", NANO, "of AGX Orin only; this is NVIDIA Jetson Orin Nano"),
        ("11.5.0", None, "of AGX Orin only; this is not a Jetson"),
    ],
)
def test_the_dla_is_refused_elsewhere_with_the_reason(version, board, words):
    assert words in refusal(tensorrt(version), Flags(dla_core=0), board=board)


@pytest.mark.parametrize("form", ["fp32", "int8_trt"])
def test_the_dla_takes_fp16_only(form):
    message = refusal(tensorrt("10.3.0"), Flags(dla_core=0), form=form, board=AGX)
    assert f"the DLA takes the form fp16, not {form}" in message and "calibrator" in message


def test_on_version_10_the_dla_has_fp16_as_a_flag_and_11_has_it_in_the_network():
    dla = Flags(dla_core=0)
    assert not tensorrt("10.3.0").typed(dla)
    assert tensorrt("10.3.0").builder_flags("fp16", dla) == ["FP16", "GPU_FALLBACK"]
    assert tensorrt("10.3.0").network_flags(dla) == 0
    assert tensorrt("11.4.1").builder_flags("fp16", dla) == ["GPU_FALLBACK"]
    assert tensorrt("10.3.0").typed(Flags())


def test_a_member_that_a_version_lacks_is_named():
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 has no HardwareCompatibilityLevel.X"):
        tensorrt("10.3.0").member("HardwareCompatibilityLevel", "X")


def test_without_tensorrt_the_message_says_where_it_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"TensorRT is not installed .*python3-libnvinfer"):
        load_tensorrt("tensorrt")


@pytest.mark.parametrize(
    "error",
    ["ImportError('libnvinfer.so.10: cannot open shared object file')",
     "OSError('undefined symbol: x')",
     "AttributeError('module numpy has no attribute bool')"],
)  # fmt: skip
def test_a_tensorrt_that_cannot_be_loaded_is_told_from_one_that_is_missing(
    monkeypatch, tmp_path, error
):
    (tmp_path / "tensorrt.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match="is installed but cannot be loaded: "):
        load_tensorrt("tensorrt")
