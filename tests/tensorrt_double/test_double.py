"""The double is as strict as the real classes of each version, and has nothing that none has."""

from __future__ import annotations

import importlib
import json

import pytest

from tests.tensorrt_double.libraries import ROOT, run_python
from tests.tensorrt_double.wheels import VERSIONS, environment

pytestmark = pytest.mark.slow  # downloads the bindings on first use

LACKING = [
    "trt.FooBar",
    "builder.foo_bar",
    "setattr(config, 'foo_bar', 1)",
    "trt.BuilderFlag.FOO",
]
WRONG = [
    "config.set_flag(0)",
    "config.set_flag(flags=trt.BuilderFlag.TF32)",
    "config.set_flag()",
    "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5)",
    "builder.create_network('1')",
    "config.add_optimization_profile(network)",
    "config.set_flag(trt.DataType.FLOAT)",
    "trt.Builder()",
    "trt.Builder(None)",
    "setattr(config, 'DLA_core', 'zero')",
]
FIXED = ["setattr(builder, 'num_DLA_cores', 1)", "setattr(config, 'set_flag', None)"]
RIGHT = {
    "config.set_flag(trt.BuilderFlag.TF32)": "None",
    "config.clear_flag(flag=trt.BuilderFlag.TF32)": "None",
    "setattr(config, 'DLA_core', 1), config.DLA_core": "(None, 1)",
    "builder.create_optimization_profile().set_shape('x', (1,), trt.Dims((1,)), [1])": "None",
    "network.num_inputs": "0",
    "trt.OnnxParser(network, logger).num_errors": "0",
    "trt.init_libnvinfer_plugins(logger, '')": "True",
}

PROGRAM = """
import inspect, json, sys
import tensorrt as trt
import tensorrt_bindings
from tests.tensorrt_double import building, configuring, executing

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        pass

logger = Logger()
builder = trt.Builder(logger)
network, config = builder.create_network(1), builder.create_builder_config()

def outcome(attempt):
    try:
        return repr(eval(attempt))
    except Exception as error:
        return type(error).__name__ + ": " + str(error)

def members(item):
    real = getattr(tensorrt_bindings, item.native, None)  # of TensorRT-RTX alone
    public = [name for name in dir(item) if not name.startswith("_") and name != "native"]
    return {f"{item.native}.{name}": hasattr(real, name) for name in public}

natives = {item for module in (building, configuring, executing)
           for _, item in inspect.getmembers(module, inspect.isclass) if hasattr(item, "native")}
outcomes = {attempt: outcome(attempt) for attempt in json.load(sys.stdin)}
held = {name: has for item in natives for name, has in members(item).items()}
json.dump({"outcomes": outcomes, "missing": trt.record.missing, "held": held}, sys.stdout)
"""


@pytest.fixture(scope="module")
def tried():
    """What came of all attempts on a version; each version runs once."""
    done = {}

    def on(version):
        if version not in done:
            attempts = json.dumps([*LACKING, *WRONG, *FIXED, *RIGHT, "config.max_workspace_size"])
            program = run_python(
                "-c", PROGRAM, environment=environment(version), cwd=ROOT, input=attempts
            )
            assert program.returncode == 0, program.stderr
            done[version] = json.loads(program.stdout)
        return done[version]

    return on


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_version_lacks_raises_and_is_recorded(tried, version):
    outcomes, missing = tried(version)["outcomes"], tried(version)["missing"]
    assert all(outcomes[name].startswith("AttributeError: ") for name in LACKING), outcomes
    lacking = ["FooBar", "Builder.foo_bar", "IBuilderConfig.foo_bar", "BuilderFlag.FOO"]
    removed = [] if version == "8.6.1" else ["IBuilderConfig.max_workspace_size"]
    assert missing == lacking + removed


def test_what_the_real_class_has_and_the_double_lacks_says_so(tried):
    outcome = tried("8.6.1")["outcomes"]["config.max_workspace_size"]
    assert outcome.startswith("NotImplementedError: the double of IBuilderConfig has no ")


@pytest.mark.parametrize("version", VERSIONS)
def test_wrong_arguments_raise(tried, version):
    outcomes = tried(version)["outcomes"]
    assert {name: outcomes[name] for name in WRONG if "TypeError: " not in outcomes[name]} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_cannot_be_set_is_not_set(tried, version):
    outcomes = tried(version)["outcomes"]
    assert all("AttributeError: " in outcomes[name] for name in FIXED), outcomes


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_right_is_done(tried, version):
    outcomes = tried(version)["outcomes"]
    assert {name: outcomes[name] for name in RIGHT} == RIGHT


def test_every_member_of_a_double_is_a_member_of_the_real_class_in_some_version(tried):
    held = [tried(version)["held"] for version in VERSIONS]
    assert held[0]
    invented = {name for name in held[0] if not any(item[name] for item in held)}
    assert {name for name in invented if not of_tensorrt_rtx(name)} == set()


def of_tensorrt_rtx(name):
    owner, member = name.split(".")
    return hasattr(getattr(importlib.import_module("tensorrt_rtx"), owner), member)
