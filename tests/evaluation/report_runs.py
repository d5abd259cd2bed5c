"""Small runs with the files of real ones, for the tests of the report."""

import csv
import json

import nibabel as nib
import numpy as np

from pancreas_mtl.evaluation.evaluate import evaluate
from pancreas_mtl.evaluation.references import read_references
from pancreas_mtl.evaluation.results import write_results
from pancreas_mtl.evaluation.task import Task

SHAPE, SPACING_MM = (22, 26, 12), (1.5, 1.2, 3.0)  # (i, j, k) of an LPS file
TASK = Task(
    targets={"whole_pancreas_dsc": 0.91, "lesion_dsc": 0.31, "macro_f1": 0.7},
    score={},
    nsd_tolerance_mm=1.0,
    lesion_hit_iou=0.1,
    lesion_size_limits_ml=(0.1, 0.25),
    coverage=0.9,
    bootstrap_resamples=50,
)


def write_volume(path, array):
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, affine).to_filename(path)


def phantom(rng):
    """A CT (int16 HU) and its mask."""
    i, j, k = np.indices(SHAPE)
    pancreas = ((i - 11) / 8) ** 2 + ((j - 13) / 5) ** 2 + ((k - 6) / 4) ** 2 < 1
    lesion = (i - 14) ** 2 + (j - 13) ** 2 + (k - 6) ** 2 < rng.uniform(4, 12)
    mask = pancreas.astype(np.uint8)
    mask[lesion] = 2
    image = rng.normal(-80, 20, SHAPE) + 160 * pancreas - 50 * lesion
    return image.astype(np.int16), mask


def write_data(root, names):
    """Images, reference masks and `subtypes.csv`; returns the image and mask of each name."""
    rng = np.random.default_rng(0)
    cases, rows = {}, [["Names", "Subtype"]]
    for number, name in enumerate(names):
        image, mask = phantom(rng)
        path = root / "test" / f"{name}_0000.nii.gz"
        write_volume(path, image)
        write_volume(root / "references" / f"{name}.nii.gz", mask)
        rows.append([f"{name}.nii.gz", number % 3])
        cases[name] = (path, mask)
    with (root / "references" / "subtypes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return cases


def write_predictions(folder, cases, *, seed=0, attention=True, candidates=False):
    """A prediction folder: masks a voxel off, the CSV files, `run.json`, pooling weights."""
    rng = np.random.default_rng(seed)
    entries, rows, answers = [], [], []
    for name, (image, mask) in cases.items():
        predicted = np.roll(mask, rng.integers(1, 3), axis=rng.integers(2))
        write_volume(folder / f"{name}.nii.gz", predicted)
        if attention:
            weights = np.where(predicted == 2, 240, 17).astype(np.uint8)
            write_volume(folder / "attention" / f"{name}.nii.gz", weights)
        if candidates:
            scores = np.where(predicted == 2, rng.uniform(0.4, 1), 0).astype(np.float32)
            write_volume(folder / "lesion_candidates" / f"{name}.nii.gz", scores)
        seconds = {s: float(rng.uniform(0.1, 2)) for s in ("read", "network", "write")}
        entries.append({"name": name, "input": str(image), "seconds": seconds, "warnings": []})
        p = [round(value, 6) for value in rng.dirichlet((1, 1, 1)).tolist()]
        rows.append([f"{name}.nii.gz", *p, "0|2"])
        answers.append([f"{name}.nii.gz", int(np.argmax(p))])
    record = {"schema": 1, "config": {"preset": "single"}, "cases": entries, "failures": []}
    (folder / "run.json").write_text(json.dumps(record))
    with (folder / "subtype_probabilities.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Names", "p0", "p1", "p2", "conformal_set"], *rows])
    with (folder / "subtype_results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Names", "Subtype"], *answers])
    return folder


def make_evaluation(root, *, names, run="evaluation", **options):
    """Data, predictions and an evaluation folder below `root`; returns the evaluation folder."""
    cases = write_data(root, names)
    predictions = write_predictions(root / f"{run}_predictions", cases, **options)
    folder = root / run
    folder.mkdir(parents=True)
    metrics = evaluate(predictions, read_references(root / "references"), task=TASK)
    write_results(metrics, folder)
    return folder


def write_curves(folder, *, epochs=12):
    """`metrics.csv` of a training run; scores only at every second epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    losses = ["train/loss", "train/segmentation", "train/subtype"]
    scores = ["val/lesion_dsc", "val/macro_f1", "val/score", "val/whole_pancreas_dsc"]
    header = ["epoch", *losses, *scores, "lr/encoder", "lr/head"]
    rows = []
    for epoch in range(epochs):
        t = epoch / epochs
        found = [0.6 * t, 0.5 * t, 0.7 * t, 0.9 * t] if epoch % 2 else [""] * 4
        rows.append([epoch, 2 - t, 1.2 - t, 1 - t / 2, *found, 1e-3 * (1 - t), 3e-4 * (1 - t)])
    with (folder / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder
