from __future__ import annotations

import numpy as np
import pytest

from pancreas_mtl.metrics import surface
from pancreas_mtl.metrics.surface import (
    CORNERS,
    FACES,
    bounding_box,
    element_areas_mm2,
    surface_distances,
)

SPACING_MM = (2.0, 0.7, 0.9)


def code_of(inside) -> int:
    return sum(1 << bit for bit, corner in enumerate(CORNERS) if inside(*corner))


def test_flat_elements_have_the_area_of_their_face():
    areas = element_areas_mm2(SPACING_MM)
    assert areas[code_of(lambda d, h, w: d == 0)] == pytest.approx(0.7 * 0.9)
    assert areas[code_of(lambda d, h, w: h == 0)] == pytest.approx(2.0 * 0.9)
    assert areas[code_of(lambda d, h, w: w == 1)] == pytest.approx(2.0 * 0.7)


def test_a_single_corner_cuts_off_a_triangle():
    a, b, c = (side / 2 for side in SPACING_MM)
    triangle = np.linalg.norm(np.cross([a, -b, 0], [a, 0, -c])) / 2
    assert element_areas_mm2(SPACING_MM)[1] == pytest.approx(triangle)


def test_an_edge_cuts_off_a_slanted_rectangle():
    along_d = code_of(lambda d, h, w: h == 0 and w == 0)
    assert element_areas_mm2(SPACING_MM)[along_d] == pytest.approx(2.0 * np.hypot(0.35, 0.45))


def test_nothing_inside_or_outside_has_no_area_and_all_else_has():
    areas = element_areas_mm2(SPACING_MM)
    assert areas[0] == areas[255] == 0
    assert (areas[1:255] > 0).all()


def has_diagonal_face(code: int) -> bool:
    """Whether two opposite corners of a face are inside and the other two are not."""
    faces = [[code >> corner & 1 for corner in face] for face in FACES]
    return any(a == c != b == d for a, b, c, d in faces)


def test_inside_and_outside_share_their_surface():
    areas = element_areas_mm2(SPACING_MM)
    codes = [code for code in range(256) if not has_diagonal_face(code)]
    assert len(codes) > 100
    np.testing.assert_allclose(areas[codes], areas[[255 - code for code in codes]])


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 0.7, 0.9)])
def test_the_area_of_a_sphere(spacing_mm):
    radius_mm = 8.0
    shape = [int(24 / side) for side in spacing_mm]
    axes = [np.arange(size) * side - 12 for size, side in zip(shape, spacing_mm, strict=True)]
    d, h, w = np.meshgrid(*axes, indexing="ij")
    ball = d**2 + h**2 + w**2 <= radius_mm**2
    distances = surface_distances(ball, ball, spacing_mm)
    assert distances.first_areas_mm2.sum() == pytest.approx(4 * np.pi * radius_mm**2, rel=0.12)
    assert distances.mean_mm() == 0


@pytest.mark.parametrize("share", [0.005, 0.4])
def test_tree_and_transform_agree(monkeypatch, share):
    first, second = np.random.default_rng(0).random((2, 10, 12, 11)) < share
    found = []
    for sparse in (0.0, 9.0):
        monkeypatch.setattr(surface, "SPARSE", sparse)
        found.append(surface_distances(first, second, SPACING_MM))
    for by_transform, by_tree in zip(*found, strict=True):
        np.testing.assert_allclose(by_transform, by_tree, rtol=1e-12)


def test_an_empty_mask_has_no_surface():
    mask = np.zeros((3, 4, 5), bool)
    full = ~mask
    assert surface_distances(mask, full, SPACING_MM) is None
    assert surface_distances(full, mask, SPACING_MM) is None


def test_a_mask_that_fills_the_volume_is_closed_at_its_border():
    full = np.ones((3, 4, 5), bool)
    distances = surface_distances(full, full, SPACING_MM)
    faces = 2 * (3 * 4 * 2.0 * 0.7 + 3 * 5 * 2.0 * 0.9 + 4 * 5 * 0.7 * 0.9)
    assert 0.85 * faces < distances.first_areas_mm2.sum() < faces  # edges are cut off


def test_bounding_box():
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 2:4, 3] = mask[3, 2, 6] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 4), slice(3, 7))
    assert mask[bounding_box(np.zeros_like(mask))].size == 0
