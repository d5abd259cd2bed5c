import numpy as np
import pytest
from scipy import ndimage

from pancreas_mtl.inference.maps import (
    MAX_CANDIDATES,
    MIN_SCORE,
    MIN_VOXELS,
    NEIGHBOURS,
    PEAK_PER_BORDER,
    lesion_candidates,
    maps_at,
    pooling_shares,
)

SHAPE = (6, 20, 24)


def bumps(*peaks):
    """A probability with a cone at each `(row, column)`, as high as its third number."""
    d, h, w = np.indices(SHAPE)
    cones = [
        peak * (1 - np.sqrt((d - 3) ** 2 + (h - row) ** 2 + (w - column) ** 2) / 6)
        for row, column, peak in peaks
    ]
    return np.maximum(np.max(cones, axis=0), 0).astype(np.float32)


def test_every_peak_is_a_candidate_that_holds_its_height():
    found = lesion_candidates(bumps((5, 5, 0.9), (14, 17, 0.3)))
    assert np.unique(found).tolist() == pytest.approx([0, 0.3, 0.9])
    assert (found[3, 5, 5], found[3, 14, 17]) == pytest.approx((0.9, 0.3))


def test_a_candidate_ends_at_a_share_of_its_peak():
    probability = bumps((9, 12, 0.8))
    np.testing.assert_array_equal(lesion_candidates(probability) > 0, probability > 0.8 / 2.5)


def test_faint_and_tiny_ones_are_none_and_the_rim_of_another_is_none():
    assert not lesion_candidates(bumps((9, 12, 0.09))).any()
    tiny = np.zeros(SHAPE, np.float32)
    tiny[2, 3, : MIN_VOXELS - 1] = 0.9
    assert not lesion_candidates(tiny).any()
    tiny[2, 3, :MIN_VOXELS] = 0.9
    assert lesion_candidates(tiny).any()
    ramp = np.zeros(SHAPE, np.float32)
    ramp[2:4, 4:10, 4:8], ramp[2:4, 4:10, 8:12] = 0.9, 0.3  # below 0.36, so beyond the border
    assert np.unique(lesion_candidates(ramp)).tolist() == pytest.approx([0, 0.9])


def test_nothing_gives_no_candidate_in_any_shape():
    for shape in (SHAPE, (1, 1, 1)):
        assert not lesion_candidates(np.zeros(shape, np.float32)).any()


def test_pooling_shares_weigh_every_average_alike():
    weights = np.zeros((3, *SHAPE), np.float32)
    weights[0, 0, 0, :4] = 5.0  # a quarter each
    weights[1, 1] = 0.1
    shares = pooling_shares(weights)  # the third has no weight at all
    assert shares[0, 0, 0] == pytest.approx(1 / 4 / 3)
    assert shares[1].sum() == pytest.approx(1 / 3)
    assert shares.sum() == pytest.approx(2 / 3)


def test_attention_ends_at_255_and_models_are_averaged():
    first, second = np.zeros((2, 2, 2, 2), np.float32)
    first[0, 0, 0], second[1] = 0.4, 0.1
    maps = [{"attention": first}, {"attention": second}, {}]
    found = maps_at(maps, (2, 2, 2), orders=[(1, 1, 1)] * 3)["attention"]
    assert found.dtype == np.uint8
    assert (found[0, 0, 0], found[1, 1, 1]) == (255, 64)
    nothing = maps_at([{"attention": 0 * first}], (2, 2, 2), orders=[(1, 1, 1)])["attention"]
    assert not nothing.any()


def peak_by_peak(probability):
    """The rule in its plain form, with as many steps as there are peaks."""
    found, rest = np.zeros_like(probability), np.where(probability >= MIN_SCORE, probability, 0)
    count = 0
    while count < MAX_CANDIDATES and (peak := rest.max()) >= MIN_SCORE:
        components, _ = ndimage.label(rest > peak / PEAK_PER_BORDER, NEIGHBOURS)
        candidate = components == components[np.unravel_index(rest.argmax(), rest.shape)]
        rest[candidate] = 0
        is_large = np.count_nonzero(candidate) >= MIN_VOXELS
        if is_large and not found[ndimage.binary_dilation(candidate, NEIGHBOURS)].any():
            found[candidate] = peak
            count += 1
    return found


@pytest.mark.parametrize("blur", [0, 0.7, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_noise_with_a_thousand_peaks_follows_the_same_rule(blur, seed):
    noise = np.random.default_rng(seed).random(SHAPE)
    noise = ndimage.gaussian_filter(noise, blur) if blur else noise
    probability = (((noise - noise.min()) / np.ptp(noise)) ** 4).astype(np.float32)
    found = lesion_candidates(probability)
    assert found.any()
    np.testing.assert_array_equal(found, peak_by_peak(probability))
