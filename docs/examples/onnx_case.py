"""One CT through an ONNX export, with numpy, scipy, nibabel and onnxruntime alone.

    python docs/examples/onnx_case.py EXPORT CT.nii.gz MASK.nii.gz

Everything it knows of the model comes from EXPORT/processing.json: a template for viewers and
servers, in any language. It writes the mask and prints the probabilities of the subtypes.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from scipy import ndimage


def predict(export, ct_path):
    """Labels in the axes of the file, and the probabilities of the subtypes (None without)."""
    facts = json.loads((Path(export) / "processing.json").read_text())
    networks = {
        name: onnxruntime.InferenceSession(str(Path(export) / network["file"]))
        for name, network in facts["networks"].items()
        if isinstance(network, dict)
    }
    ct = nib.load(ct_path)
    turn = ornt_transform(io_orientation(ct.affine), axcodes2ornt(tuple("SPL")))
    hu = apply_orientation(ct.get_fdata(dtype=np.float32), turn)
    affine = ct.affine @ inv_ornt_aff(turn, ct.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = preprocess(hu, spacing, facts["preprocessing"])
    logits, evidence = run_windows(networks["window"], image, facts["windows"])
    labels = to_grid(logits, hu.shape, facts, spacing)
    labels = clean_up(labels, facts["postprocessing"]["calibration"])
    probabilities = None
    if "classifier" in networks:
        (subtype,) = networks["classifier"].run(None, evidence)
        probabilities = softmax(subtype, 1).mean(0)
        powered = probabilities ** (
            1 / facts["postprocessing"]["calibration"]["subtype_temperature"]
        )
        probabilities = powered / powered.sum()
    back = ornt_transform(axcodes2ornt(tuple("SPL")), io_orientation(ct.affine))
    return apply_orientation(labels, back), probabilities


def preprocess(hu, spacing, steps):
    """Clip, standardise and resample; `steps` as in the file."""
    step = {one["step"]: one for one in steps}
    clipped = np.clip(hu, step["clip"]["low_hu"], step["clip"]["high_hu"])
    image = (clipped - step["standardise"]["mean_hu"]) / step["standardise"]["std_hu"]
    goal = step["resample"]
    shape = [
        max(1, round(n * old / new))
        for n, old, new in zip(image.shape, spacing, goal["spacing_mm"], strict=True)
    ]
    orders = spline_orders(
        spacing, goal["spacing_mm"], goal["spline_order"], goal["anisotropy_threshold"]
    )
    within = tuple(axis for axis in range(3) if orders[axis])
    for axis in set(range(3)) - set(within):  # slices are chosen first, each keeps its range
        image = resample_axis(image, axis, shape[axis], 0)
    low, high = (f(image, axis=within, keepdims=True) for f in (np.min, np.max))
    for axis in within:
        image = resample_axis(image, axis, shape[axis], orders[axis])
    return np.clip(image, low, high).astype(np.float32)


def spline_orders(old, new, order, threshold):
    """Nearest neighbour along a strongly anisotropic axis, else `order`."""
    orders = [order] * 3
    for spacing in (np.asarray(old), np.asarray(new)):
        if spacing.max() / spacing.min() > threshold:
            coarse = np.flatnonzero(spacing == spacing.max())
            if len(coarse) == 1:
                orders[coarse[0]] = 0
            break
    return orders


def resample_axis(array, axis, n, order):
    """One axis to n voxels, the corners of both grids aligned."""
    if array.shape[axis] == n:
        return array
    centres = (np.arange(n) + 0.5) * array.shape[axis] / n - 0.5
    if order == 0:
        nearest = np.clip(np.floor(centres + 0.5).astype(int), 0, array.shape[axis] - 1)
        return array.take(nearest, axis)
    factors = [n / k if a == axis else 1 for a, k in enumerate(array.shape)]
    return ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)


def run_windows(network, image, facts):
    """Logits (C, D, H, W) of the whole image, and the evidence's sums and weights (views, F)."""
    size = facts["patch_size"]
    missing = [max(0, k - n) for n, k in zip(image.shape, size, strict=True)]
    padded = np.pad(image, [(m // 2, m - m // 2) for m in missing])
    axes = facts["mirror_axes"]
    views = [v for n in range(len(axes) + 1) for v in itertools.combinations(axes, n)]
    weight = gaussian(size)
    total, mass, evidence = 0.0, np.zeros(padded.shape, np.float32), None
    for start in itertools.product(*map(starts, padded.shape, size, [facts["step"]] * 3)):
        here = tuple(slice(s, s + k) for s, k in zip(start, size, strict=True))
        answers = [
            network.run(None, {"image": np.flip(padded[here], v)[None, None]}) for v in views
        ]
        logits = [
            np.flip(a[0][0], [axis + 1 for axis in v]) for a, v in zip(answers, views, strict=True)
        ]
        if evidence is None:
            total = np.zeros((len(logits[0]), *padded.shape), np.float32)
        total[(slice(None), *here)] += np.mean(logits, 0) * weight
        mass[here] += weight
        found = [np.concatenate(rows) for rows in zip(*(a[1:] for a in answers), strict=True)]
        evidence = (
            found if evidence is None else [a + b for a, b in zip(evidence, found, strict=True)]
        )
    inside = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, image.shape, strict=True))
    names = [one.name for one in network.get_outputs()][1:]
    return (total / mass)[(slice(None), *inside)], dict(zip(names, evidence, strict=True))


def starts(n, size, step):
    """First voxels of evenly spread windows along one axis."""
    count = math.ceil((n - size) / (size * step)) + 1
    return [round((n - size) / max(count - 1, 1) * i) for i in range(count)]


def gaussian(size):
    """The weight of a window's voxels."""
    impulse = np.zeros(size, np.float32)
    impulse[tuple(n // 2 for n in size)] = 1
    weight = ndimage.gaussian_filter(impulse, [n / 8 for n in size], mode="constant")
    weight /= weight.max()
    return np.maximum(weight, weight[weight > 0].min())


def to_grid(logits, shape, facts, spacing):
    """Labels in the grid of the image."""
    step = facts["postprocessing"]["mask"][0]
    plan = next(one for one in facts["preprocessing"] if one["step"] == "resample")["spacing_mm"]
    orders = spline_orders(plan, spacing, step["spline_order"], step["anisotropy_threshold"])
    for axis, (n, order) in enumerate(zip(shape, orders, strict=True)):
        logits = resample_axis(logits, axis + 1, n, order)
    logits[2] += facts["postprocessing"]["calibration"]["lesion_bias"]
    return logits.argmax(0).astype(np.uint8)


def clean_up(labels, calibration):
    """Keep the largest component where the calibration says so."""
    if calibration["largest_pancreas"]:
        labels = np.where(largest(labels > 0), labels, 0)
    if calibration["largest_lesion"]:
        labels = np.where((labels == 2) & ~largest(labels == 2), 1, labels)
    return labels.astype(np.uint8)


def largest(mask):
    """The largest component, 26-connected."""
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return mask if count <= 1 else components == 1 + np.bincount(components.ravel())[1:].argmax()


def softmax(x, axis):
    """Of logits."""
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


if __name__ == "__main__":
    export, ct_path, mask_path = sys.argv[1:]
    mask, subtypes = predict(export, ct_path)
    nib.save(nib.Nifti1Image(mask, nib.load(ct_path).affine), mask_path)
    print("no subtype" if subtypes is None else " ".join(f"{p:.4f}" for p in subtypes))
