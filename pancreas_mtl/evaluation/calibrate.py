"""Fits a calibration to cases held out from training.

Cases come in groups, such as folds. What is fitted on all of them calibrates predictions of new
cases; what is fitted on the other groups calibrates a group itself, so that its figures owe nothing
to its own references (cross-fitting).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pancreas_mtl.inference.calibration import (
    MIN_CASES,
    Calibration,
    digest_of,
    fit_temperature,
)
from pancreas_mtl.inference.postprocess import WholeScores, clean_up, labels_at
from pancreas_mtl.metrics.segmentation import dsc
from pancreas_mtl.types import FloatArray, Label, LabelArray, Triple

MIN_GAIN_DSC = 1e-4
MAX_LOSS_DSC = 1e-3  # of the whole pancreas, for the lesion's sake
LESION_BIASES = (0.0, 1.0, 2.0, 3.0, 4.0)
MASK_TEMPERATURES = tuple(2 ** (eighth / 8) for eighth in range(-16, 25))  # over the same range
UNCERTAIN = 0.01  # of pancreas or lesion, from which a voxel counts for the mask's temperature
MAX_VOXELS = 20_000  # of them per case


class MaskScores(NamedTuple):
    """The DSC of one mask, and what keeping only the largest component adds to each.

    `gain_lesion_within` is what it adds to the lesion where the pancreas has been cleaned already.
    """

    whole_pancreas: float
    lesion: float
    gain_pancreas: float
    gain_lesion: float
    gain_lesion_within: float


@dataclass(frozen=True)
class HeldOut:
    """One case, as predicted by a model that had not been trained on it; None where not known.

    `probabilities` are those of the subtype, without temperature; `masks` are scored with each of
    LESION_BIASES; `mask_log_loss` is the mean over voxels at each of MASK_TEMPERATURES.
    """

    name: str
    group: str
    subtype: int | None = None
    probabilities: tuple[float, ...] | None = None
    masks: tuple[MaskScores, ...] | None = None
    mask_log_loss: tuple[float, ...] | None = None


def fit(cases: Sequence[HeldOut], *, coverage: float, kind: str) -> Calibration:
    """Fit everything; each part to the cases that have what it needs.

    Args:
        cases: held out from the model, or each from one of several.
        coverage: that the conformal sets state.
        kind: of cases, for the record.
    """
    known = sorted(
        (c.name, c.probabilities, c.subtype)
        for c in cases
        if c.subtype is not None and c.probabilities is not None
    )
    answers = tuple((tuple(map(float, each)), int(subtype)) for _, each, subtype in known)
    probabilities = np.array([each for each, _ in answers], dtype=np.float32)
    subtypes = np.array([subtype for _, subtype in answers], dtype=np.int64)
    masks = [c.masks for c in cases if c.masks is not None]
    bias = fit_lesion_bias(masks)
    chosen = [each[LESION_BIASES.index(bias)] for each in masks]
    cleans = _worth_it([mask.gain_pancreas for mask in chosen])
    return Calibration(
        subtype_temperature=fit_temperature(probabilities, subtypes),
        mask_temperature=fit_mask_temperature(c.mask_log_loss for c in cases),
        lesion_bias=bias,
        largest_pancreas=cleans,
        largest_lesion=_worth_it(
            [mask.gain_lesion_within if cleans else mask.gain_lesion for mask in chosen]
        ),
        coverage=coverage,
        conformity=tuple(sorted(each[subtype] for each, subtype in answers)),
        fitted_on=f"{len(cases)} {kind} cases",
        answers=answers,
        cases=digest_of(name for name, _, _ in known),
    )


def cross_fit(cases: Sequence[HeldOut], *, coverage: float, kind: str) -> dict[str, Calibration]:
    """The calibration of each group, fitted on all others; a single group gets one of nothing."""
    groups = dict.fromkeys(case.group for case in cases)
    return {
        group: fit([c for c in cases if c.group != group], coverage=coverage, kind=kind)
        for group in groups
    }


def fit_mask_temperature(curves: Iterable[Sequence[float] | None]) -> float:
    """The one of MASK_TEMPERATURES with the least mean log loss; 1 without any case."""
    known = [curve for curve in curves if curve is not None]
    return MASK_TEMPERATURES[int(np.mean(known, axis=0).argmin())] if known else 1.0


def fit_lesion_bias(masks: Sequence[Sequence[MaskScores]]) -> float:
    """The one of LESION_BIASES with the largest mean lesion DSC; 0 for too few cases.

    One that costs the whole pancreas more than MAX_LOSS_DSC is not considered.

    Args:
        masks: of each case, its scores with each of LESION_BIASES.
    """
    if len(masks) < MIN_CASES:
        return 0.0
    whole, lesion = np.mean(masks, axis=0)[:, :2].T  # (biases,) each
    allowed = whole >= whole[0] - MAX_LOSS_DSC
    return LESION_BIASES[int(np.where(allowed, lesion, -1).argmax())]


def _worth_it(gains: Sequence[float]) -> bool:
    """Whether a clean-up raises the mean DSC, as nnU-Net decides it; not for too few cases."""
    return len(gains) >= MIN_CASES and float(np.mean(gains)) > MIN_GAIN_DSC


def lesion_from(logits: FloatArray, shape: Triple, orders: Triple) -> LabelArray:
    """Which of LESION_BIASES makes a voxel lesion: the first one's index, their number if none.

    Args:
        logits: (C, d, h, w) at the plan's spacing.
        shape: `(D, H, W)` of the answer, in the source's grid.
        orders: spline order per axis.
    """
    first = np.full(shape, len(LESION_BIASES), np.uint8)
    for index, bias in reversed(list(enumerate(LESION_BIASES))):
        labels = labels_at([WholeScores(logits, bias)], shape, orders=[orders])
        first[labels == Label.LESION] = index
    return first


def biased(labels: LabelArray, first: npt.NDArray[Any], bias: float) -> LabelArray:
    """Labels without a bias, changed by one of LESION_BIASES; `first` is `lesion_from`'s."""
    more: LabelArray = np.where(first <= LESION_BIASES.index(bias), np.uint8(Label.LESION), labels)
    return more


