"""How well two masks of one region agree.

Masks are boolean arrays `(D, H, W)` of one shape, spacing is `(D, H, W)` in millimetres.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def dsc(prediction: Mask, reference: Mask) -> float:
    """The Dice similarity coefficient, in [0, 1]; both masks empty: 1, exactly one empty: 0."""
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    if total == 0:
        return 1.0
    return 2.0 * np.count_nonzero(prediction & reference) / total
