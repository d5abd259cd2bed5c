"""From cases to means, intervals, groups and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pancreas_mtl.evaluation.results import (
    CaseResult,
    ClassMetrics,
    ConformalMetrics,
    Group,
    LesionDetection,
    RegionMetrics,
    SubtypeMetrics,
    Target,
)
from pancreas_mtl.evaluation.scoring import MaskScores
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.metrics import subtype as st
from pancreas_mtl.metrics.intervals import Estimate, Statistic, bootstrap_ci, mean
from pancreas_mtl.metrics.lesions import Froc, froc
from pancreas_mtl.types import NUM_SUBTYPES, UNKNOWN

Array = npt.NDArray[Any]
UNDEFINED = Estimate(None, None)
SURE_OF_THE_NEXT = np.roll(np.eye(NUM_SUBTYPES), 1, axis=1)  # a row for each subtype
LAST_OF_ITS_OWN = 1 - np.eye(NUM_SUBTYPES)  # and first of all others


def region_metrics(cases: Sequence[CaseResult], region: str, task: Task) -> RegionMetrics:
    """Means over the cases with a mask; the relative volume error over those not empty."""
    scores = [case.masks.regions[region] for case in cases if case.masks]

    def over_cases(name: str) -> Estimate:
        values = [getattr(one, name) for one in scores]
        return estimate(mean, [value for value in values if value is not None], task=task)

    return RegionMetrics(
        dsc=over_cases("dsc"),
        nsd=over_cases("nsd"),
        nsd_tolerance_mm=task.nsd_tolerance_mm,
        hd95_mm=over_cases("hd95_mm"),
        assd_mm=over_cases("assd_mm"),
        absolute_volume_error_ml=over_cases("absolute_volume_error_ml"),
        relative_volume_error=over_cases("relative_volume_error"),
        n_cases=len(scores),
    )


def estimate(
    statistic: Statistic, *values: Any, task: Task, strata: Array | None = None
) -> Estimate:
    """A bootstrap interval with the task's number of resamples."""
    arrays = [np.asarray(value) for value in values]
    return bootstrap_ci(statistic, *arrays, strata=strata, resamples=task.bootstrap_resamples)


# Subtype


def subtype_metrics(cases: Sequence[CaseResult], task: Task) -> SubtypeMetrics:
    """Over the cases whose subtype is known.

    A case without prediction is wrong, and as probabilities it is sure of the next subtype; for
    AUROC, it is ranked last among its own subtype and first among all others. That is the worst
    there is. Where no case has a prediction, nothing is defined.
    """
    known = [case for case in cases if case.subtype is not None] if _has_subtypes(cases) else []
    references = np.array([case.subtype for case in known], dtype=np.int64)
    predictions = np.array(
        [UNKNOWN if case.subtype_predicted is None else case.subtype_predicted for case in known],
        dtype=np.int64,
    )
    probabilities = _probabilities(known, SURE_OF_THE_NEXT)
    ranks = _probabilities(known, LAST_OF_ITS_OWN)

    def from_counts(metric: Callable[[st.Array], st.Array]) -> Estimate:
        def statistic(truth: Array, answers: Array) -> Array:
            return metric(st.confusion_matrix(truth, answers))

        return estimate(statistic, references, predictions, task=task, strata=references)

    matrix = st.confusion_matrix(references, predictions)
    counts = matrix.astype(int).tolist()
    return SubtypeMetrics(
        macro_f1=from_counts(lambda m: st.f1_scores(m).mean(axis=-1)),
        balanced_accuracy=from_counts(st.balanced_accuracy),
        mcc=from_counts(st.mcc),
        confusion_matrix=[row[:NUM_SUBTYPES] for row in counts],
        unpredicted=[row[NUM_SUBTYPES] for row in counts],
        per_class=_per_class(matrix, references, ranks),
        conformal=_conformal(known, references, task),
        n_cases=len(known),
        **_from_probabilities(references, probabilities, ranks, task),
    )


def _has_subtypes(cases: Sequence[CaseResult]) -> bool:
    """Whether any case has the subtype's prediction and reference."""
    return any(None not in (case.subtype, case.subtype_predicted) for case in cases)


def _from_probabilities(
    references: Array, probabilities: Array | None, ranks: Array | None, task: Task
) -> dict[str, Any]:
    """With an interval but for ECE, which resampling biases upwards."""
    if probabilities is None or ranks is None:
        undefined = {"ece": None, "brier": None, "brier_ci95": None}
        return {"auroc": UNDEFINED, **undefined, "reliability": []}
    distances = st.squared_distances(references, probabilities)
    brier = estimate(mean, distances, task=task, strata=references)
    return {
        "auroc": estimate(st.mean_auroc, references, ranks, task=task, strata=references),
        "ece": st.ece(references, probabilities),
        "brier": brier.mean,
        "brier_ci95": brier.ci95,
        "reliability": st.reliability(references, probabilities),
    }


def _probabilities(known: Sequence[CaseResult], missing: Array) -> Array | None:
    """Those of all cases (N, S), `missing` by subtype for one without; None where none has any."""
    if all(case.subtype_probabilities is None for case in known):
        return None
    return np.array([case.subtype_probabilities or missing[case.subtype] for case in known])


