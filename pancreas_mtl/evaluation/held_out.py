"""Predictions of cases held out from training: the folder `oof/`, and what is made of it.

    oof/<case>.nii.gz              masks without bias and clean-up
    oof/lesion_from/<case>.nii.gz  which bias of the lesion's logit makes a voxel lesion
    oof/subtype_probabilities.csv  as the network gives them, without temperature
    oof/mask_log_loss.csv          of the mask at several temperatures

They are raw, so that everything that is fitted can be fitted on them, of one run or of all folds
together. The same cases with a calibration that owes nothing to them go to another folder, as
`predict.py` would write them; that one is evaluated.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pancreas_mtl.data.files import link_or_copy, write_csv
from pancreas_mtl.data.images import (
    canonical_shape,
    read_image,
    read_mask,
    write_mask,
)
from pancreas_mtl.data.names import from_cell, to_cell
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.data.resample import resample_labels, spline_orders
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.calibrate import (
    MASK_TEMPERATURES,
    HeldOut,
    MaskScores,
    biased,
    cross_fit,
    fit,
    lesion_from,
    mask_log_losses,
    score_masks,
)
from pancreas_mtl.evaluation.predictions import read_predictions
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.calibration import (
    Calibration,
    calibrated,
    conformal_set,
    save_calibration,
    stated_coverage,
)
from pancreas_mtl.inference.maps import MAPS
from pancreas_mtl.inference.pipeline import nifti_source, predict_cases
from pancreas_mtl.inference.postprocess import clean_up
from pancreas_mtl.inference.predictor import PRESETS, Predictor
from pancreas_mtl.inference.writer import close_output, open_output, read_record, run_facts
from pancreas_mtl.types import Case, CasePrediction, Volume

KIND = "validation"
LOSSES = "mask_log_loss.csv"
LESION_FROM = "lesion_from"
PARTS = 5  # into which the cases of a single run are divided for cross-fitting


def predict_held_out(bundle_dir: Path, cases: Sequence[Case], oof_dir: Path) -> None:
    """Predict cases into `oof_dir` by a bundle, whose calibration is reset."""
    save_calibration(bundle_dir, Calibration())
    bundle = load_bundle(bundle_dir)
    predictor = Predictor([bundle], preset=PRESETS["accurate"], maps=MAPS, keep_logits=True)
    references = {case.name: case.mask for case in cases}
    losses: dict[str, tuple[float, ...] | None] = {}

    def measure(name: str, volume: Volume, prediction: CasePrediction) -> None:
        if (logits := prediction.logits) is None:
            return
        own, plan = volume.spacing_mm, bundle.plan.spacing_mm
        shape = canonical_shape(volume.source)
        first = lesion_from(logits, shape, spline_orders(plan, own, order=1))
        write_mask(oof_dir / LESION_FROM / f"{name}.nii.gz", first, volume.source)
        if (path := references[name]) is not None:
            mask = read_mask(path, grid=volume.source).array
            d, h, w = logits.shape[1:]
            small = resample_labels(mask, (d, h, w), orders=spline_orders(own, plan, order=1))
            losses[name] = mask_log_losses(logits, small)

    shutil.rmtree(oof_dir, ignore_errors=True)  # an earlier attempt may hold other cases
    open_output(oof_dir, "held out", overwrite=True)
    (oof_dir / LESION_FROM).mkdir()
    sources = [replace(nifti_source(case.image), name=case.name) for case in cases]
    records = predict_cases(predictor, sources, oof_dir, after_case=measure)
    write_losses(losses, oof_dir / LOSSES)
    close_output(oof_dir, records, run_facts(predictor, {"preset": "accurate"}))


def calibrate(
    oof_dir: Path,
    references: Sequence[Reference],
    output_dir: Path,
    *,
    coverage: float,
    workers: int = 1,
) -> Calibration:
    """Write one run's cases with a cross-fitted calibration; return the one fitted on all.

    Args:
        oof_dir: raw predictions.
        references: of these cases, and perhaps of others.
        output_dir: gets the calibrated predictions.
        coverage: that the conformal sets state.
        workers: processes.
    """
    cases = read_held_out(oof_dir, references, workers=workers)
    by_group = cross_fit(cases, coverage=coverage, kind=KIND)
    write_calibrated(oof_dir, {c.name: by_group[c.group] for c in cases}, output_dir)
    return fit(cases, coverage=coverage, kind=KIND)


def read_held_out(
    oof_dir: Path,
    references: Sequence[Reference],
    group_of: Mapping[str, str] | None = None,
    *,
    workers: int = 1,
) -> list[HeldOut]:
    """What calibration is fitted on, for every predicted case, sorted by name.

    `group_of` names each case's group; without it the cases are divided evenly into PARTS.

    Raises:
        UsageError: a folder that cannot be read.
        CaseError: a mask that cannot be read.
    """
    predictions, losses = read_predictions([oof_dir]), read_losses(oof_dir / LOSSES)
    known = {reference.name: reference for reference in references}
    jobs = [
        (name, prediction.mask, oof_dir / LESION_FROM / prediction.mask.name, reference)
        for name, prediction in predictions.items()
        if name in known and prediction.mask and (reference := known[name].mask)
    ]
    masks: dict[str, tuple[MaskScores, ...]] = {}
    for (name, *_), outcome in map_in_processes(_score, jobs, workers=workers, label="calibrate"):
        if isinstance(outcome, Exception):
            raise outcome
        masks[name] = outcome
    return [
        HeldOut(
            name=name,
            group=str(position % PARTS) if group_of is None else group_of[name],
            subtype=known[name].subtype if name in known else None,
            probabilities=prediction.probabilities,
            masks=masks.get(name),
            mask_log_loss=losses.get(name),
        )
        for position, (name, prediction) in enumerate(predictions.items())
    ]


def _score(job: tuple[str, Path, Path, Path]) -> tuple[MaskScores, ...]:
    _, prediction, first, reference = job
    return score_masks(
        read_mask(prediction).array, read_image(first).array, read_mask(reference).array
    )


def write_calibrated(
    oof_dir: Path, calibrations: Mapping[str, Calibration], output_dir: Path
) -> None:
    """Write each case's mask and subtype with its own calibration, as `predict.py` writes them.

    Lesion candidates and the entropy of the mask stay those of the mask's probabilities without
    temperature, which are gone.
    """
    shutil.rmtree(output_dir, ignore_errors=True)
    open_output(output_dir, "calibrated", overwrite=True)
    facts: dict[str, Any] = json.loads((oof_dir / "run.json").read_text())
    predictions = read_predictions([oof_dir])
    records = []
    for raw in facts.pop("cases"):
        name = raw["name"]
        calibration, prediction = calibrations[name], predictions[name]
        copy_volumes(oof_dir, output_dir, name, with_mask=False)
        _finish_mask(oof_dir, f"{name}.nii.gz", calibration, output_dir)
        record = read_record(raw)
        if prediction.probabilities is not None:
            own = [np.array(prediction.probabilities, dtype=np.float32)]
            soft = calibrated(own, [calibration])
            record = replace(
                record,
                subtype_probabilities=tuple(float(p) for p in soft),
                conformal_set=conformal_set(own, [calibration]),
            )
        records.append(record)
    failed = [read_record(failure) for failure in facts.pop("failures")]
    stated = [stated_coverage([one]) for one in calibrations.values()]
    facts["conformal_coverage"] = next((one for one in stated if one is not None), None)
    close_output(output_dir, [*records, *failed], facts)


def copy_volumes(source_dir: Path, target_dir: Path, name: str, *, with_mask: bool) -> None:
    """Link what was predicted of a case into another folder: its maps, and perhaps its mask.

    With the mask goes what makes others of it.
    """
    for folder in (*MAPS, *(["", LESION_FROM] if with_mask else [])):
        path = source_dir / folder / f"{name}.nii.gz"
        if path.exists():
            (target_dir / folder).mkdir(exist_ok=True)
            link_or_copy(path, target_dir / folder / path.name)


def _finish_mask(oof_dir: Path, file: str, calibration: Calibration, output_dir: Path) -> None:
    mask, first = read_mask(oof_dir / file), read_image(oof_dir / LESION_FROM / file)
    cleaned = clean_up(
        biased(mask.array, first.array, calibration.lesion_bias),
        largest_pancreas=calibration.largest_pancreas,
        largest_lesion=calibration.largest_lesion,
    )
    write_mask(output_dir / file, cleaned, mask.source)


def write_losses(losses: Mapping[str, Sequence[float] | None], path: Path) -> None:
    """Write `mask_log_loss.csv`: a row per case with a reference, a column per temperature."""
    rows = [
        [to_cell(f"{name}.nii.gz"), *(f"{value:.6f}" for value in curve)]
        for name, curve in sorted(losses.items())
        if curve is not None
    ]
    write_csv(path, ["Names", *(f"{t:.4f}" for t in MASK_TEMPERATURES)], rows)


def read_losses(path: Path) -> dict[str, tuple[float, ...]]:
    """Read it again.

    Raises:
        UsageError: it is missing or not one of this version.
    """
    try:
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        if len(header) != 1 + len(MASK_TEMPERATURES):
            raise ValueError("other temperatures")
        return {from_cell(row[0]): tuple(map(float, row[1:])) for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"{path}: not readable ({error}); train the run again") from error
