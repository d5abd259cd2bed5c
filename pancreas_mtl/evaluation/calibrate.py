"""Fits a calibration to cases held out from training.

Cases come in groups, such as folds. What is fitted on all of them calibrates predictions of new
cases; what is fitted on the other groups calibrates a group itself, so that its figures owe nothing
to its own references (cross-fitting).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from pancreas_mtl.inference.calibration import Calibration, with_temperature
from pancreas_mtl.inference.postprocess import clean_up
from pancreas_mtl.metrics.segmentation import dsc
from pancreas_mtl.types import FloatArray, Label, LabelArray

MIN_GAIN_DSC = 1e-4
MIN_CASES = 10  # with fewer, a temperature would be noise
LOWEST, HIGHEST = 0.25, 8.0
MASK_TEMPERATURES = tuple(2 ** (eighth / 8) for eighth in range(-16, 25))  # over the same range
UNCERTAIN = 0.01  # of pancreas or lesion, from which a voxel counts for the mask's temperature
MAX_VOXELS = 20_000  # of them per case


@dataclass(frozen=True)
class HeldOut:
    """One case, as predicted by a model that had not been trained on it; None where not known.

    `probabilities` are those of the subtype, without temperature. The gains are what keeping only
    the largest component adds to the DSC of the whole pancreas, and of the lesion.
    `mask_log_loss` is the mean over voxels at each of MASK_TEMPERATURES.
    """

    name: str
    group: str
    subtype: int | None = None
    probabilities: tuple[float, ...] | None = None
    gain_pancreas: float | None = None
    gain_lesion: float | None = None
    mask_log_loss: tuple[float, ...] | None = None


def fit(cases: Sequence[HeldOut], *, coverage: float, kind: str) -> Calibration:
    """Fit everything; each part to the cases that have what it needs.

    Args:
        cases: held out from the model, or each from one of several.
        coverage: that the conformal sets state.
        kind: of cases, for the record.
    """
    known = [
        (c.probabilities, c.subtype)
        for c in cases
        if c.subtype is not None and c.probabilities is not None
    ]
    probabilities = np.array([each for each, _ in known], dtype=np.float32)
    subtypes = np.array([subtype for _, subtype in known], dtype=np.int64)
    return Calibration(
        subtype_temperature=fit_temperature(probabilities, subtypes),
        mask_temperature=fit_mask_temperature(c.mask_log_loss for c in cases),
        largest_pancreas=_worth_it(c.gain_pancreas for c in cases),
        largest_lesion=_worth_it(c.gain_lesion for c in cases),
        coverage=coverage,
        conformity=tuple(sorted(each[subtype] for each, subtype in known)),
        fitted_on=f"{len(cases)} {kind} cases",
    )


def cross_fit(cases: Sequence[HeldOut], *, coverage: float, kind: str) -> dict[str, Calibration]:
    """The calibration of each group, fitted on all others; a single group gets one of nothing."""
    groups = dict.fromkeys(case.group for case in cases)
    return {
        group: fit([c for c in cases if c.group != group], coverage=coverage, kind=kind)
        for group in groups
    }


def fit_temperature(probabilities: FloatArray, subtypes: npt.NDArray[np.integer]) -> float:
    """The temperature that minimises the log loss of (N, S) probabilities; 1 for too few cases."""
    if len(subtypes) < MIN_CASES:
        return 1.0

    def log_loss(log_temperature: float) -> float:
        p = with_temperature(probabilities, float(np.exp(log_temperature)))
        return float(-np.log(p[np.arange(len(subtypes)), subtypes].clip(1e-12)).mean())

    low, high = np.log((LOWEST, HIGHEST))
    return float(np.exp(minimize_scalar(log_loss, bounds=(low, high), method="bounded").x))


def fit_mask_temperature(curves: Iterable[Sequence[float] | None]) -> float:
    """The one of MASK_TEMPERATURES with the least mean log loss; 1 without any case."""
    known = [curve for curve in curves if curve is not None]
    return MASK_TEMPERATURES[int(np.mean(known, axis=0).argmin())] if known else 1.0


def _worth_it(gains: Iterable[float | None]) -> bool:
    """Whether a clean-up raises the mean DSC, as nnU-Net decides it."""
    known = [gain for gain in gains if gain is not None]
    return bool(known) and float(np.mean(known)) > MIN_GAIN_DSC


def clean_up_gains(prediction: LabelArray, reference: LabelArray) -> tuple[float, float]:
    """What each clean-up adds to the DSC of its region: whole pancreas, lesion."""
    whole = clean_up(prediction, largest_pancreas=True, largest_lesion=False)
    lesion = clean_up(prediction, largest_pancreas=False, largest_lesion=True)
    reference_lesion = reference == Label.LESION
    return (
        dsc(whole > 0, reference > 0) - dsc(prediction > 0, reference > 0),
        dsc(lesion == Label.LESION, reference_lesion)
        - dsc(prediction == Label.LESION, reference_lesion),
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
