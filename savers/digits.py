"""scikit-learn's digits: 1,797 real 8x8 scans inside the package, for experiments of minutes.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (CC BY 4.0).
"""

from __future__ import annotations

import numpy as np

from savers.dataset import SPLIT_SEED, Split
from savers.image_set import ImageSet

NAME = "digits"
TEST_SIZE = 500
SIDE = 8
CLASSES = 10


def read_digits() -> ImageSet:
    """Read the 1,297 training and 500 test images, cut by a permutation that never changes.

    Raises
    ------
    ModuleNotFoundError
        When scikit-learn is not installed; it comes with the extra ``train``.
    """
    from sklearn.datasets import load_digits

    content = load_digits()
    # Pixels are 0 to 16; 15 is the largest factor that keeps them exact in eight bits.
    images = (15 * content.images).astype(np.uint8)[..., None]
    whole = Split(images, content.target.astype(np.int32))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    train, test = whole.rows(order[TEST_SIZE:]), whole.rows(order[:TEST_SIZE])
    scaled = train.images / 255.0
    return ImageSet(NAME, train, test, float(scaled.mean()), float(scaled.std()))
