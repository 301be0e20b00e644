"""Bytes that kernels move, counted by the CPU emulation, and the tables made of them."""

from __future__ import annotations

import pytest

from tests.budgets import tables
from tests.budgets.traffic import GATES, PREPROCESS, Traffic, all_traffic, gate
from tests.cuda_cpu.build import COMPILER, has_compiler
from tests.kernels.gate_cases import Case

REFRESH = "docs/kernels.md is out of date; run: python -m tests.budgets"

pytestmark = pytest.mark.skipif(not has_compiler(), reason=f"{COMPILER} not found")


@pytest.fixture(scope="module")
def measured() -> list[Traffic]:
    return list(all_traffic())


def test_the_document_tells_what_was_counted(measured):
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    assert tables.find(text, "traffic") == tables.traffic(measured), REFRESH
    assert tables.find(text, "estimates") == tables.estimates(measured), REFRESH


def test_kernels_move_no_more_than_they_must(measured):
    assert len(measured) == len(GATES) + len(PREPROCESS) + 2
    ratios = {(item.kernel, item.case): item.counted / item.least for item in measured}
    wasteful = [name for name, ratio in ratios.items() if not 1 <= ratio <= 1.05]
    # A row that does not fit in registers is read twice; pixels of NV12 share their chroma.
    assert [kernel for kernel, _ in wasteful] == ["gate_p_norm_fp16_x256", "preprocess_fp16"]
    assert 1.8 < ratios[wasteful[0]] < 2
    assert "nv12" in wasteful[1][1]


def test_the_least_of_a_gate_by_hand():
    found = gate(Case(256, 10, "float32"))
    sent_on = int(found.case.split(", ")[2].split()[0])
    kept = 256 - sent_on
    # Logits; label, confidence and stage of each row kept; idx; count; size and index of one round.
    assert found.least == 256 * 10 * 4 + kept * 9 + sent_on * 4 + 4 + 8
    assert sent_on == 77


def test_estimates_are_bytes_over_bandwidth():
    item = Traffic("gate", "a case", 0, 1, 2_048_000)
    cells = tables.estimates([item]).splitlines()[-1].split(" | ")
    assert cells[2:5] == ["30", "20", "10"]
    assert cells[-1] == "0.61 |"
    assert "< 0.1 |" in tables.estimates([item._replace(sectors=1)])


def test_a_table_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="no table costs"):
        tables.replace("text", "costs", "")


def test_a_table_is_replaced_between_its_marks():
    text = (
        "a\n<!-- table: x -->\nold\n<!-- end of table -->\n<!-- table: y --><!-- end of table -->"
    )
    changed = tables.replace(text, "x", r"n\1w")
    assert changed == text.replace("old", r"n\1w")
    assert tables.find(changed, "x") == r"n\1w"
    assert tables.find(changed, "y") == ""
