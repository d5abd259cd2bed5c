"""Lesions as objects: which are found, what is reported in vain, and at which price (FROC).

A lesion is a 26-connected component. A predicted lesion hits a reference lesion where their overlap
(intersection over union) reaches a limit; 0.1 is the rule of the PI-CAI challenge
(doi:10.5281/zenodo.6667655), for lesions whose rim is uncertain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from pancreas_mtl.metrics.surface import Mask, bounding_box

Array = npt.NDArray[np.float64]
Components = npt.NDArray[np.integer[Any]]
CONNECTED = np.ones((3, 3, 3))
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per case, as in LUNA16


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one case, or of many together."""

    reference: int
    predicted: int
    found: int  # pairs of a reference lesion and a predicted one that hits it


@dataclass(frozen=True)
class Candidates:
    """The scored candidates of one case; `lesion` is the reference lesion hit, -1 for none."""

    scores: tuple[float, ...]
    lesion: tuple[int, ...]
    num_lesions: int


@dataclass(frozen=True)
class Froc:
    """Sensitivity against false positives per case, from the highest threshold to the lowest.

    `mean_sensitivity` averages over FROC_RATES; None of it is defined without reference lesions.
    """

    thresholds: tuple[float, ...]
    false_positives_per_case: tuple[float, ...]
    sensitivity: tuple[float, ...]
    mean_sensitivity: float


def count_lesions(prediction: Mask, reference: Mask, *, min_iou: float) -> LesionCounts:
    """Match lesions one to one, as many as possible; without any lesion all counts are 0."""
    box = bounding_box(prediction | reference)
    overlaps = _overlaps(_components(prediction[box]), _components(reference[box]))
    hits = overlaps >= min_iou
    rows, columns = linear_sum_assignment(hits, maximize=True)
    return LesionCounts(hits.shape[1], hits.shape[0], int(hits[rows, columns].sum()))


def score_candidates(
    scores: npt.NDArray[np.floating], reference: Mask, *, min_iou: float
) -> Candidates:
    """The candidates of a detection map (D, H, W).

    A candidate is a 26-connected component of what is above 0; its score is its highest value. It
    hits the reference lesion with which it overlaps most, if that overlap suffices.
    """
    candidates = _components(scores > 0)
    overlaps = _overlaps(candidates, _components(reference))
    numbers = np.arange(1, len(overlaps) + 1)
    best = overlaps.argmax(axis=1) if overlaps.shape[1] else np.zeros(len(numbers), int)
    hit = np.any(overlaps >= min_iou, axis=1).tolist()
    return Candidates(
        scores=tuple(float(s) for s in ndimage.maximum(scores, candidates, numbers)),
        lesion=tuple(int(b) if h else -1 for b, h in zip(best, hit, strict=True)),
        num_lesions=overlaps.shape[1],
    )


def froc(cases: Sequence[Candidates], *, missed: int = 0) -> Froc | None:
    """The free-response curve of N cases; None without reference lesions.

    A lesion is found from the highest score among its candidates downwards; its other candidates
    count neither way. `missed` are reference lesions of further cases, which have no answer: they
    are never found, and their cases do not dilute the false positives.
    """
    num_lesions = missed + sum(case.num_lesions for case in cases)
    if num_lesions == 0:
        return None
    found = np.array([score for case in cases for score in _lesion_scores(case)])
    false = np.array(
        [s for case in cases for s, hit in zip(case.scores, case.lesion, strict=True) if hit < 0]
    )
    thresholds = np.unique(np.concatenate([found, false]))[::-1]
    sensitivity = (found >= thresholds[:, None]).sum(axis=1) / num_lesions
    rate = (false >= thresholds[:, None]).sum(axis=1) / len(cases)
    reached = [float(sensitivity[rate <= limit].max(initial=0.0)) for limit in FROC_RATES]
    return Froc(
        tuple(thresholds.tolist()),
        tuple(rate.tolist()),
        tuple(sensitivity.tolist()),
        float(np.mean(reached)),
    )


def _lesion_scores(case: Candidates) -> list[float]:
    """The highest score of each lesion that is hit."""
    best: dict[int, float] = {}
    for score, lesion in zip(case.scores, case.lesion, strict=True):
        if lesion >= 0:
            best[lesion] = max(score, best.get(lesion, 0.0))
    return list(best.values())


def _components(mask: Mask) -> Components:
    """Number the components from 1; 0 is background."""
    labels: Components = ndimage.label(mask, CONNECTED)[0]
    return labels


def _overlaps(first: Components, second: Components) -> Array:
    """The intersection over union of each component of one with each of the other, (M, K)."""
    shape = int(first.max(initial=0)) + 1, int(second.max(initial=0)) + 1
    pairs = np.ravel_multi_index((first.ravel(), second.ravel()), shape)
    joint = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    common = joint[1:, 1:]
    sizes = joint.sum(axis=1)[1:, None], joint.sum(axis=0)[None, 1:]
    overlaps: Array = common / (sizes[0] + sizes[1] - common)
    return overlaps
