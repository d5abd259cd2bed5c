"""The masks of one case, prediction against reference, in the scanner's own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pancreas_mtl.data.images import grid_difference, read_grid, read_image, read_mask
from pancreas_mtl.errors import CaseError, LackOfMemoryError
from pancreas_mtl.metrics.lesions import (
    Candidates,
    LesionCounts,
    count_lesions,
    score_candidates,
)
from pancreas_mtl.metrics.segmentation import RegionScores, compare_masks, worst_scores
from pancreas_mtl.metrics.surface import Mask
from pancreas_mtl.types import Label, LabelArray, Volume

REGIONS: Mapping[str, Callable[[LabelArray], Mask]] = {
    "whole_pancreas": lambda labels: labels != Label.BACKGROUND,
    "pancreas": lambda labels: labels == Label.PANCREAS,
    "lesion": lambda labels: labels == Label.LESION,
}


@dataclass(frozen=True)
class ScoringJob:
    """The files of one case, and how to score them; without a prediction the worst is given."""

    name: str
    reference: Path
    prediction: Path | None
    candidates: Path | None
    nsd_tolerance_mm: float
    lesion_hit_iou: float


@dataclass(frozen=True)
class MaskScores:
    """The scores of one case; `error` says why its prediction could not be used."""

    regions: Mapping[str, RegionScores]
    lesions: LesionCounts
    candidates: Candidates | None = None
    error: str | None = None


def score_masks(job: ScoringJob) -> MaskScores:
    """Score one case; a prediction that cannot be used counts as missing.

    Raises:
        CaseError: the reference cannot be read.
    """
    reference = read_mask(job.reference)
    if job.prediction is None:
        return _worst(reference)
    try:
        labels = _on_grid(read_mask, job.prediction, reference, job.reference)
        candidates = _candidates(job, reference)
    except LackOfMemoryError:
        raise
    except CaseError as error:
        return _worst(reference, error=str(error))
    masks = {name: (region(labels), region(reference.array)) for name, region in REGIONS.items()}
    return MaskScores(
        regions={
            name: compare_masks(*pair, reference.spacing_mm, tolerance_mm=job.nsd_tolerance_mm)
            for name, pair in masks.items()
        },
        lesions=count_lesions(*masks["lesion"], min_iou=job.lesion_hit_iou),
        candidates=candidates,
    )


def _candidates(job: ScoringJob, reference: Volume) -> Candidates | None:
    if job.candidates is None:
        return None
    scores = _on_grid(read_image, job.candidates, reference, job.reference)
    lesion = REGIONS["lesion"](reference.array)
    return score_candidates(scores, lesion, min_iou=job.lesion_hit_iou)


def _worst(reference: Volume, *, error: str | None = None) -> MaskScores:
    regions = {name: region(reference.array) for name, region in REGIONS.items()}
    nothing = np.zeros_like(regions["lesion"])
    return MaskScores(
        regions={name: worst_scores(mask, reference.spacing_mm) for name, mask in regions.items()},
        lesions=count_lesions(nothing, regions["lesion"], min_iou=1.0),
        error=error,
    )


def _on_grid(
    read: Callable[[Path], Volume], path: Path, reference: Volume, reference_path: Path
) -> npt.NDArray[Any]:
    """Read a file whose voxels must be those of the reference, in its orientation."""
    if problem := grid_difference(read_grid(path), reference.source):
        raise CaseError(
            f"{path} is not on the grid of {reference_path} ({problem}): resample it onto the CT"
        )
    return read(path).array
