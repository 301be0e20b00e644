"""Write tables of docs/kernels.md anew: ``python -m tests.budgets [TABLE ...]``, by default all.

All take about two minutes of two CPUs. The tables are named in the document's comments.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from kernels.prebuilt import ARCHITECTURES
from tests.budgets import tables
from tests.budgets.builds import build_all, jobs
from tests.budgets.traffic import Traffic, all_traffic


@functools.cache
def measured() -> tuple[Traffic, ...]:
    """Return what the emulation counts."""
    return tuple(all_traffic())


def resources(cuda: int) -> str:
    """Return the table of a CUDA major."""
    return tables.resources(list(build_all(jobs(cuda))))


MAKERS: dict[str, Callable[[], str]] = {
    "budgets": tables.budgets,
    "traffic": lambda: tables.traffic(measured()),
    "estimates": lambda: tables.estimates(measured()),
    **{f"resources-{cuda}": functools.partial(resources, cuda) for cuda in ARCHITECTURES},
}


def main(names: list[str]) -> None:
    """Make the tables, then replace them in the document."""
    unknown = [name for name in names if name not in MAKERS]
    if unknown:
        sys.exit(f"tables: expected some of {', '.join(MAKERS)}, got {', '.join(unknown)}")
    made = {}
    for name in names or MAKERS:
        print(f"making {name}", file=sys.stderr)
        made[name] = MAKERS[name]()
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    for name, table in made.items():
        text = tables.replace(text, name, table)
    tables.DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
