"""Every wait of the device code is needed: without it, something is seen to go wrong."""

from __future__ import annotations

import ast

import pytest

from tests import mutants
from tests.tensorrt_double.libraries import ROOT, run_python

SOURCE = """
def work(self, stack, stream, event):
    self.stream.sync()
    if stream:
        self.device.call(event.record, stream)
    stack.callback(self.settle)
    library.call("cuStreamWaitEvent", stream, event, 0)
    node = graphs.call("cuGraphAddNode", graph, before, edges, len(before), parameters)
    self.enqueue(stream)
    waits = self.waits
    return node
"""


def test_what_waits_records_or_orders_is_found():
    found = [" ".join(ast.unparse(node).split()) for node in mutants.places(ast.parse(SOURCE))]
    assert sorted(found) == sorted(
        [
            "self.stream.sync()",
            "self.device.call(event.record, stream)",
            "stack.callback(self.settle)",
            "library.call('cuStreamWaitEvent', stream, event, 0)",
            "graphs.call('cuGraphAddNode', graph, before, edges, len(before), parameters)",
        ]
    )


def test_there_are_mutants_of_every_module_that_enqueues():
    found = mutants.find_mutants()
    idle = {"gpu_stage"}  # enqueues in streams that others wait for
    assert {mutant.module for mutant in found} == set(mutants.MODULES) - idle
    assert len(found) >= 25


def test_a_mutant_lacks_one_statement_and_nothing_else():
    for mutant in mutants.find_mutants():
        path = ROOT / "runtime" / f"{mutant.module}.py"
        before = ast.dump(ast.parse(path.read_text()), indent=0).splitlines()
        after = ast.dump(mutants.mutated(mutant), indent=0).splitlines()
        assert before != after
        assert abs(len(before) - len(after)) < 60
        compile(mutants.mutated(mutant), str(path), "exec")


@pytest.mark.slow
def test_every_mutant_is_noticed_in_ten_orders_of_streams():
    program = run_python("-m", "tests.mutants", environment={}, cwd=ROOT)
    assert program.returncode == 0, program.stdout + program.stderr
    assert program.stdout.rstrip().endswith("10 seeds: 0 not noticed")
