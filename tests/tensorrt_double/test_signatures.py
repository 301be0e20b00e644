"""Docstrings of pybind11 are read, and calls held against them."""

from __future__ import annotations

import pytest

from tests.tensorrt_double.signatures import Parameter, parse

SET_SHAPE = (
    "set_shape(self: tensorrt_bindings.tensorrt.IOptimizationProfile, input: str, "
    "min: tensorrt_bindings.tensorrt.Dims, count: typing.SupportsInt = 0) -> None\n\nText (a: b)."
)
OVERLOADED = """build(*args, **kwargs)
Overloaded function.

1. build(self: trt.Builder, network: trt.INetworkDefinition) -> trt.IHostMemory

    Text.

2. build(self: trt.Builder, sizes: List[Tuple[int, int]], name: str) -> Dict[str, int]
"""


def fits(kind, value):
    return kind == "Dims" and isinstance(value, tuple)


def test_parameters_are_read_without_self_and_modules():
    (signature,) = parse(SET_SHAPE)
    assert signature.returns == "None"
    assert signature.parameters == (
        Parameter("input", "str", True),
        Parameter("min", "Dims", True),
        Parameter("count", "SupportsInt", False),
    )


def test_a_function_of_the_module_has_no_self():
    (signature,) = parse("init(logger: capsule, namespace: str) -> bool", has_self=False)
    assert [parameter.name for parameter in signature.parameters] == ["logger", "namespace"]


def test_every_overload_is_read():
    first, second = parse(OVERLOADED)
    assert first.parameters == (Parameter("network", "INetworkDefinition", True),)
    assert [item.type for item in second.parameters] == ["List[Tuple[int, int]]", "str"]
    assert second.returns == "Dict[str, int]"


@pytest.mark.parametrize("text", [None, "", "Initialize self.  See help(type(self))."])
def test_other_docstrings_have_no_signature(text):
    assert parse(text) == []


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("x", (1,)), {}),
        (("x",), {"min": (1,)}),
        (("x", (1,), 3), {}),
        ((), {"input": "x", "min": ()}),
    ],
)
def test_a_call_that_fits_is_bound_by_name(args, kwargs):
    bound = parse(SET_SHAPE)[0].bind(args, kwargs, fits)
    assert bound["input"] == "x" and isinstance(bound["min"], tuple)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        (("x",), {}, "lacks the argument min"),
        (("x", (1,), 3, 4), {}, "takes 3 argument"),
        (("x", (1,)), {"most": 3}, "unexpected keyword most"),
        (("x", (1,)), {"input": "x"}, "unexpected keyword input"),
        ((b"x", (1,)), {}, "input: expected str"),
        (("x", 1), {}, "min: expected Dims"),
        (("x", (1,), 3.0), {}, "count: expected SupportsInt"),
        (("x", (1,), True), {}, "count: expected SupportsInt"),
    ],
)
def test_a_call_that_does_not_fit_says_how(args, kwargs, words):
    with pytest.raises(TypeError, match=words):
        parse(SET_SHAPE)[0].bind(args, kwargs, fits)