def _per_class(matrix: st.Array, references: Array, scores: Array | None) -> list[ClassMetrics]:
    undefined = np.full(NUM_SUBTYPES, np.nan)
    areas = undefined if scores is None else st.aurocs(references, scores)
    columns = (st.precisions(matrix), st.recalls(matrix), st.f1_scores(matrix), areas)
    return [
        ClassMetrics(subtype, int(matrix[subtype].sum()), *(_defined(c[subtype]) for c in columns))
        for subtype in range(NUM_SUBTYPES)
    ]


def _conformal(
    known: Sequence[CaseResult], references: Array, task: Task
) -> ConformalMetrics | None:
    """Of the sets; a case without one counts as not covered, by a set as large as can be."""
    sets = [case.conformal_set for case in known]
    if all(members is None for members in sets):
        return None
    covered = [case.subtype in (case.conformal_set or ()) for case in known]
    sizes = [NUM_SUBTYPES if members is None else len(members) for members in sets]
    return ConformalMetrics(
        target_coverage=task.coverage,
        coverage=estimate(mean, covered, task=task, strata=references),
        mean_size=estimate(mean, sizes, task=task, strata=references),
    )


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# Lesions


def lesion_detection(cases: Sequence[CaseResult], task: Task) -> LesionDetection:
    """All lesions of all cases together; the interval resamples cases."""
    masks = [case.masks for case in cases if case.masks]
    columns = [
        np.array([getattr(one.lesions, name) for one in masks], dtype=np.float64)
        for name in ("found", "reference", "predicted")
    ]
    found, reference, predicted = columns
    return LesionDetection(
        hit_iou=task.lesion_hit_iou,
        n_reference=int(reference.sum()),
        n_predicted=int(predicted.sum()),
        n_found=int(found.sum()),
        sensitivity=estimate(_ratio_of_sums, found, reference, task=task),
        precision=estimate(_ratio_of_sums, found, predicted, task=task),
        f1=estimate(_ratio_of_sums, 2 * found, reference + predicted, task=task),
        froc=_froc(masks),
    )


def _ratio_of_sums(top: Array, bottom: Array) -> Array:
    total = bottom.sum(axis=-1)
    return np.where(total > 0, top.sum(axis=-1) / np.maximum(total, 1), np.nan)


def _froc(masks: Sequence[MaskScores]) -> Froc | None:
    """Where any case has candidates; a case without them misses its lesions."""
    answered = [one.candidates for one in masks if one.candidates is not None]
    if not answered:
        return None
    missed = sum(one.lesions.reference for one in masks if one.candidates is None)
    return froc(answered, missed=missed)


# Groups and targets


def groups_by_subtype(cases: Sequence[CaseResult], task: Task) -> list[Group]:
    """One group for each subtype of the references."""
    members = {
        f"subtype {subtype}": [case for case in cases if case.subtype == subtype]
        for subtype in range(NUM_SUBTYPES)
    }
    return _groups(members, task, has_subtypes=_has_subtypes(cases))


def groups_by_lesion_size(cases: Sequence[CaseResult], task: Task) -> list[Group]:
    """Cases with a mask by the volume of the reference's lesion, as the task divides it."""
    limits = task.lesion_size_limits_ml
    names = ["no lesion", f"lesion up to {limits[0]:g} ml"]
    names += [f"lesion {low:g} to {high:g} ml" for low, high in pairwise(limits)]
    names += [f"lesion above {limits[-1]:g} ml"]
    groups: dict[str, list[CaseResult]] = {name: [] for name in names}
    for case in cases:
        if case.masks:
            volume_ml = case.masks.regions["lesion"].reference_volume_ml
            groups[names[int(np.searchsorted((0, *limits), volume_ml))]].append(case)
    return _groups(groups, task, has_subtypes=_has_subtypes(cases))


def _groups(
    members: Mapping[str, Sequence[CaseResult]], task: Task, *, has_subtypes: bool
) -> list[Group]:
    return [
        Group(
            name=name,
            n_cases=len(cases),
            whole_pancreas_dsc=region_metrics(cases, "whole_pancreas", task).dsc,
            lesion_dsc=region_metrics(cases, "lesion", task).dsc,
            lesion_sensitivity=lesion_detection(cases, task).sensitivity,
            subtype_accuracy=_accuracy(cases, task) if has_subtypes else UNDEFINED,
        )
        for name, cases in members.items()
    ]


def _accuracy(cases: Sequence[CaseResult], task: Task) -> Estimate:
    right = [case.subtype == case.subtype_predicted for case in cases if case.subtype is not None]
    return estimate(mean, right, task=task)


def check_targets(values: Mapping[str, Estimate], task: Task) -> list[Target]:
    """Hold each of the task's targets against its value."""
    return [_target(name, target, values[name]) for name, target in task.targets.items()]


def _target(name: str, target: float, reached: Estimate) -> Target:
    met = None if reached.mean is None else reached.mean >= target
    return Target(name, target, reached.mean, reached.ci95, met)
