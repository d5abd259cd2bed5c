import numpy as np
import pytest
import torch
from scipy import ndimage

from pancreas_mtl.inference import postprocess
from pancreas_mtl.inference.postprocess import (
    MeanEntropy,
    axis_map,
    clean_up,
    interpolate,
    labels_at,
    largest,
    largest_component,
)

RNG = np.random.default_rng(0)


class Whole:
    """Scores that exist already; planes may be asked for in ascending order alone."""

    def __init__(self, array):
        self.array, self.shape, self.low = array, array.shape, 0

    def planes(self, low, high):
        assert low >= self.low
        self.low = low
        return self.array[:, low:high]


@pytest.mark.parametrize("shape", [(40, 9, 11), (3, 20, 7), (5, 6, 7)])
def test_labels_equal_those_of_scores_interpolated_as_a_whole(shape):
    scores = RNG.normal(size=(3, 5, 6, 7)).astype(np.float32)
    zoom = np.array(shape) / (5, 6, 7)
    whole = [ndimage.zoom(s, zoom, order=1, mode="nearest", grid_mode=True) for s in scores]
    labels = labels_at([Whole(scores)], shape, orders=[(1, 1, 1)])
    assert (labels == np.argmax(whole, 0)).mean() > 0.999


@pytest.mark.parametrize("shape", [(40, 9, 11), (3, 20, 7), (9, 6, 9)])
@pytest.mark.parametrize("order", [(1, 1, 1), (0, 1, 1), (1, 1, 0)])
def test_leaving_out_the_background_changes_nothing(shape, order):
    scores = RNG.normal(size=(3, 9, 8, 10)).astype(np.float32)
    scores[0] += 4
    scores[1:, 3:6, 2:5, 5:8] += 6
    labels = labels_at([Whole(scores)], shape, orders=[order])
    maps = [axis_map(*one) for one in zip((9, 8, 10), shape, order, strict=True)]
    assert labels.any()
    np.testing.assert_array_equal(labels, largest(interpolate(torch.from_numpy(scores), maps)))


def test_background_alone_is_an_empty_mask():
    scores = np.zeros((3, 4, 4, 4), np.float32)  # of equal scores the background's wins
    assert not labels_at([Whole(scores)], (9, 4, 5), orders=[(1, 1, 1)]).any()


def test_several_models_add_up():
    strong, weak = np.zeros((2, 3, 4, 4, 4), np.float32)
    strong[2], weak[1] = 0.9, 0.4
    labels = labels_at([Whole(strong), Whole(weak)], (4, 4, 4), orders=[(1, 1, 1)] * 2)
    assert (labels == 2).all()


def test_models_of_different_spacing_meet_in_the_sources_grid():
    coarse, fine = np.zeros((3, 2, 2, 2), np.float32), np.zeros((3, 8, 8, 8), np.float32)
    coarse[1], fine[1] = 1, 1
    labels = labels_at([Whole(coarse), Whole(fine)], (6, 6, 6), orders=[(0, 1, 1), (1, 1, 1)])
    assert (labels == 1).all()


def test_small_lesions_become_pancreas_and_stray_pancreas_goes():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[2:4, 2:4, 2:4] = 2
    labels[5, 5, 5] = 2
    labels[8, 8, 8] = 1
    cleaned = clean_up(labels, largest_pancreas=True, largest_lesion=True)
    assert cleaned[5, 5, 5] == 1
    assert cleaned[8, 8, 8] == 0
    assert (cleaned == 2).sum() == 8
    assert labels[8, 8, 8] == 1
    untouched = clean_up(labels, largest_pancreas=False, largest_lesion=False)
    np.testing.assert_array_equal(untouched, labels)


def test_the_lesion_in_the_kept_pancreas_stays_where_a_larger_one_goes_with_its_island():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:5, :5, :5] = 1
    labels[2, 2, 2] = 2
    labels[7:9, 7:9, 7:9] = 2
    cleaned = clean_up(labels, largest_pancreas=True, largest_lesion=True)
    assert np.argwhere(cleaned == 2).tolist() == [[2, 2, 2]]
    assert (cleaned > 0).sum() == 125


def test_diagonal_voxels_are_one_component():
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert largest_component(mask).sum() == 2


def test_components_are_counted_part_by_part(monkeypatch):
    """Each half of the larger one is smaller than the other component."""
    mask = np.zeros((4, 3, 10), bool)
    mask[0, 0, :6] = mask[1:3, 2, 2:7] = True
    monkeypatch.setattr(postprocess, "VOXELS_AT_ONCE", 42)
    kept = largest_component(mask)
    assert kept.sum() == 10
    assert not kept[0].any()


def test_empty_mask_stays_empty():
    empty = np.zeros((4, 4, 4), np.uint8)
    assert not clean_up(empty, largest_pancreas=True, largest_lesion=True).any()


def test_entropy_counts_the_predicted_pancreas_alone_and_adds_up():
    p = torch.full((3, 2, 2, 2), 1e-30)
    p[0] = 1
    entropy = MeanEntropy()
    entropy.add(p.log())
    assert entropy.value == 0
    p[:, 0, 0, 0] = torch.tensor([0.2, 0.4, 0.4])
    entropy.add(p.log() + 7)  # logits, up to a constant
    first = -(0.2 * np.log(0.2) + 0.8 * np.log(0.4))
    assert entropy.value == pytest.approx(first, rel=1e-5)
    p[:, 0, 0, 0] = torch.tensor([1e-30, 0.5, 0.5])
    entropy.add(p[:, :1].log())
    assert entropy.value == pytest.approx((first + np.log(2)) / 2, rel=1e-5)
