"""A picture of every case: prediction and reference outlined in three planes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pancreas_mtl.data.files import make_folder
from pancreas_mtl.data.images import grid_difference, read_image, read_mask
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import CaseError
from pancreas_mtl.evaluation.predictions import Prediction, read_predictions
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.evaluation.results import CaseResult, Metrics
from pancreas_mtl.inference.pictures import mosaic, save_png

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Overlay:
    """What one picture shows, and where it goes."""

    image: Path
    reference: Path
    prediction: Path
    title: str
    png: Path


def draw_overlays(
    metrics: Metrics,
    predictions: Sequence[Path],
    references: Sequence[Reference],
    folder: Path,
    *,
    workers: int,
) -> Path:
    """Draw `<case>.png` for every scored case whose CT `run.json` names; log what keeps others.

    Returns:
        The folder, made where it was not there.
    """
    make_folder(folder)
    predicted = read_predictions(predictions)
    masks = {reference.name: reference.mask for reference in references}
    overlays = []
    for case in metrics.cases:
        mask = masks[case.name]
        prediction = predicted.get(case.name, Prediction(case.name))
        if mask and prediction.mask and prediction.image and case.masks and not case.masks.error:
            png = folder / f"{case.name}.png"
            overlays.append(Overlay(prediction.image, mask, prediction.mask, _title(case), png))
    if len(overlays) < len(metrics.cases):
        some = f"{len(overlays)} of {len(metrics.cases)}"
        log.warning("overlays of %s cases: only those with masks, and a CT in run.json", some)
    for overlay, outcome in map_in_processes(_draw, overlays, workers=workers, label="draw"):
        if isinstance(outcome, CaseError):
            log.warning("%s: not drawn: %s", overlay.png.stem, outcome)
        elif isinstance(outcome, Exception):
            raise outcome
    return folder


def _draw(overlay: Overlay) -> None:
    """Draw one case.

    Raises:
        CaseError: the CT cannot be read, or is not the one that was predicted.
    """
    reference = read_mask(overlay.reference)
    image = read_image(overlay.image, warn=log.warning)
    if problem := grid_difference(image.source, reference.source):
        raise CaseError(
            f"{overlay.image} is not on the grid of its masks ({problem}): predict it again"
        )
    labels = read_mask(overlay.prediction, grid=image.source).array
    figure = mosaic(
        image.array, labels, image.spacing_mm, reference=reference.array, title=overlay.title
    )
    save_png(figure, overlay.png)


def _title(case: CaseResult) -> str:
    """The case, its DSC, and the subtype with what it was taken for."""
    parts = [case.name]
    if case.masks is not None:
        regions = case.masks.regions
        parts.append(f"DSC whole {regions['whole_pancreas'].dsc:.3f}")
        parts.append(f"lesion {regions['lesion'].dsc:.3f}")
    if case.subtype is not None and case.subtype_predicted is not None:
        parts.append(f"subtype {case.subtype}, predicted {case.subtype_predicted}")
    return "   ".join(parts)
