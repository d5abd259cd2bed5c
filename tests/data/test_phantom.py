import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from pancreas_mtl.data.phantom import make_phantom, scanner
from pancreas_mtl.data.phantom.geometry import Space, ellipsoid, level_of_volume, tube
from pancreas_mtl.data.phantom.statistics import (
    COLUMNS,
    LESION_BY_SUBTYPE,
    LESION_ML,
    PANCREAS_ML,
    PROBABILITIES,
    RECIPES,
    ROWS,
    SLICES,
    SPACING_XY_MM,
    SPACING_Z_MM,
    SUBTYPE_SHARES,
    draw_case,
    quantile,
    subtype_of,
)

SEED = 3


@pytest.fixture(scope="module")
def easy():
    return [make_phantom(SEED, index, size="small") for index in range(8)]


def millilitres(case, label):
    return np.count_nonzero(case.labels == label) * np.prod(case.spacing_mm) / 1000


def drawn(index, difficulty="easy"):
    rng = np.random.default_rng([SEED, index])
    return draw_case(SEED, index, RECIPES[difficulty], rng)


def test_same_numbers_give_same_case_and_others_another(easy):
    again = make_phantom(SEED, 0, size="small")
    other = make_phantom(SEED + 1, 0, size="small")
    np.testing.assert_array_equal(again.image_hu, easy[0].image_hu)
    np.testing.assert_array_equal(again.labels, easy[0].labels)
    assert other.image_hu.shape != easy[0].image_hu.shape


def test_types_and_spacing(easy):
    for index, case in enumerate(easy):
        extent = np.array(case.labels.shape) * case.spacing_mm
        assert case.image_hu.dtype == np.int16
        assert case.labels.dtype == np.uint8
        assert case.subtype == subtype_of(SEED, index)
        np.testing.assert_allclose(extent, drawn(index).extent_mm)


def test_volumes_are_those_drawn(easy):
    for index, case in enumerate(easy):
        assert millilitres(case, 1) == pytest.approx(drawn(index).pancreas_ml, rel=0.06)
        assert millilitres(case, 2) == pytest.approx(drawn(index).lesion_ml, rel=0.2, abs=0.3)


def test_lesion_is_one_piece_and_nothing_touches_the_faces(easy):
    for case in easy:
        assert ndimage.label(case.labels == 2, np.ones((3, 3, 3)))[1] == 1
        for axis in (1, 2):
            assert not case.labels.take([0, -1], axis).any()


def test_small_is_the_same_anatomy_in_voxels_of_twice_the_edge(easy):
    full = make_phantom(SEED, 0)
    ratio = np.divide(easy[0].spacing_mm, full.spacing_mm)
    np.testing.assert_allclose(ratio, 2, rtol=0.05)
    zoom = np.divide(easy[0].image_hu.shape, full.image_hu.shape)
    blurred = ndimage.gaussian_filter(full.image_hu.astype(float), 0.7)
    coarse = ndimage.zoom(blurred, zoom, order=1, grid_mode=True, mode="nearest")
    assert np.corrcoef(coarse.ravel(), easy[0].image_hu.ravel())[0, 1] > 0.97
    assert np.prod(full.image_hu.shape) / np.prod(easy[0].image_hu.shape) == pytest.approx(
        8, rel=0.1
    )


def test_easy_pancreas_is_surrounded_by_fat(easy):
    for case in easy:
        whole = case.labels > 0
        distance = ndimage.distance_transform_edt(~whole, sampling=case.spacing_mm)
        around = case.image_hu[(distance > 1.2) & (distance < 2.2)]
        assert np.median(case.image_hu[case.labels == 1]) - np.median(around) > 60


def test_easy_subtypes_enhance_as_stated(easy):
    contrast, core_contrast = {0: [], 1: [], 2: []}, []
    for case in easy:
        lesion = case.labels == 2
        inside = ndimage.distance_transform_edt(lesion, sampling=case.spacing_mm)
        core = case.image_hu[inside >= 0.7 * inside.max()].mean()
        mean = case.image_hu[lesion].mean()
        contrast[case.subtype].append(mean - np.median(case.image_hu[case.labels == 1]))
        if case.subtype == 0:
            core_contrast.append(core - mean)
    assert min(map(len, contrast.values())) > 0
    assert max(core_contrast) < -12  # a cyst is darker than its rim
    assert max(contrast[0]) < -35
    assert -45 < min(contrast[1]) < max(contrast[1]) < -15  # hypo-enhancing
    assert min(contrast[2]) > 35  # hyper-enhancing


def test_pancreas_hu_resemble_those_of_patients(easy):
    values = np.concatenate([case.image_hu[case.labels == 1] for case in easy])
    assert 60 < values.mean() < 88
    assert 15 < values.std() < 45
    assert -80 < np.quantile(values, 0.005) < 0


def test_hard_lesions_of_all_subtypes_have_the_contrast_of_chance():
    difference = []
    for index in range(6):
        case = make_phantom(SEED, index, difficulty="hard", size="small")
        image = case.image_hu
        difference.append(image[case.labels == 2].mean() - np.median(image[case.labels == 1]))
    assert min(difference) < 0 < max(difference)


