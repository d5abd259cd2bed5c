"""How well two masks of one region agree (Metrics Reloaded, doi:10.1038/s41592-023-02151-z).

Masks are boolean arrays `(D, H, W)` of one shape, spacing is `(D, H, W)` in millimetres.

Empty masks: where both are empty they agree (DSC and NSD 1, distances 0); where exactly one is,
nothing agrees (DSC and NSD 0, distances the diagonal of the volume). A case without prediction
counts as nothing agrees, whatever its reference holds. So every value is finite, and no case
drops out of their means. A volume error has no worst value: without prediction, it is that of an
empty mask, and undefined where the reference is empty as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pancreas_mtl.metrics.surface import Mask, surface_distances
from pancreas_mtl.types import TripleMm

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class RegionScores:
    """The agreement of one region in one case.

    `relative_volume_error` is signed, predicted minus reference over reference; None where the
    reference is empty. `absolute_volume_error_ml` is None without prediction, where that is so.
    """

    dsc: float
    nsd: float
    hd95_mm: float
    assd_mm: float
    volume_ml: float
    reference_volume_ml: float
    absolute_volume_error_ml: float | None
    relative_volume_error: float | None


def dsc(prediction: Mask, reference: Mask) -> float:
    """The Dice similarity coefficient, in [0, 1]; both masks empty: 1, exactly one empty: 0."""
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    if total == 0:
        return 1.0
    return 2.0 * np.count_nonzero(prediction & reference) / total


def nsd(prediction: Mask, reference: Mask, spacing_mm: TripleMm, *, tolerance_mm: float) -> float:
    """The normalised surface distance, in [0, 1]: the share of both surfaces that agree.

    Surfaces are weighted by area (Nikolov et al. 2018, arXiv:1809.04430); agreeing means to be no
    farther than the tolerance from the other surface. Empty masks as the module says.
    """
    return compare_masks(prediction, reference, spacing_mm, tolerance_mm=tolerance_mm).nsd


def hd95_mm(prediction: Mask, reference: Mask, spacing_mm: TripleMm) -> float:
    """The 95th percentile of the surface distance by area, of the worse of both directions."""
    return compare_masks(prediction, reference, spacing_mm).hd95_mm


def assd_mm(prediction: Mask, reference: Mask, spacing_mm: TripleMm) -> float:
    """The average symmetric surface distance, over the area of both surfaces."""
    return compare_masks(prediction, reference, spacing_mm).assd_mm


def compare_masks(
    prediction: Mask, reference: Mask, spacing_mm: TripleMm, *, tolerance_mm: float = 1.0
) -> RegionScores:
    """All scores of one region at once; the surfaces are measured once."""
    distances = surface_distances(prediction, reference, spacing_mm)
    if distances is not None:
        near = distances.share_within(tolerance_mm)
        far_mm, mean_mm = distances.percentile_mm(95), distances.mean_mm()
    elif prediction.any() == reference.any():
        near, far_mm, mean_mm = 1.0, 0.0, 0.0
    else:
        near, far_mm, mean_mm = 0.0, *[diagonal_mm(reference.shape, spacing_mm)] * 2
    volume, reference_volume = (volume_ml(mask, spacing_mm) for mask in (prediction, reference))
    error = volume - reference_volume
    return RegionScores(
        dsc=dsc(prediction, reference),
        nsd=near,
        hd95_mm=far_mm,
        assd_mm=mean_mm,
        volume_ml=volume,
        reference_volume_ml=reference_volume,
        absolute_volume_error_ml=abs(error),
        relative_volume_error=error / reference_volume if reference_volume else None,
    )


def worst_scores(reference: Mask, spacing_mm: TripleMm) -> RegionScores:
    """What a case without prediction gets; its volume is that of an empty mask."""
    volume = volume_ml(reference, spacing_mm)
    diagonal = diagonal_mm(reference.shape, spacing_mm)
    return RegionScores(
        dsc=0.0,
        nsd=0.0,
        hd95_mm=diagonal,
        assd_mm=diagonal,
        volume_ml=0.0,
        reference_volume_ml=volume,
        absolute_volume_error_ml=volume or None,  # not the 0 of an answer that is right
        relative_volume_error=-1.0 if volume else None,
    )


def volume_ml(mask: Mask, spacing_mm: TripleMm) -> float:
    """The volume of a mask."""
    return float(np.count_nonzero(mask) * np.prod(spacing_mm) / MM3_PER_ML)


def diagonal_mm(shape: tuple[int, ...], spacing_mm: TripleMm) -> float:
    """The length of the volume's diagonal, which no distance within it exceeds."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))
