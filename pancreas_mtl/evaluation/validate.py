"""The end of a training run: predict the validation cases in full, and calibrate the bundle.

The predictions are masks in the scanner's grid and subtypes, as `predict.py` would write them. What
is calibrated here is fitted on the very cases that are evaluated afterwards; figures that owe
nothing to them come from test cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pancreas_mtl.data.images import read_mask, write_mask
from pancreas_mtl.evaluation.calibrate import fit_calibration
from pancreas_mtl.inference.bundle import Calibration, load_bundle, save_calibration
from pancreas_mtl.inference.maps import MAPS
from pancreas_mtl.inference.pipeline import nifti_source, predict_cases
from pancreas_mtl.inference.postprocess import clean_up, with_temperature
from pancreas_mtl.inference.predictor import PRESETS, Predictor
from pancreas_mtl.inference.writer import CaseRecord, close_output, open_output, run_facts
from pancreas_mtl.types import Case, LabelArray


def predict_validation(bundle_dir: Path, cases: Sequence[Case], output_dir: Path) -> None:
    """Predict the cases into `output_dir`, calibrate the bundle on them, and apply it to them."""
    save_calibration(bundle_dir, Calibration())
    predictor = Predictor([load_bundle(bundle_dir)], preset=PRESETS["accurate"], maps=MAPS)
    open_output(output_dir, "validation", overwrite=True)
    sources = [replace(nifti_source(case.image), name=case.name) for case in cases]
    records = predict_cases(predictor, sources, output_dir)
    calibration = calibrate(records, cases, output_dir)
    save_calibration(bundle_dir, calibration)
    _clean_masks(records, output_dir, calibration)
    calibrated = [_with_temperature(record, calibration) for record in records]
    close_output(output_dir, calibrated, run_facts(predictor, {"preset": "accurate"}))


def calibrate(
    records: Sequence[CaseRecord], cases: Sequence[Case], output_dir: Path
) -> Calibration:
    """Fit a calibration to uncalibrated predictions of cases held out from training."""
    subtype_of = {case.name: case.subtype for case in cases}
    known = [
        (record.subtype_probabilities, subtype_of[record.name])
        for record in records
        if record.subtype_probabilities is not None and subtype_of[record.name] is not None
    ]
    return fit_calibration(
        _masks(records, cases, output_dir),
        np.array([probabilities for probabilities, _ in known], dtype=np.float32),
        np.array([subtype for _, subtype in known], dtype=np.int64),
    )


def _masks(
    records: Sequence[CaseRecord], cases: Sequence[Case], output_dir: Path
) -> Iterator[tuple[LabelArray, LabelArray]]:
    done = {record.name for record in records if record.error is None}
    for case in cases:
        if case.mask is not None and case.name in done:
            prediction = read_mask(output_dir / f"{case.name}.nii.gz").array
            yield prediction, read_mask(case.mask).array


def _clean_masks(records: Sequence[CaseRecord], output_dir: Path, calibration: Calibration) -> None:
    if not (calibration.largest_pancreas or calibration.largest_lesion):
        return
    for record in records:
        if record.error is None:
            path = output_dir / f"{record.name}.nii.gz"
            mask = read_mask(path)
            cleaned = clean_up(
                mask.array,
                largest_pancreas=calibration.largest_pancreas,
                largest_lesion=calibration.largest_lesion,
            )
            write_mask(path, cleaned, mask.source)


def _with_temperature(record: CaseRecord, calibration: Calibration) -> CaseRecord:
    if record.subtype_probabilities is None:
        return record
    raw = np.array(record.subtype_probabilities, dtype=np.float32)
    soft = with_temperature(raw, calibration.subtype_temperature)
    return replace(record, subtype_probabilities=tuple(float(p) for p in soft))
