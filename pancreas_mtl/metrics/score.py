"""The one number by which checkpoints are chosen and early stopping is decided."""

from __future__ import annotations

from collections.abc import Mapping

from pancreas_mtl.errors import UsageError

MASK_TERMS = ("whole_pancreas_dsc", "lesion_dsc")
SCORE_TERMS = (*MASK_TERMS, "macro_f1", "balanced_probability")


def selection_score(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of the named values, in [0, 1] where they are; higher is better.

    A term that `values` lacks, as for a dataset without subtypes, is left out of the mean, so the
    score stays comparable between the epochs of one run, but not between datasets. Without any
    term it is 0.

    Args:
        values: among others the terms; all in [0, 1], higher is better.
        weights: the weight of each term, from `conf/task/pancreas.yaml`; names out of SCORE_TERMS.

    Raises:
        UsageError: an unknown term, a negative weight, or no positive one.
    """
    for name, weight in weights.items():
        if name not in SCORE_TERMS or weight < 0:
            raise UsageError(
                f"task.score.{name}={weight}: give weights >= 0 to some of {', '.join(SCORE_TERMS)}"
            )
    if not sum(weights.values()) > 0:
        raise UsageError(f"task.score={dict(weights)}: at least one weight must be above 0")
    present = {name: weight for name, weight in weights.items() if name in values}
    total = sum(present.values())
    return sum(weight * values[name] for name, weight in present.items()) / total if total else 0.0
