"""What validation during training keeps of each case, and the scores of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pancreas_mtl.metrics.score import selection_score
from pancreas_mtl.metrics.segmentation import dsc
from pancreas_mtl.metrics.subtype import (
    IntArray,
    Probabilities,
    balanced_probability,
    brier,
    confusion_matrix,
    ece,
    f1_scores,
)
from pancreas_mtl.types import UNKNOWN, Batch, Label

REGIONS = ("whole_pancreas", "pancreas", "lesion")


@dataclass(frozen=True)
class ValidationCase:
    """One case at the plan's spacing; None where it has no reference."""

    name: str
    whole_pancreas_dsc: float | None
    pancreas_dsc: float | None
    lesion_dsc: float | None
    subtype: int | None
    probabilities: tuple[float, ...]  # (S,)


class Validated(NamedTuple):
    """What a validation step answers: the case's scores, and its labels (D, H, W) for pictures."""

    case: ValidationCase
    labels: Tensor


def validation_case(batch: Batch, labels: Tensor, probabilities: Tensor) -> ValidationCase:
    """Compare one whole case, labels (D, H, W) and probabilities (S,), with its references."""
    mask = batch.mask[0, 0].cpu().numpy()
    predicted = labels.cpu().numpy()
    subtype = int(batch.subtype[0])
    whole = pancreas = lesion = None
    if not (mask == UNKNOWN).any():
        whole = dsc(predicted > 0, mask > 0)
        pancreas = dsc(predicted == Label.PANCREAS, mask == Label.PANCREAS)
        lesion = dsc(predicted == Label.LESION, mask == Label.LESION)
    return ValidationCase(
        name=batch.name[0],
        whole_pancreas_dsc=whole,
        pancreas_dsc=pancreas,
        lesion_dsc=lesion,
        subtype=None if subtype == UNKNOWN else subtype,
        probabilities=tuple(float(p) for p in probabilities),
    )


def gather_cases(mine: list[ValidationCase]) -> list[ValidationCase]:
    """The cases of all ranks, sorted by name, each once."""
    everyone = [mine]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        everyone = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everyone, mine)
    unique = {case.name: case for part in everyone for case in part}
    return [unique[name] for name in sorted(unique)]


def with_subtype(cases: Sequence[ValidationCase]) -> tuple[IntArray, Probabilities]:
    """Subtypes (N,) and probabilities (N, S) of the cases whose subtype is known."""
    known = [case for case in cases if case.subtype is not None]
    return np.array([case.subtype for case in known]), np.array([c.probabilities for c in known])


def validation_scores(
    cases: Sequence[ValidationCase], score_weights: Mapping[str, float]
) -> dict[str, float]:
    """The epoch's scores, computed once over all cases; a term without references is left out.

    `score` is what checkpoints are chosen by; `classes_predicted` counts the subtypes that were
    predicted at least once, so 1 means collapse; `ece` and `brier` tell how well calibrated the
    probabilities are before the temperature that the bundle gets at the end.
    """
    scores: dict[str, float] = {}
    if masked := [case for case in cases if case.whole_pancreas_dsc is not None]:
        for name in (f"{region}_dsc" for region in REGIONS):
            scores[name] = float(np.mean([getattr(case, name) for case in masked]))
    references, probabilities = with_subtype(cases)
    if len(references):
        scores |= _subtype_scores(references, probabilities)
    scores["score"] = selection_score(scores, score_weights)
    return scores


def _subtype_scores(references: IntArray, probabilities: Probabilities) -> dict[str, float]:
    predicted = probabilities.argmax(1)
    f1 = f1_scores(confusion_matrix(references, predicted))
    return {
        "macro_f1": float(f1.mean()),
        **{f"f1_subtype{subtype}": float(value) for subtype, value in enumerate(f1)},
        "balanced_probability": balanced_probability(references, probabilities),
        "classes_predicted": float(len(np.unique(predicted))),
        "ece": ece(references, probabilities),
        "brier": brier(references, probabilities),
    }
