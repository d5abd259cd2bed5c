"""Small runs with the files of real ones, for the tests of the report."""

import csv
import json

import nibabel as nib
import numpy as np

SHAPE, SPACING_MM = (22, 26, 12), (1.5, 1.2, 3.0)  # (i, j, k) of an LPS file
REGIONS = ("whole_pancreas", "pancreas", "lesion")


def write_volume(path, array):
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, affine).to_filename(path)


def phantom(rng):
    """A CT (int16 HU), its mask, and a mask shifted by a voxel as prediction."""
    i, j, k = np.indices(SHAPE)
    pancreas = ((i - 11) / 8) ** 2 + ((j - 13) / 5) ** 2 + ((k - 6) / 4) ** 2 < 1
    lesion = (i - 14) ** 2 + (j - 13) ** 2 + (k - 6) ** 2 < rng.uniform(4, 12)
    mask = pancreas.astype(np.uint8)
    mask[lesion] = 2
    image = rng.normal(-80, 20, SHAPE) + 160 * pancreas - 50 * lesion
    return image.astype(np.int16), mask, np.roll(mask, 1, axis=0)


def dsc(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def scores(name, mask, predicted, rng):
    parts = {
        "whole_pancreas": (mask > 0, predicted > 0),
        "pancreas": (mask == 1, predicted == 1),
        "lesion": (mask == 2, predicted == 2),
    }
    voxel_ml = float(np.prod(SPACING_MM)) / 1000
    entry = {"name": name}
    for key, (a, b) in parts.items():
        entry[f"{key}_dsc"] = dsc(a, b)
        entry[f"{key}_nsd"] = float(rng.uniform(0.5, 1))
        entry[f"{key}_hd95_mm"] = float(rng.uniform(1, 6))
        entry[f"{key}_reference_volume_ml"] = float(a.sum() * voxel_ml)
        entry[f"{key}_volume_ml"] = float(b.sum() * voxel_ml)
    return entry


def value(numbers):
    mean = float(np.mean(numbers))
    return {"mean": mean, "ci95": [mean - 0.0412345, mean + 0.0398765]}


def summary(cases, matrix):
    metrics = {"schema": 1, "n_cases": len(cases)}
    for region in REGIONS:
        metrics[region] = {
            "dsc": value([case[f"{region}_dsc"] for case in cases]),
            "nsd": value([case[f"{region}_nsd"] for case in cases]),
            "nsd_tolerance_mm": 1.0,
            "hd95_mm": value([case[f"{region}_hd95_mm"] for case in cases]),
        }
    metrics["subtype"] = {
        "macro_f1": {"mean": 0.6123456, "ci95": [0.41, 0.78]},
        "balanced_accuracy": {"mean": 0.6333333, "ci95": [0.43, 0.81]},
        "auroc": {"mean": 0.7777777, "ci95": [0.6, 0.9]},
        "ece": 0.0912345,
        "brier": 0.4012345,
        "confusion_matrix": matrix,
    }
    wanted = (("whole_pancreas_dsc", 0.91), ("lesion_dsc", 0.31), ("macro_f1", 0.7))
    found = (metrics["whole_pancreas"]["dsc"], metrics["lesion"]["dsc"])
    values = (*found, metrics["subtype"]["macro_f1"])
    metrics["targets"] = [
        {
            "name": name,
            "target": target,
            "value": v["mean"],
            "ci95": v["ci95"],
            "met": v["mean"] >= target,
        }
        for (name, target), v in zip(wanted, values, strict=True)
    ]
    return metrics | {"cases": cases}


def write_predictions(folder, images, rng):
    """A prediction folder with masks and `run.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, rows = [], []
    for name, image, predicted in images:
        write_volume(folder / f"{name}.nii.gz", predicted)
        seconds = {s: float(rng.uniform(0.1, 2)) for s in ("read", "network", "write")}
        entries.append({"name": name, "input": str(image), "seconds": seconds, "warnings": []})
        p = rng.dirichlet((1, 1, 1))
        rows.append([f"{name}.nii.gz", *(f"{x:.6f}" for x in p)])
    record = {"schema": 1, "config": {"preset": "fast"}, "cases": entries, "failures": []}
    (folder / "run.json").write_text(json.dumps(record))
    with (folder / "subtype_probabilities.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Names", "p0", "p1", "p2"], *rows])


def make_evaluation(root, *, names, seed=0, run="evaluation", attention=True):
    """Data, predictions and an evaluation folder below `root`; returns the evaluation folder."""
    rng = np.random.default_rng(seed)
    images, cases, matrix = [], [], [[0] * 3 for _ in range(3)]
    for number, name in enumerate(names):
        image, mask, predicted = phantom(rng)
        write_volume(root / "images" / f"{name}_0000.nii.gz", image)
        write_volume(root / "references" / f"{name}.nii.gz", mask)
        images.append((name, root / "images" / f"{name}_0000.nii.gz", predicted))
        reference, answer = number % 3, int(rng.integers(3))
        matrix[reference][answer] += 1
        entry = scores(name, mask, predicted, rng)
        cases.append(entry | {"subtype": reference, "subtype_predicted": answer})
    predictions = root / f"{run}_predictions"
    write_predictions(predictions, images, rng)
    if attention:
        for name, _, predicted in images:
            weights = np.where(predicted > 0, 200, 10).astype(np.uint8)
            write_volume(predictions / "attention" / f"{name}.nii.gz", weights)
    metrics = summary(cases, matrix)
    metrics |= {"predictions": str(predictions), "references": str(root / "references")}
    folder = root / run
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
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
