"""Fits what a bundle may adjust after training, on cases held out from it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from pancreas_mtl.inference.bundle import Calibration
from pancreas_mtl.inference.postprocess import clean_up, with_temperature
from pancreas_mtl.metrics.segmentation import dsc
from pancreas_mtl.types import FloatArray, Label, LabelArray

MIN_GAIN_DSC = 1e-4
MIN_CASES = 10  # with fewer, a temperature would be noise
TEMPERATURES = (0.25, 8.0)


def fit_clean_up(masks: Iterable[tuple[LabelArray, LabelArray]]) -> tuple[bool, bool]:
    """Whether to keep only the largest component of the whole pancreas, and of the lesion.

    Each where it raises the mean DSC of its region, as in nnU-Net.

    Args:
        masks: pairs of prediction and reference.
    """
    gains = np.array([_gains(prediction, reference) for prediction, reference in masks])
    pancreas, lesion = gains.reshape(-1, 2).mean(axis=0) if len(gains) else (0.0, 0.0)
    return bool(pancreas > MIN_GAIN_DSC), bool(lesion > MIN_GAIN_DSC)


def _gains(prediction: LabelArray, reference: LabelArray) -> tuple[float, float]:
    """What each clean-up adds to the DSC of its region in one case."""
    whole = clean_up(prediction, largest_pancreas=True, largest_lesion=False)
    lesion = clean_up(prediction, largest_pancreas=False, largest_lesion=True)
    reference_lesion = reference == Label.LESION
    return (
        dsc(whole > 0, reference > 0) - dsc(prediction > 0, reference > 0),
        dsc(lesion == Label.LESION, reference_lesion)
        - dsc(prediction == Label.LESION, reference_lesion),
    )


def fit_temperature(probabilities: FloatArray, subtypes: npt.NDArray[np.integer]) -> float:
    """The temperature that minimises the log loss of (N, S) probabilities; 1 for too few cases."""
    if len(subtypes) < MIN_CASES:
        return 1.0

    def log_loss(log_temperature: float) -> float:
        p = with_temperature(probabilities, float(np.exp(log_temperature)))
        return float(-np.log(p[np.arange(len(subtypes)), subtypes].clip(1e-12)).mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(log_loss, bounds=(low, high), method="bounded").x))


def fit_calibration(
    masks: Iterable[tuple[LabelArray, LabelArray]],
    probabilities: FloatArray,
    subtypes: npt.NDArray[np.integer],
) -> Calibration:
    """All of it, from held-out cases; the two kinds of reference may come from different cases."""
    largest_pancreas, largest_lesion = fit_clean_up(masks)
    return Calibration(
        subtype_temperature=fit_temperature(probabilities, subtypes),
        largest_pancreas=largest_pancreas,
        largest_lesion=largest_lesion,
    )
