"""``import tensorrt`` gives the double; see tests/tensorrt_double/README.md.

TENSORRT_DOUBLE_RECORD names a file that what is touched is appended to, TENSORRT_DOUBLE a scenario.
"""

import os
import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # old bindings use names that NumPy deprecates
    import tensorrt_bindings

from tests.tensorrt_double.building import make_module
from tests.tensorrt_double.double import Record
from tests.tensorrt_double.scenario import Scenario

_path = os.environ.get("TENSORRT_DOUBLE_RECORD")
sys.modules["tensorrt"] = make_module(
    tensorrt_bindings, Record(Path(_path) if _path else None), Scenario.from_environment()
)
