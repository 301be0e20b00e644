"""Small bundles, as the tests of runtime have them."""

from tests.runtime.conftest import (
    cascade_json,
    changed,
    content,
    make_bundle,
    models,
    random_frames,
    stage,
    write_bundle,
)

__all__ = [
    "cascade_json",
    "changed",
    "content",
    "make_bundle",
    "models",
    "random_frames",
    "stage",
    "write_bundle",
]
