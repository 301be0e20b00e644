"""Sources come with all headers they include, and a hash that moves with any of them."""

from __future__ import annotations

import re

import pytest

from kernels import sources
from kernels.errors import KernelError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "top.cu").write_text('#include "upper.cuh"\n  # include "side.cuh"\nint x;\n')
    (tmp_path / "upper.cuh").write_text('#pragma once\n#include "lower.cuh"\n')
    (tmp_path / "side.cuh").write_text('#pragma once\n#include "lower.cuh"\n')
    (tmp_path / "lower.cuh").write_text("#pragma once\n")
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    return tmp_path


def test_headers_of_headers_are_found_once_and_in_order(folder):
    source = sources.load_source("top")
    assert source.name == "top.cu"
    assert source.text == (folder / "top.cu").read_text()
    assert source.headers == (
        ("lower.cuh", "#pragma once\n"),
        ("side.cuh", '#pragma once\n#include "lower.cuh"\n'),
        ("upper.cuh", '#pragma once\n#include "lower.cuh"\n'),
    )


@pytest.mark.parametrize("name", ["top.cu", "upper.cuh", "side.cuh", "lower.cuh"])
def test_the_hash_moves_with_every_file(folder, name):
    before = sources.load_source("top").sha256
    path = folder / name
    path.write_text(path.read_text() + "\n")
    assert sources.load_source("top").sha256 != before


def test_the_hash_keeps_names_and_texts_apart():
    one = sources.Source("a.cu", "b", (("c", "d"),))
    assert one.sha256 != sources.Source("a.cu", "bc", (("", "d"),)).sha256
    assert one.sha256 != sources.Source("a.cu", "b", (("cd", ""),)).sha256


def test_an_unknown_module_is_refused_with_the_known_ones(folder):
    with pytest.raises(ValueError, match="module: expected one of top, got 'gat'"):
        sources.load_source("gat")


def test_a_missing_header_says_to_install_again(folder):
    (folder / "lower.cuh").unlink()
    with pytest.raises(KernelError, match=r"lower.cuh: cannot be read .*Install tinysaver-runtime"):
        sources.load_source("top")


def test_the_package_has_its_modules_and_they_include_nothing_but_its_headers():
    assert {"gate", "gather", "scatter", "select"} <= set(sources.module_names())
    for module in sources.module_names():
        source = sources.load_source(module)
        for text in (source.text, *(text for _, text in source.headers)):
            assert not re.search(r"^\s*#\s*include\s*<", text, re.MULTILINE), module