def score_masks(
    prediction: LabelArray, first: npt.NDArray[Any], reference: LabelArray
) -> tuple[MaskScores, ...]:
    """The scores of a case with each of LESION_BIASES; `first` is `lesion_from`'s."""
    return tuple(_score(biased(prediction, first, bias), reference) for bias in LESION_BIASES)


def _score(prediction: LabelArray, reference: LabelArray) -> MaskScores:
    def whole(labels: LabelArray) -> float:
        return dsc(labels > 0, reference > 0)

    def lesion(labels: LabelArray) -> float:
        return dsc(labels == Label.LESION, reference == Label.LESION)

    largest = clean_up(prediction, largest_pancreas=True, largest_lesion=False)
    largest_lesion = clean_up(prediction, largest_pancreas=False, largest_lesion=True)
    both = clean_up(largest, largest_pancreas=False, largest_lesion=True)
    return MaskScores(
        whole(prediction),
        lesion(prediction),
        gain_pancreas=whole(largest) - whole(prediction),
        gain_lesion=lesion(largest_lesion) - lesion(prediction),
        gain_lesion_within=lesion(both) - lesion(largest),
    )


def mask_log_losses(logits: FloatArray, reference: LabelArray) -> tuple[float, ...] | None:
    """The mean log loss at each of MASK_TEMPERATURES, over voxels that may be pancreas or lesion.

    Which voxels count follows from the prediction alone, so that the fit stays honest; None where
    no voxel does.

    Args:
        logits: (C, d, h, w).
        reference: (d, h, w) labels.
    """
    shifted = logits - logits.max(axis=0)
    probabilities = np.exp(shifted)
    background = probabilities[Label.BACKGROUND] / probabilities.sum(axis=0)
    at = np.flatnonzero(background < 1 - UNCERTAIN)
    if len(at) == 0:
        return None
    if len(at) > MAX_VOXELS:
        at = np.random.default_rng(0).choice(at, MAX_VOXELS, replace=False)
    chosen = shifted.reshape(len(logits), -1)[:, at].astype(np.float64)
    own = chosen[reference.ravel()[at], np.arange(len(at))]
    losses = [
        float((np.log(np.exp(chosen / t).sum(axis=0)) - own / t).mean()) for t in MASK_TEMPERATURES
    ]
    return tuple(losses)
