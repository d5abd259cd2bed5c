"""How well subtypes are told apart, over a set of N cases at once.

References are subtypes (N,), probabilities are (N, S), predictions are (N,) with UNKNOWN for a case
without one, which is wrong whatever its subtype. Where a function takes `(..., N)`, each of the
leading axes is a set of its own, such as a resample of a bootstrap.

Absent subtypes: macro-F1 averages over all S, and a subtype that is neither present nor predicted
has F1 0. Recall and AUROC are undefined (NaN) for a subtype without cases; their means run over the
others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from pancreas_mtl.types import NUM_SUBTYPES, UNKNOWN

IntArray = npt.NDArray[np.integer[Any]]
Array = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.floating[Any]]

SUBTYPES = np.arange(NUM_SUBTYPES)
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases whose highest probability lies in one bin: how sure, and how often right."""

    n_cases: int
    confidence: float
    accuracy: float


def macro_f1(references: IntArray, predictions: IntArray) -> Array:
    """The mean F1 (...) of all S subtypes over (..., N) cases, in [0, 1]."""
    scores: Array = f1_scores(confusion_matrix(references, predictions)).mean(axis=-1)
    return scores


def balanced_probability(references: IntArray, probabilities: Probabilities) -> float:
    """The mean probability of the true subtype, averaged per subtype first; in [0, 1].

    Subtypes without cases are left out; chance gives 1/S.
    """
    own = probabilities[np.arange(len(references)), references]
    return float(np.mean([own[references == s].mean() for s in np.unique(references)]))


# Counts, and what follows from them


def confusion_matrix(references: IntArray, predictions: IntArray) -> Array:
    """Count cases (..., S, S + 1) by reference (row) and prediction (column), from (..., N) each.

    The last column holds the cases without prediction.
    """
    is_reference = (references[..., None] == SUBTYPES).astype(np.float64)  # (..., N, S)
    is_predicted = (predictions[..., None] == np.append(SUBTYPES, UNKNOWN)).astype(np.float64)
    counts: Array = np.swapaxes(is_reference, -1, -2) @ is_predicted
    return counts


def f1_scores(matrix: Array) -> Array:
    """F1 (..., S) per subtype, of a confusion matrix; 0 for one that never occurs."""
    return _ratio(2 * _hits(matrix), _cases(matrix) + _predicted(matrix), undefined=0.0)


def recalls(matrix: Array) -> Array:
    """The share (..., S) of each subtype's cases that is recognised; NaN without cases."""
    return _ratio(_hits(matrix), _cases(matrix), undefined=np.nan)


def precisions(matrix: Array) -> Array:
    """The share (..., S) of each subtype's predictions that is right; 0 without predictions."""
    return _ratio(_hits(matrix), _predicted(matrix), undefined=0.0)


def balanced_accuracy(matrix: Array) -> Array:
    """The mean recall (...) of the subtypes that have cases."""
    recall = recalls(matrix)
    present = ~np.isnan(recall)
    return _ratio(np.where(present, recall, 0).sum(-1), present.sum(-1), undefined=np.nan)


def mcc(matrix: Array) -> Array:
    """Matthews' correlation (...) for S subtypes, in [-1, 1]; 0 where either side is constant.

    Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006.
    """
    cases, predicted, total = _cases(matrix), matrix.sum(axis=-2), matrix.sum(axis=(-1, -2))
    covariance = _hits(matrix).sum(-1) * total - (cases * _predicted(matrix)).sum(-1)
    variances = (total**2 - (cases**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    return _ratio(covariance, np.sqrt(variances), undefined=0.0)


def _hits(matrix: Array) -> Array:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _cases(matrix: Array) -> Array:
    return matrix.sum(axis=-1)


def _predicted(matrix: Array) -> Array:
    return matrix[..., :NUM_SUBTYPES].sum(axis=-2)


def _ratio(top: Array, bottom: Array, *, undefined: float) -> Array:
    return np.divide(top, bottom, out=np.full(np.shape(top), undefined), where=bottom > 0)


# Probabilities


def aurocs(references: IntArray, probabilities: Probabilities) -> Array:
    """The area under the ROC curve (..., S) of each subtype against the rest, ties counting half.

    Args:
        references: `(..., N)`.
        probabilities: `(..., N, S)`.
    """
    positive = references[..., None] == SUBTYPES  # (..., N, S)
    ranks = rankdata(probabilities, axis=-2)
    num_positive = positive.sum(axis=-2)
    num_pairs = num_positive * (positive.shape[-2] - num_positive)
    rank_sum = np.where(positive, ranks, 0.0).sum(axis=-2)
    wins = rank_sum - num_positive * (num_positive + 1) / 2
    return _ratio(wins, num_pairs, undefined=np.nan)


def mean_auroc(references: IntArray, probabilities: Probabilities) -> Array:
    """The mean AUROC (...) of the subtypes that have cases and are not all there is."""
    areas = aurocs(references, probabilities)
    defined = ~np.isnan(areas)
    return _ratio(np.where(defined, areas, 0).sum(-1), defined.sum(-1), undefined=np.nan)


def brier(references: IntArray, probabilities: Probabilities) -> float:
    """The mean squared distance of (N, S) probabilities from the truth, in [0, 2]; 0 is best.

    Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    return float(squared_distances(references, probabilities).mean())


def squared_distances(references: IntArray, probabilities: Probabilities) -> Array:
    """What each case (N,) adds to the Brier score."""
    truth = references[:, None] == SUBTYPES
    distances: Array = ((probabilities - truth) ** 2).sum(axis=1)
    return distances


def reliability(references: IntArray, probabilities: Probabilities) -> list[ReliabilityBin]:
    """Sort cases into CALIBRATION_BINS of equal width by their highest probability.

    Bins are closed on the right; empty ones are left out.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == references
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    number = np.digitize(confidence, edges[1:-1], right=True)
    groups = [number == bin_ for bin_ in np.unique(number)]
    return [
        ReliabilityBin(int(g.sum()), float(confidence[g].mean()), float(right[g].mean()))
        for g in groups
    ]


def ece(references: IntArray, probabilities: Probabilities) -> float:
    """The expected calibration error of the highest probability, in [0, 1]; 0 is best.

    Over CALIBRATION_BINS bins of equal width (Guo et al. 2017, arXiv:1706.04599).
    """
    bins = reliability(references, probabilities)
    gaps = sum(abs(one.confidence - one.accuracy) * one.n_cases for one in bins)
    return gaps / len(references)
