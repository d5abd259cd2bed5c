import numpy as np
import pytest
from scipy import ndimage

from pancreas_mtl.data.resample import (
    interpolation_matrix,
    resample,
    resample_labels,
    spline_orders,
    target_shape,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(9, 14, 5), (24, 7, 11), (10, 11, 12), (1, 1, 1)])
@pytest.mark.parametrize("order", [1, 3])
def test_equals_scipy(shape, order):
    array = RNG.normal(size=(10, 11, 12)).astype(np.float32)
    zoom = np.array(shape) / array.shape
    expected = ndimage.zoom(array, zoom, order=order, mode="nearest", grid_mode=True)
    result = resample(array, shape, orders=(order,) * 3)
    np.testing.assert_allclose(result, expected.clip(array.min(), array.max()), atol=2e-5)


def test_nearest_takes_the_voxel_whose_extent_holds_the_centre():
    matrix = interpolation_matrix(2, 5, 0)
    assert matrix.argmax(1).tolist() == [0, 0, 1, 1, 1]
    assert interpolation_matrix(4, 2, 0).argmax(1).tolist() == [1, 3]


def test_linear_gradient_is_kept_inside():
    ramp = np.broadcast_to(np.arange(12.0, dtype=np.float32), (4, 4, 12))
    result = resample(np.ascontiguousarray(ramp), (4, 4, 24), orders=(1, 1, 1))
    np.testing.assert_allclose(np.diff(result[0, 0, 2:-2]), 0.5, atol=1e-5)


def test_leading_axes_are_resampled_alike():
    array = RNG.normal(size=(3, 6, 7, 8)).astype(np.float32)
    together = resample(array, (4, 9, 5), orders=(0, 1, 1))
    for channel in range(3):
        alone = resample(array[channel], (4, 9, 5), orders=(0, 1, 1))
        np.testing.assert_allclose(together[channel], alone, atol=1e-5)


def test_a_slice_keeps_its_own_range_where_its_axis_is_apart():
    array = RNG.normal(size=(5, 11, 12)).astype(np.float32)
    array[2] *= 0.1
    result = resample(array, (5, 30, 31), orders=(0, 3, 3))
    for one, source in zip(result, array, strict=True):
        zoomed = ndimage.zoom(source, (30 / 11, 31 / 12), order=3, mode="nearest", grid_mode=True)
        assert not (source.min() <= zoomed.min() and zoomed.max() <= source.max())
        np.testing.assert_allclose(one, zoomed.clip(source.min(), source.max()), atol=2e-5)


def test_orders_treat_one_coarse_axis_apart():
    assert spline_orders((5.0, 0.7, 0.9), (2.0, 0.7, 0.9), order=3) == (0, 3, 3)
    assert spline_orders((2.0, 0.7, 0.9), (0.6, 0.6, 2.0), order=3) == (3, 3, 0)
    assert spline_orders((2.0, 0.7, 0.9), (2.0, 0.7, 0.9), order=1) == (1, 1, 1)
    assert spline_orders((5.0, 5.0, 0.9), (1.0, 1.0, 1.0), order=3) == (3, 3, 3)


def test_target_shape_covers_the_extent():
    assert target_shape((10, 20, 30), (2.0, 0.7, 0.9), (4.0, 1.4, 1.8)) == (5, 10, 15)
    assert target_shape((1, 1, 1), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0)) == (1, 1, 1)


def test_labels_are_never_invented():
    labels = np.zeros((6, 9, 9), dtype=np.uint8)
    labels[2:4, 2:7, 2:7] = 2  # linear interpolation between 0 and 2 would give 1
    result = resample_labels(labels, (7, 17, 13), orders=(1, 1, 1))
    assert set(np.unique(result)) == {0, 2}


def test_labels_survive_a_round_trip_of_doubling():
    labels = RNG.integers(0, 3, size=(5, 6, 7)).astype(np.uint8)
    doubled = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(resample_labels(doubled, (5, 6, 7), orders=(0, 0, 0)), labels)


def test_empty_mask_stays_empty():
    assert not resample_labels(np.zeros((4, 4, 4), np.uint8), (7, 3, 5), orders=(1, 1, 1)).any()


@pytest.mark.parametrize("shape", [(4, 11, 30), (20, 9, 5), (1, 1, 2)])
@pytest.mark.parametrize("orders", [(1, 1, 1), (0, 3, 3)])
def test_labels_are_those_of_a_whole_interpolation(shape, orders):
    linear = tuple(min(order, 1) for order in orders)
    for _ in range(10):
        blurred = ndimage.gaussian_filter(RNG.random((9, 14, 12)), 1.5)
        labels = np.digitize(blurred, np.quantile(blurred, [0.9, 0.97])).astype(np.uint8)
        shares = [resample(labels == label, shape, orders=linear) for label in range(3)]
        expected = np.argmax(shares, axis=0)
        np.testing.assert_array_equal(resample_labels(labels, shape, orders=orders), expected)


def test_a_voxel_that_a_coarser_grid_steps_over_leaves_nothing():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4, 4, 4] = 1
    assert not resample_labels(labels, (2, 2, 2), orders=(0, 0, 0)).any()


@pytest.mark.parametrize("order", [1, 3])
def test_a_matrix_has_no_denormal_weights(order):
    """Multiplying by them would take ten times as long; splines fade out through them."""
    matrix = interpolation_matrix(180, 215, order)
    assert np.abs(matrix[matrix != 0]).min() > np.finfo(np.float32).tiny
    assert np.allclose(matrix.sum(axis=1), 1)
