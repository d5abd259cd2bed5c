from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from surface_distance import metrics as deepmind

from pancreas_mtl.metrics.segmentation import (
    assd_mm,
    compare_masks,
    diagonal_mm,
    dsc,
    hd95_mm,
    nsd,
    worst_scores,
)

SPACING_MM = (2.0, 0.7, 0.9)
SHAPE = (12, 20, 16)


def box(d: slice, h: slice, w: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[d, h, w] = True
    return mask


def blobs(seed: int, threshold: float = 0.0, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that agree more or less, as a prediction and its reference."""
    rng = np.random.default_rng(seed)
    field, error = (gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(2))
    return field > threshold, field + 0.3 * error > threshold


# Closed forms


def test_dsc_of_boxes_that_overlap_by_half():
    a = box(slice(2, 6), slice(4, 8), slice(4, 8))
    b = box(slice(4, 8), slice(4, 8), slice(4, 8))
    assert dsc(a, b) == 0.5


@pytest.mark.parametrize(("axis", "step_mm"), enumerate(SPACING_MM))
def test_a_plate_moved_along_one_axis_lies_its_steps_away(axis, step_mm):
    """Plates that reach across the volume: every surface point is exactly two steps off."""
    one, other = np.zeros((2, 12, 12, 12), bool)
    np.moveaxis(one, axis, 0)[3] = True
    np.moveaxis(other, axis, 0)[9] = True
    scores = compare_masks(one, other, SPACING_MM)
    near, far = 5 * step_mm, 6 * step_mm  # of the two faces, the inner and the outer one
    assert near < scores.assd_mm < far
    assert scores.hd95_mm == pytest.approx(far)


@pytest.mark.parametrize(("axis", "step_mm"), enumerate(SPACING_MM))
def test_nsd_forgives_up_to_the_tolerance(axis, step_mm):
    one, other = np.zeros((2, 12, 12, 12), bool)
    np.moveaxis(one, axis, 0)[3:6] = True
    np.moveaxis(other, axis, 0)[4:7] = True
    assert nsd(one, other, SPACING_MM, tolerance_mm=step_mm) == 1
    below = nsd(one, other, SPACING_MM, tolerance_mm=0.99 * step_mm)
    assert 0 < below < 0.7  # only the rims, which the plates share


def test_spheres_with_one_centre_lie_the_difference_of_their_radii_apart():
    spacing_mm = (1.0, 0.5, 0.8)
    axes = [np.arange(-12, 12 + 1e-9, side) for side in spacing_mm]
    d, h, w = np.meshgrid(*axes, indexing="ij")
    radius_mm = np.sqrt(d**2 + h**2 + w**2)
    scores = compare_masks(radius_mm <= 10, radius_mm <= 7, spacing_mm)
    half_voxel_mm = np.linalg.norm(spacing_mm) / 2  # how far voxels follow a surface
    assert scores.assd_mm == pytest.approx(3, abs=half_voxel_mm)
    assert scores.hd95_mm == pytest.approx(3, abs=half_voxel_mm)
    assert scores.volume_ml == pytest.approx(4 / 3 * np.pi, rel=0.02)
    assert scores.dsc == pytest.approx(2 * 343 / (1000 + 343), rel=0.02)
    assert scores.relative_volume_error == pytest.approx(1000 / 343 - 1, rel=0.05)


def test_volume_errors_are_in_millilitres_and_signed_when_relative():
    a = box(slice(2, 4), slice(4, 8), slice(4, 8))  # 32 voxels of 1.26 mm³
    b = box(slice(2, 8), slice(4, 8), slice(4, 8))
    scores = compare_masks(a, b, SPACING_MM)
    assert scores.volume_ml == pytest.approx(0.04032)
    assert scores.absolute_volume_error_ml == pytest.approx(0.08064)
    assert scores.relative_volume_error == pytest.approx(-2 / 3)


# Degenerate masks

EMPTY = np.zeros(SHAPE, bool)
SOME = box(slice(0, 1), slice(0, 3), slice(5, 9))


def test_two_empty_masks_agree():
    scores = compare_masks(EMPTY, EMPTY, SPACING_MM)
    assert (scores.dsc, scores.nsd, scores.hd95_mm, scores.assd_mm) == (1, 1, 0, 0)
    assert scores.relative_volume_error is None


@pytest.mark.parametrize(("prediction", "reference"), [(EMPTY, SOME), (SOME, EMPTY)])
def test_one_empty_mask_agrees_with_nothing(prediction, reference):
    scores = compare_masks(prediction, reference, SPACING_MM)
    diagonal = np.sqrt((12 * 2.0) ** 2 + (20 * 0.7) ** 2 + (16 * 0.9) ** 2)
    assert (scores.dsc, scores.nsd) == (0, 0)
    assert scores.hd95_mm == scores.assd_mm == pytest.approx(diagonal)
    assert scores.absolute_volume_error_ml > 0


@pytest.mark.parametrize("reference", [EMPTY, SOME])
def test_a_missing_prediction_is_as_bad_as_can_be(reference):
    worst = worst_scores(reference, SPACING_MM)
    assert (worst.dsc, worst.nsd) == (0, 0)
    assert worst.hd95_mm == worst.assd_mm == diagonal_mm(SHAPE, SPACING_MM)
    empty = compare_masks(EMPTY, reference, SPACING_MM)
    assert worst.relative_volume_error == empty.relative_volume_error
    if reference.any():
        assert worst.absolute_volume_error_ml == empty.absolute_volume_error_ml
    else:
        assert worst.absolute_volume_error_ml is None  # not 0, as of an empty mask that is right


def test_equal_masks_agree_wherever_they_lie():
    for mask in (SOME, ~EMPTY, SOME[:1], box(slice(11, 12), slice(19, 20), slice(15, 16))):
        scores = compare_masks(mask, mask, SPACING_MM)
        assert (scores.dsc, scores.nsd, scores.hd95_mm, scores.assd_mm) == (1, 1, 0, 0)


# Against an independent implementation
# It triangulates polygons that are not flat, where ours takes their vector area, which is nearer to
# the area of a smooth surface; so elements differ in weight, but not in place.


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (1.0, 1.0, 1.0), (3.0, 0.6, 0.6)])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_surface_distance(seed, spacing_mm):
    a, b = blobs(seed, threshold=0.05 * seed)
    theirs = deepmind.compute_surface_distances(a, b, spacing_mm)
    assert nsd(a, b, spacing_mm, tolerance_mm=1.0) == pytest.approx(
        deepmind.compute_surface_dice_at_tolerance(theirs, 1.0), abs=0.01
    )
    assert hd95_mm(a, b, spacing_mm) == pytest.approx(
        deepmind.compute_robust_hausdorff(theirs, 95), abs=0.25
    )
    means = deepmind.compute_average_surface_distance(theirs)
    areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
    assert assd_mm(a, b, spacing_mm) == pytest.approx(np.average(means, weights=areas), abs=0.02)
    assert dsc(a, b) == pytest.approx(deepmind.compute_dice_coefficient(a, b))


def test_distances_are_those_of_surface_distance_exactly():
    """With boxes all polygons are flat, so the weights agree as well."""
    a = box(slice(1, 5), slice(2, 9), slice(3, 7))
    b = box(slice(2, 9), slice(4, 12), slice(5, 14))
    theirs = deepmind.compute_surface_distances(a, b, SPACING_MM)
    expected = deepmind.compute_surface_dice_at_tolerance(theirs, 2.0)
    assert 0.1 < expected < 0.9
    assert nsd(a, b, SPACING_MM, tolerance_mm=2.0) == pytest.approx(expected, abs=1e-9)
    expected = deepmind.compute_robust_hausdorff(theirs, 95)
    assert hd95_mm(a, b, SPACING_MM) == pytest.approx(expected, abs=1e-9)


ROW = box(slice(3, 4), slice(5, 6), slice(0, 16))
CORNERS = (
    box(slice(0, 1), slice(0, 1), slice(0, 1)),
    box(slice(11, 12), slice(19, 20), slice(15, 16)),
)


@pytest.mark.parametrize(
    ("a", "b"),
    [CORNERS, (~EMPTY, SOME), (SOME, ~EMPTY), (ROW, CORNERS[1]), (ROW[3:4], SOME[:1]), (ROW, ROW)],
    ids=["voxels", "all and some", "some and all", "row and voxel", "slices", "equal"],
)
def test_degenerate_masks_agree_with_surface_distance(a, b):
    theirs = deepmind.compute_surface_distances(a, b, SPACING_MM)
    expected = deepmind.compute_surface_dice_at_tolerance(theirs, 1.5)
    assert nsd(a, b, SPACING_MM, tolerance_mm=1.5) == pytest.approx(expected, abs=1e-9)
    expected = deepmind.compute_robust_hausdorff(theirs, 95)
    assert hd95_mm(a, b, SPACING_MM) == pytest.approx(expected, abs=1e-9)
    means = deepmind.compute_average_surface_distance(theirs)
    areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
    assert assd_mm(a, b, SPACING_MM) == pytest.approx(np.average(means, weights=areas), abs=1e-9)
    assert dsc(a, b) == pytest.approx(deepmind.compute_dice_coefficient(a, b))


# Properties


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.floats(-0.3, 0.3))
def test_scores_are_finite_in_range_and_symmetric(seed, threshold):
    a, b = blobs(seed, threshold, shape=(6, 8, 9))
    forth, back = (compare_masks(x, y, SPACING_MM) for x, y in ((a, b), (b, a)))
    for name in ("dsc", "nsd", "hd95_mm", "assd_mm", "absolute_volume_error_ml"):
        assert asdict(forth)[name] == pytest.approx(asdict(back)[name])
    assert 0 <= forth.dsc <= 1
    assert 0 <= forth.nsd <= 1
    assert 0 <= forth.hd95_mm <= diagonal_mm(a.shape, SPACING_MM)
    assert 0 <= forth.assd_mm <= diagonal_mm(a.shape, SPACING_MM)


def test_a_slice_counts_as_its_thickness():
    """The same voxels with other spacing give other distances."""
    a = box(slice(2, 4), slice(4, 8), slice(4, 8))
    b = box(slice(6, 8), slice(4, 8), slice(4, 8))
    assert hd95_mm(a, b, SPACING_MM) == pytest.approx(4 * 2.0)
    assert hd95_mm(a, b, (1.0, 0.7, 0.9)) == pytest.approx(4 * 1.0)