def test_quantile_interpolates_geometrically():
    assert [quantile(LESION_ML, p) for p in PROBABILITIES] == pytest.approx(LESION_ML)
    assert quantile(LESION_ML, 0.375) == pytest.approx(np.sqrt(2.7 * 7.5))


@pytest.mark.parametrize(
    ("quantiles", "value"),
    [
        (SLICES, lambda draw: draw.shape[0]),
        (ROWS, lambda draw: draw.shape[1]),
        (COLUMNS, lambda draw: draw.shape[2]),
        (SPACING_Z_MM, lambda draw: draw.spacing_mm[0]),
        (SPACING_XY_MM, lambda draw: draw.spacing_mm[2]),
        (PANCREAS_ML, lambda draw: draw.pancreas_ml),
        (LESION_ML, lambda draw: draw.lesion_ml / LESION_BY_SUBTYPE[draw.subtype]),
    ],
    ids=["slices", "rows", "columns", "spacing_z", "spacing_xy", "pancreas", "lesion"],
)
def test_draws_follow_the_quantiles(quantiles, value):
    values = [value(drawn(index, "hard")) for index in range(800)]
    expected = np.array(quantiles[1:-1])
    np.testing.assert_allclose(np.quantile(values, PROBABILITIES[1:-1]), expected, rtol=0.16)
    assert quantiles[0] * 0.99 <= min(values)
    assert max(values) <= quantiles[-1] * 1.01


@pytest.mark.parametrize("first", [0, 17, 10_000, 20_000])
def test_any_hundred_cases_have_the_shares_of_patients(first):
    subtypes = [subtype_of(SEED, index) for index in range(first, first + 100)]
    shares = np.bincount(subtypes, minlength=3) / 100
    np.testing.assert_allclose(shares, SUBTYPE_SHARES, atol=0.03)


def test_distances_are_in_mm_along_the_right_axes():
    space = Space((60.0, 42.0, 30.0))
    centre = np.array([30.0, 20.0, 15.0])
    d, h, w = (axis.ravel() for axis in space.coarse)
    sphere = ellipsoid(space, centre, (9.0, 9.0, 9.0))
    line = np.linspace([-20.0, 20.0, 15.0], [80.0, 20.0, 15.0], 200)
    rod = tube(space, line, 4.0)
    expected = np.sqrt((d[5] - 30) ** 2 + (h[3] - 20) ** 2 + (w[8] - 15) ** 2) - 9
    assert sphere[5, 3, 8] == pytest.approx(expected, abs=1e-3)
    assert rod[7, 3, 8] == pytest.approx(np.hypot(h[3] - 20, w[8] - 15) - 4, abs=0.01)


def test_refining_keeps_a_linear_field():
    space = Space((30.0, 24.0, 36.0))
    d, h, w = space.coarse
    fine_d, fine_h, fine_w = space.fine
    refined = space.refine(2 * d - h + 0.5 * w)
    inner = (slice(2, -2),) * 3
    expected = (2 * fine_d - fine_h + 0.5 * fine_w)[inner]
    np.testing.assert_allclose(refined[inner], expected, atol=1e-3)


def test_level_of_volume_counts_and_takes_at_least_one():
    field = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.count_nonzero(field < level_of_volume(field, 7)) == 7
    assert np.count_nonzero(field < level_of_volume(field, 0.01)) == 1


def test_thick_slices_average_what_they_cover():
    anatomy = np.zeros((40, 8, 8), np.float32)
    anatomy[10:] = 100.0  # an edge in the middle of the second of four slices
    scan = scanner.sample(anatomy, (4, 8, 8), (5.0, 1.0, 1.0))
    np.testing.assert_allclose(scan[:, 4, 4], [4.5, 95.5, 100, 100], atol=6)
    anatomy[10:] = 0.0
    anatomy[15:] = 100.0
    scan = scanner.sample(anatomy, (4, 8, 8), (5.0, 1.0, 1.0))
    np.testing.assert_allclose(scan[:, 4, 4], [0, 50, 100, 100], atol=2)


def test_noise_has_its_strength_and_is_correlated_in_the_plane_only():
    noise = scanner.noise(np.random.default_rng(0), (24, 48, 48), (2.0, 0.7, 0.7), 15.0)
    along = [np.mean(noise * np.roll(noise, 1, axis)) / 15.0**2 for axis in range(3)]
    assert noise.std() == pytest.approx(15.0, rel=1e-3)
    assert along[0] == pytest.approx(0, abs=0.03)
    assert min(along[1:]) > 0.4


def test_stored_values_stay_in_the_range_of_scanners():
    stored = scanner.to_hu(np.array([-5000.0, 0.6, 99999.0], np.float32))
    np.testing.assert_array_equal(stored, [-1024, 1, 3071])


def test_workers_start_without_torch():
    code = "import sys, pancreas_mtl.data.phantom; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
