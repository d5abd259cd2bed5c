from pathlib import Path

import numpy as np
import pytest
import torch

from pancreas_mtl.data.patches import (
    CaseDataset,
    PatchDataset,
    PatchRequest,
    PatchSampler,
    balanced_weights,
    crop,
    patch_start,
)
from pancreas_mtl.data.preprocess import CacheEntry
from pancreas_mtl.inference.windows import _pad_to
from pancreas_mtl.types import UNKNOWN, Label

NOWHERE = np.zeros((0, 3), np.int32)


def entry(tmp_path: Path, name="a", *, shape=(10, 12, 14), subtype=1, lesion=((5, 6, 7),)):
    array = np.zeros((2, *shape), np.float16)
    array[0] = np.arange(np.prod(shape)).reshape(shape) % 100
    at = np.array(lesion, np.int32).reshape(-1, 3)
    for d, h, w in at:
        array[1, d, h, w] = Label.LESION
    path = tmp_path / f"{name}.npy"
    np.save(path, array)
    return CacheEntry(name, path, shape, subtype, True, len(at), NOWHERE, at)


def sampler(entries, **changes):
    arguments = {"batch_size": 2, "steps": 6, "seed": 0} | changes
    return PatchSampler(entries, **arguments)


def test_every_case_comes_equally_often_over_epochs(tmp_path):
    draw = sampler([entry(tmp_path, f"{i}") for i in range(5)], steps=5)
    seen = []
    for epoch in range(4):
        draw.set_epoch(epoch)
        seen += [request.case for batch in draw for request in batch]
    assert np.bincount(seen).tolist() == [8] * 5


def test_epoch_and_seed_decide_and_nothing_else(tmp_path):
    entries = [entry(tmp_path, f"{i}") for i in range(5)]
    first, again, other = sampler(entries), sampler(entries), sampler(entries, seed=1)
    assert list(first) == list(first) == list(again)
    assert list(first) != list(other)
    again.set_epoch(1)
    assert list(first) != list(again)


def test_ranks_share_one_sequence(tmp_path):
    entries = [entry(tmp_path, f"{i}") for i in range(5)]
    parts = [list(sampler(entries, rank=rank, world_size=2)) for rank in (0, 1)]
    together = list(sampler(entries, batch_size=4))
    for step, whole in enumerate(together):
        assert sorted(parts[0][step] + parts[1][step]) == sorted(whole)


def test_focus_shares(tmp_path):
    requests = [r for batch in sampler([entry(tmp_path)], steps=1500) for r in batch]
    shares = np.bincount([r.focus for r in requests], minlength=3) / len(requests)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)


def test_balanced_weights_give_each_known_subtype_the_same_share():
    weights = balanced_weights([0, 0, 0, 1, 2, UNKNOWN])
    assert weights.sum() == pytest.approx(1)
    assert weights[:3].sum() == pytest.approx(weights[3]) == pytest.approx(weights[4])
    assert weights[5] == pytest.approx(1 / 6)


def test_lesion_lies_in_the_middle_of_a_lesion_patch(tmp_path):
    one = entry(tmp_path)
    start = patch_start(one, PatchRequest(0, Label.LESION, seed=3), (4, 4, 4))
    assert start == (3, 4, 5)


def test_patch_stays_inside_where_it_can(tmp_path):
    one = entry(tmp_path, lesion=((0, 0, 13),))
    start = patch_start(one, PatchRequest(0, Label.LESION, seed=3), (4, 4, 4))
    assert start == (0, 0, 10)
    for seed in range(20):
        start = patch_start(one, PatchRequest(0, Label.BACKGROUND, seed), (4, 12, 16))
        assert 0 <= start[0] <= 6
        assert start[1:] == (0, -1)


def test_a_focus_that_is_not_there_falls_back(tmp_path):
    one = entry(tmp_path, lesion=())
    patch_start(one, PatchRequest(0, Label.LESION, seed=1), (4, 4, 4))


def test_crop_pads_with_zeros_and_keeps_unknown():
    array = np.ones((2, 4, 4, 4), np.float16)
    array[1] = UNKNOWN
    result = crop(array, (-1, 2, 0), (4, 4, 4))
    assert result.shape == (2, 4, 4, 4)
    assert (result[0, 0] == 0).all()
    assert (result[0, 1:, :2] == 1).all()
    assert (result[0, 1:, 2:] == 0).all()
    assert (result[1] == UNKNOWN).all()


def test_crop_pads_the_mask_with_background():
    array = np.full((2, 4, 4, 4), 2, np.float16)
    assert (crop(array, (0, 0, 3), (4, 4, 4))[1, :, :, 1:] == 0).all()


def test_patch_holds_what_the_file_holds(tmp_path):
    one = entry(tmp_path)
    request = PatchRequest(0, Label.LESION, seed=5)
    batch = PatchDataset([one], patch_size=(4, 6, 8))[request]
    d, h, w = patch_start(one, request, (4, 6, 8))
    expected = np.asarray(one.open()[0, d : d + 4, h : h + 6, w : w + 8], np.float32)
    np.testing.assert_array_equal(batch.image[0].numpy(), expected)
    assert batch.image.shape == batch.mask.shape == (1, 4, 6, 8)
    assert (batch.mask == Label.LESION).sum() == 1
    assert int(batch.seed) == 5


def test_a_lesion_at_the_border_is_in_its_patch_whatever_is_read_around_it(tmp_path):
    one = entry(tmp_path, lesion=((0, 0, 13),))
    data = PatchDataset([one], patch_size=(4, 6, 8), read_size=(8, 10, 12))
    batch = data[PatchRequest(0, Label.LESION, seed=5)]
    patch = batch.mask[0, 2:-2, 2:-2, 2:-2]
    assert patch.shape == (4, 6, 8)
    assert patch[0, 0, -1] == Label.LESION
    np.testing.assert_array_equal(
        batch.image[0, 2:-2, 2:-2, 2:-2].numpy(),
        np.asarray(one.open()[0, :4, :6, -8:], np.float32),
    )
    assert (batch.image[0, :2] == 0).all(), "outside the image"


def test_unknown_subtype_and_whole_cases(tmp_path):
    batch = CaseDataset([entry(tmp_path, subtype=None)])[0]
    assert int(batch.subtype) == UNKNOWN
    assert batch.image.shape == (1, 10, 12, 14)


def test_an_image_smaller_than_the_patch_lies_where_prediction_puts_it(tmp_path):
    one = entry(tmp_path, shape=(7, 9, 10))
    start = patch_start(one, PatchRequest(0, Label.LESION, seed=1), (8, 12, 12))
    _, inside = _pad_to(torch.zeros(7, 9, 10), (8, 12, 12))
    assert start == tuple(-place.start for place in inside)
