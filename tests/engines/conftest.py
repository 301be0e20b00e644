"""Small bundles, as the tests of runtime have them."""

from tests.engines.bundle_files import bundle, made, pair, refused
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
    "bundle",
    "cascade_json",
    "changed",
    "content",
    "made",
    "make_bundle",
    "models",
    "pair",
    "random_frames",
    "refused",
    "stage",
    "write_bundle",
]
