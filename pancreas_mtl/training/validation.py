"""What validation during training keeps of each case, and the scores of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pancreas_mtl.metrics.score import selection_score
from pancreas_mtl.metrics.segmentation import dsc
from pancreas_mtl.metrics.subtype import balanced_probability, macro_f1
from pancreas_mtl.types import UNKNOWN, Batch, Label


@dataclass(frozen=True)
class ValidationCase:
    """One case at the plan's spacing; None where it has no reference."""

    name: str
    whole_pancreas_dsc: float | None
    lesion_dsc: float | None
    subtype: int | None
    probabilities: tuple[float, ...]  # (S,)


def validation_case(batch: Batch, labels: Tensor, probabilities: Tensor) -> ValidationCase:
    """Compare one whole case, labels (D, H, W) and probabilities (S,), with its references."""
    mask = batch.mask[0, 0].cpu().numpy()
    predicted = labels.cpu().numpy()
    subtype = int(batch.subtype[0])
    whole = lesion = None
    if not (mask == UNKNOWN).any():
        whole = dsc(predicted > 0, mask > 0)
        lesion = dsc(predicted == Label.LESION, mask == Label.LESION)
    return ValidationCase(
        name=batch.name[0],
        whole_pancreas_dsc=whole,
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


def validation_scores(
    cases: Sequence[ValidationCase], score_weights: Mapping[str, float]
) -> dict[str, float]:
    """The epoch's scores, computed once over all cases; a term without references is left out.

    `score` is what checkpoints are chosen by; `classes_predicted` counts the subtypes that were
    predicted at least once, so 1 means collapse.
    """
    scores: dict[str, float] = {}
    masked = [c for c in cases if c.whole_pancreas_dsc is not None]
    if masked:
        scores["whole_pancreas_dsc"] = float(np.mean([c.whole_pancreas_dsc for c in masked]))
        scores["lesion_dsc"] = float(np.mean([c.lesion_dsc for c in masked]))
    known = [c for c in cases if c.subtype is not None]
    if known:
        reference = np.asarray([c.subtype for c in known])
        probabilities = np.asarray([c.probabilities for c in known])
        predicted = probabilities.argmax(1)
        scores["macro_f1"] = macro_f1(reference, predicted)
        scores["balanced_probability"] = balanced_probability(reference, probabilities)
        scores["classes_predicted"] = float(len(np.unique(predicted)))
        scores["balanced_probability"] = balanced_probability(reference, probabilities)
    scores["score"] = selection_score(scores, score_weights)
    return scores
