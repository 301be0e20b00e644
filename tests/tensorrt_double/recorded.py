"""Builds plans by `engines.builder` on the double of one version, and returns what it touched.

Run as a program in the environment of `wheels.environment`, it reads cases as JSON from standard
input and writes recordings to standard output.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any, NamedTuple

from tests.tensorrt_double.libraries import ROOT, run_python


class Recording(NamedTuple):
    """What one build touched and gave.

    Attributes
    ----------
    calls
        Each with the name in ``call`` and its arguments.
    missing
        Names that were asked for and that this version lacks.
    progress
        What was told while it ran.
    answer, error
        One of them.
    """

    calls: list[dict[str, Any]]
    missing: list[str]
    progress: list[dict[str, Any]]
    answer: dict[str, Any] | None
    error: str | None

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the arguments of every call of a function, or setting of a property."""
        found = [call for call in self.calls if call["call"] == name]
        return [{key: call[key] for key in call if key != "call"} for call in found]

    def names(self) -> set[str]:
        """Return every name that was called, and every enumeration member that was given."""
        values = [value for call in self.calls for value in call.values()]
        return {value for value in values if isinstance(value, str)}


def record_builds(version: str, cases: list[dict[str, Any]]) -> list[Recording]:
    """Run builds on the double of a version.

    Parameters
    ----------
    cases
        Each with a ``request`` (fields of BuildRequest) and, optionally, a ``scenario``.
    """
    from tests.tensorrt_double.wheels import environment

    program = run_python(
        "-m",
        "tests.tensorrt_double.recorded",
        environment=environment(version),
        cwd=ROOT,
        input=json.dumps(cases),
    )
    assert program.returncode == 0, program.stderr
    return [Recording(**item) for item in json.loads(program.stdout)]


def _record(case: dict[str, Any]) -> dict[str, Any]:
    import tensorrt_bindings

    from engines.build_messages import BuildRequest
    from engines.builder import build
    from engines.errors import EngineError
    from tests.tensorrt_double.building import make_module
    from tests.tensorrt_double.double import Record
    from tests.tensorrt_double.scenario import Scenario

    record, progress, answer, error = Record(), [], None, None
    scenario = Scenario(**case.get("scenario", {}))
    sys.modules["tensorrt"] = make_module(tensorrt_bindings, record, scenario)
    request = BuildRequest.model_validate_json(json.dumps(case["request"]))
    try:
        answer = build(request, lambda event: progress.append(event.model_dump()))
    except EngineError as problem:
        error = str(problem)
    return {
        "calls": record.calls,
        "missing": record.missing,
        "progress": progress,
        "answer": answer and answer.model_dump(mode="json"),
        "error": error,
    }


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old bindings use names that NumPy deprecates
        import tensorrt_bindings  # noqa: F401
    json.dump([_record(case) for case in json.load(sys.stdin)], sys.stdout)
