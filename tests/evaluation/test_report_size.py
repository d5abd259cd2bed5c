"""The size of a page: 72 cases of the quiz's sizes, in five runs (four variants, their ensemble).

Thirteen cases are made and packed; all but the largest stand for several.
"""

import csv
import json
import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from evaluation import report_runs as make
from scipy.ndimage import zoom

from pancreas_mtl.evaluation.report import page, write_report

MEDIAN, LARGEST = (63, 118, 180), (244, 272, 459)  # D, H, W
SLICES = (35, 42, 47, 51, 56, 61, 68, 82, 94, 108, 125, 150)  # of each twelfth of the quiz's cases
COPIES = dict.fromkeys(SLICES, 6) | {SLICES[-1]: 5, LARGEST[0]: 1}
DETAIL = (8, 15, 23)  # bumps of an organ's border along each axis, one in eight voxels of MEDIAN
SPACING_MM = (2.0, 0.73, 0.73)
RUNS = ("conservative", "balanced", "aggressive", "seg_focused", "ensemble")


def shape_of(slices):
    """Rows and columns grow a little with the slices; a case has 2.1 million voxels on average."""
    if slices == LARGEST[0]:
        return LARGEST
    growth = max(1, slices / MEDIAN[0]) ** 0.32
    return slices, round(growth * MEDIAN[1]), round(growth * MEDIAN[2])


def rough(rng, shape):
    """A field that is smooth between DETAIL knots, and by how much borders move."""
    coarse = rng.normal(size=DETAIL).astype(np.float32)
    return zoom(coarse, np.divide(shape, DETAIL), order=1)


def organ(grid, field):
    """A pancreas that fills half of each side, with a lesion within; borders follow the field."""
    d, h, w = grid
    labels = (d**2 + (h + 0.15 * np.sin(4 * w)) ** 2 + w**2 + 0.1 * field < 0.3).astype(np.uint8)
    labels[(d**2 + h**2 + (w - 0.2) ** 2 + 0.02 * field < 0.03) & (labels > 0)] = 2
    return labels


def write(path, array):
    affine = np.diag([-SPACING_MM[2], -SPACING_MM[1], SPACING_MM[0], 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array.transpose(2, 1, 0), affine).to_filename(path)


def write_case(root, name, shape, rng):
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    field = rough(rng, shape)
    reference = organ(grid, field)
    image = 40 * field - 60 + 120 * (reference > 0) + rng.normal(0, 20, shape)
    write(root / "test" / f"{name}_0000.nii.gz", image.astype(np.int16))
    write(root / "references" / f"{name}.nii.gz", reference)
    for run in RUNS:
        other = field + 0.5 * rough(rng, shape)
        predicted = organ(grid, other)
        weights = np.clip(60 + 60 * other, 0, 255) * (predicted > 0)
        write(root / run / f"{name}.nii.gz", predicted)
        write(root / run / "attention" / f"{name}.nii.gz", weights.astype(np.uint8))


def names_of(slices):
    return [f"quiz_0_{slices:03d}{copy}" for copy in range(COPIES[slices])]


def write_runs(root):
    """The evaluations of all runs; every other file of a case is a link to that of its first."""
    rng = np.random.default_rng(0)
    for slices in COPIES:
        first, *others = names_of(slices)
        write_case(root, first, shape_of(slices), rng)
        for path in sorted(root.rglob(f"{first}*.nii.gz")):
            for other in others:
                os.link(path, path.with_name(path.name.replace(first, other)))
    small = make.make_evaluation(root / "small", names=["quiz_0_001"], candidates=True)
    metrics = json.loads((small / "metrics.json").read_text())
    names = [name for slices in COPIES for name in names_of(slices)]
    seconds = dict.fromkeys(("read", "network", "write"), 1.0)
    images = {name: str(root / "test" / f"{name}_0000.nii.gz") for name in names}
    cases = [{"name": n, "input": images[n], "seconds": seconds} for n in names]
    record = {"cases": cases, "failures": []}
    for run in RUNS:
        (root / run / "run.json").write_text(json.dumps(record))
        case = metrics["cases"][0]
        keys = [key for key in case if key.endswith(("_dsc", "_ml"))]
        metrics["cases"] = [case | {k: rng.random() for k in keys} | {"name": n} for n in names]
        metrics |= {"predictions": str(root / run), "references": str(root / "references")}
        (root / f"{run}_scores").mkdir()
        (root / f"{run}_scores" / "metrics.json").write_text(json.dumps(metrics))
        with (root / run / "subtype_probabilities.csv").open("w", newline="") as file:
            rows = [(f"{name}.nii.gz", 0.2, 0.3, 0.5) for name in names]
            csv.writer(file).writerows([("Names", "p0", "p1", "p2"), *rows])
    return [root / f"{run}_scores" for run in RUNS]


@pytest.mark.slow
def test_a_page_of_five_runs_with_72_cases_stays_below_40_mb(tmp_path, monkeypatch):
    runs = write_runs(tmp_path)
    packed = {}
    pack_case = page.pack_case

    def pack_once(source, budget):
        inode = source.image.stat().st_ino
        if inode not in packed:
            packed[inode] = pack_case(source, budget)
        links = [overlay.link for overlay in source.overlays]
        overlays = packed[inode].overlays
        own = tuple(replace(o, link=link) for o, link in zip(overlays, links, strict=True))
        return replace(packed[inode], name=source.name, overlays=own)

    monkeypatch.setattr(page, "pack_case", pack_once)
    report = write_report(runs, tmp_path / "report")
    text = report.read_text(encoding="utf-8")
    assert len(packed) == len(COPIES)
    assert text.count('id="ct-') == 72
    assert text.count('id="attention-case-') == text.count('id="picture-case-') == 5 * 72
    assert 30e6 < report.stat().st_size < 40e6
