"""Compare predictions with references: masks, lesions and subtypes, in the scanner's own grid.

Every reference counts. A case without prediction gets the worst value of every metric and is
listed, as is a case whose prediction cannot be used; a volume error is then that of an empty mask.
Only where no case at all has a mask, or none has a subtype, is that part left undefined. A case
whose reference cannot be read is listed and left out of the means.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.evaluation.predictions import Prediction, read_predictions
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.evaluation.results import SCHEMA, CaseResult, Failure, Metrics
from pancreas_mtl.evaluation.scoring import REGIONS, MaskScores, ScoringJob, score_masks
from pancreas_mtl.evaluation.summary import (
    check_targets,
    groups_by_lesion_size,
    groups_by_subtype,
    lesion_detection,
    region_metrics,
    subtype_metrics,
)
from pancreas_mtl.evaluation.task import Task

BYTES_PER_CASE = 5e8  # two masks and their distance maps, in a crop of the largest size


def evaluate(
    predictions: Path | Sequence[Path],
    references: Sequence[Reference],
    *,
    task: Task,
    workers: int = 1,
    missing: str = "worst",
) -> Metrics:
    """Evaluate one prediction folder, or several whose cases differ, such as those of all folds.

    Args:
        predictions: folders as `read_predictions` reads them.
        references: what to compare with.
        task: tolerances, targets and the number of resamples; its coverage is for conformal sets
            of which their folder does not say what they state.
        workers: processes.
        missing: `worst`: a case without prediction counts as the worst; `skip`: it is left out,
            as where the references of all folds meet the predictions of one.

    Raises:
        UsageError: a folder that cannot be read, no case that has both, or conformal sets of
            several coverages.
    """
    if missing not in ("worst", "skip"):
        raise UsageError(f"missing={missing}: choose worst or skip")
    folders = [predictions] if isinstance(predictions, Path) else list(predictions)
    predicted = read_predictions(folders)
    known = _compared(references, predicted, skip=missing == "skip")
    if any(prediction.mask for prediction in predicted.values()):
        scores, failures = _score_all(known, predicted, task, workers)
    else:
        scores, failures = {}, []
    cases = _case_results(known, predicted, scores)
    task = replace(task, coverage=_coverage(predicted.values()) or task.coverage)
    regions = {region: region_metrics(cases, region, task) for region in REGIONS}
    subtype = subtype_metrics(cases, task)
    reached = {
        "whole_pancreas_dsc": regions["whole_pancreas"].dsc,
        "lesion_dsc": regions["lesion"].dsc,
        "macro_f1": subtype.macro_f1,
    }
    return Metrics(
        schema=SCHEMA,
        n_cases=len(cases),
        **regions,
        subtype=subtype,
        targets=check_targets(reached, task),
        lesion_detection=lesion_detection(cases, task),
        by_subtype=groups_by_subtype(cases, task),
        by_lesion_size=groups_by_lesion_size(cases, task),
        missing=[case.name for case in cases if case.missing],
        unreferenced=sorted(predicted.keys() - {reference.name for reference in references}),
        failures=failures,
        predictions=str(folders[0]) if len(folders) == 1 else [str(folder) for folder in folders],
        references=_common_folder(known.values()),
        cases=cases,
    )


def _compared(
    references: Sequence[Reference], predicted: Mapping[str, Prediction], *, skip: bool
) -> dict[str, Reference]:
    """The references that count, by name; `skip` leaves out those without prediction."""
    known = {reference.name: reference for reference in references}
    if not known.keys() & predicted.keys():
        raise UsageError(
            f"predictions hold {min(predicted, default='nothing')}, references hold "
            f"{min(known, default='nothing')}, and no case is in both: check the two folders"
        )
    if skip:
        return {name: reference for name, reference in known.items() if name in predicted}
    return known


def _score_all(
    known: Mapping[str, Reference], predicted: Mapping[str, Prediction], task: Task, workers: int
) -> tuple[dict[str, MaskScores], list[Failure]]:
    """Score every case with a reference mask, and list what could not be read."""
    jobs = []
    for name, reference in known.items():
        if reference.mask is not None:
            prediction = predicted.get(name, Prediction(name))
            files = (reference.mask, prediction.mask, prediction.candidates)
            jobs.append(ScoringJob(name, *files, task.nsd_tolerance_mm, task.lesion_hit_iou))
    scores, failures = {}, []
    for job, outcome in map_in_processes(score_masks, jobs, workers=workers, label="evaluate"):
        if isinstance(outcome, CaseError):
            failures.append(Failure(job.name, str(outcome)))
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            scores[job.name] = outcome
            if outcome.error is not None:
                failures.append(Failure(job.name, outcome.error))
    return scores, sorted(failures, key=lambda failure: failure.name)


def _case_results(
    known: Mapping[str, Reference],
    predicted: Mapping[str, Prediction],
    scores: Mapping[str, MaskScores],
) -> list[CaseResult]:
    """One result per reference, sorted by name."""
    with_masks = any(prediction.mask for prediction in predicted.values())
    with_subtypes = any(prediction.subtype is not None for prediction in predicted.values())
    results = []
    for name, reference in sorted(known.items()):
        prediction = predicted.get(name, Prediction(name))
        no_mask = with_masks and reference.mask and not prediction.mask
        no_subtype = with_subtypes and reference.subtype is not None and prediction.subtype is None
        result = CaseResult(
            name=name,
            missing=bool(no_mask or no_subtype),
            masks=scores.get(name),
            subtype=reference.subtype,
            subtype_predicted=prediction.subtype,
            subtype_probabilities=prediction.probabilities,
            conformal_set=prediction.conformal_set,
        )
        results.append(result)
    return results


def _coverage(predictions: Iterable[Prediction]) -> float | None:
    """What the conformal sets state; None where nobody says."""
    with_sets = [p for p in predictions if p.conformal_set is not None]
    stated = {p.coverage for p in with_sets if p.coverage is not None}
    if len(stated) > 1:
        raise UsageError(
            f"predictions: the conformal sets state coverages of {sorted(stated)}: give those of "
            "one coverage at a time"
        )
    return stated.pop() if stated else None


def _common_folder(references: Iterable[Reference]) -> str | None:
    """The folder that holds all reference masks, for a report that shows them."""
    folders = [str(reference.mask.parent.absolute()) for reference in references if reference.mask]
    return os.path.commonpath(folders) if folders else None
