"""What the CPU can do with 8-bit numbers, by Linux's names."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.environment import dot_product_instructions


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni avx_vnni\n", "avx512_vnni"),
        ("processor : 0\nflags : fpu avx2 avx_vnni\n", "avx_vnni"),
        ("flags : fpu avx2 avx512f\n", None),
        ("flags : no_avx512_vnni avx512_vnni_not\n", None),
        ("Features\t: fp asimd asimddp\n", "asimddp"),
        ("Features : asimd asimddp i8mm\n", "i8mm"),
        ("", None),
    ],
)
def test_dot_products_are_found_by_the_whole_name(
    tmp_path: Path, text: str, found: str | None
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert dot_product_instructions(path) == found


def test_without_the_list_of_flags_there_are_none(tmp_path: Path) -> None:
    assert dot_product_instructions(tmp_path / "none") is None
