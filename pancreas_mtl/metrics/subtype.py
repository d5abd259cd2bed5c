"""How well subtypes are told apart, over a set of N cases at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pancreas_mtl.types import NUM_SUBTYPES

IntArray = npt.NDArray[np.integer[Any]]
Array = npt.NDArray[np.float64]


def confusion_matrix(references: IntArray, predictions: IntArray) -> Array:
    """Count cases (..., S, S) by reference (row) and prediction (column), from (..., N) each."""
    classes = np.arange(NUM_SUBTYPES)
    is_reference = (references[..., None] == classes).astype(np.float64)  # (..., N, S)
    is_predicted = (predictions[..., None] == classes).astype(np.float64)
    counts: Array = np.swapaxes(is_reference, -1, -2) @ is_predicted
    return counts


def macro_f1(references: IntArray, predictions: IntArray) -> float:
    """The mean F1 of all three subtypes, in [0, 1]; an absent one that is not predicted has 0."""
    matrix = confusion_matrix(references, predictions)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    total = matrix.sum(axis=-1) + matrix.sum(axis=-2)
    f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return float(f1.mean())


def balanced_probability(references: IntArray, probabilities: npt.NDArray[np.floating]) -> float:
    """The mean probability of the true subtype, averaged per subtype first; in [0, 1].

    Subtypes without cases are left out; chance gives 1/3.
    """
    own = probabilities[np.arange(len(references)), references]
    return float(np.mean([own[references == s].mean() for s in np.unique(references)]))
