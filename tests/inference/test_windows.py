import itertools

import pytest
import torch

from pancreas_mtl.inference.windows import (
    WindowScores,
    gaussian_weight,
    mirror_views,
    predict_windows,
    window_size,
    window_starts,
)
from pancreas_mtl.types import Evidence

PATCH, DIVISOR = (8, 16, 16), (2, 4, 4)


def identity(images):
    """Logits that are the image itself, so that stitching has to give it back."""
    logits = torch.cat([images, 2 * images, -images], 1)
    return logits, Evidence(images.mean((1, 2, 3, 4))[:, None], torch.ones(len(images), 1))


def predict(image, window=identity, **changes):
    return predict_windows(window, image, patch_size=PATCH, divisor=DIVISOR, **changes)


@pytest.mark.parametrize("shape", [(8, 16, 16), (5, 7, 9), (20, 33, 17), (1, 1, 1), (9, 16, 50)])
@pytest.mark.parametrize("mirror", [(), (2,), (0, 1, 2)])
@pytest.mark.parametrize("divisor", [DIVISOR, None])
def test_an_identity_comes_back_whatever_the_size(shape, mirror, divisor):
    torch.manual_seed(0)
    image = torch.randn(shape)
    result = predict_windows(identity, image, patch_size=PATCH, divisor=divisor, mirror_axes=mirror)
    torch.testing.assert_close(result.logits, torch.stack([image, 2 * image, -image]))
    assert result.evidence.sums.shape == (2 ** len(mirror), 1)


@pytest.mark.parametrize("shape", [(50, 17, 9), (5, 7, 9), (8, 16, 16), (33, 20, 30)])
@pytest.mark.parametrize("take", [1, 3, 13])
@pytest.mark.parametrize("skip", [0, 2, 20])
def test_planes_equal_those_of_the_whole_and_few_are_held(shape, take, skip):
    torch.manual_seed(1)
    image, network = torch.randn(shape), torch.nn.Conv3d(1, 3, 3, padding=1)

    def window(images):
        return network(images), Evidence(images.sum((1, 2, 3, 4))[:, None], torch.ones(1, 1))

    with torch.no_grad():
        whole = predict(image, window)
        scores = WindowScores(window, image, patch_size=PATCH, divisor=DIVISOR)
        for low in range(0, shape[0], take + skip):
            high = min(low + take, shape[0])
            planes = scores.planes(low, high)
            torch.testing.assert_close(planes, whole.logits[:, low:high])
            assert scores._total.shape[1] <= take + 2 * PATCH[0]
        torch.testing.assert_close(scores.evidence.sums, whole.evidence.sums)


def test_views_are_mirrored_back_each_along_its_own_axis():
    def ramp(images):
        position = torch.arange(16.0).expand(images.shape)
        return torch.cat([position] * 3, 1), Evidence(images.new_ones(1, 1), images.new_ones(1, 1))

    along_w = predict(torch.zeros(8, 16, 16), ramp, mirror_axes=(2,)).logits
    torch.testing.assert_close(along_w, torch.full_like(along_w, 7.5))
    along_d = predict(torch.zeros(8, 16, 16), ramp, mirror_axes=(0,)).logits
    torch.testing.assert_close(along_d[0, 0, 0], torch.arange(16.0))


def test_small_axes_take_their_own_size_and_at_least_two_strides():
    assert window_size((5, 7, 50), PATCH, DIVISOR) == (6, 8, 16)
    assert window_size((1, 1, 1), PATCH, DIVISOR) == (4, 8, 8)


def test_a_small_image_is_padded_to_a_patch_unless_windows_may_shrink():
    seen = []

    def window(images):
        seen.append(tuple(images.shape))
        return identity(images)

    predict_windows(window, torch.ones(5, 7, 50), patch_size=PATCH)
    assert set(seen) == {(1, 1, 8, 16, 16)}
    seen.clear()
    predict_windows(window, torch.ones(5, 7, 50), patch_size=PATCH, divisor=DIVISOR)
    assert set(seen) == {(1, 1, 6, 8, 16)}


def test_windows_cover_everything_in_even_steps():
    starts = window_starts((20, 16, 40), (8, 16, 16), 0.5)
    assert [start[0] for start in starts if start[2] == 0] == [0, 4, 8, 12]
    assert sorted({start[2] for start in starts}) == [0, 8, 16, 24]
    covered = torch.zeros(20, 16, 40)
    for d, h, w in starts:
        covered[d : d + 8, h : h + 16, w : w + 16] += 1
    assert covered.min() >= 1


def test_evidence_adds_up_over_windows():
    image = torch.ones(16, 16, 16)
    windows = len(window_starts((16, 16, 16), PATCH, 0.5))
    evidence = predict(image).evidence
    assert float(evidence.sums) == pytest.approx(windows)
    assert float(evidence.weights) == windows


def test_pooling_weights_add_up_over_windows_in_the_unmirrored_view_alone():
    def look(images):
        return *identity(images), torch.cat([images, images + 1], 1)

    options = {"patch_size": PATCH, "divisor": DIVISOR}
    image = torch.rand(9, 16, 50)
    visits = WindowScores(identity, torch.ones_like(image), look=look, **options).attention[0]
    assert visits.max() > visits.min() == 1  # windows overlap
    plain, mirrored = (
        WindowScores(identity, image, look=look, mirror_axes=axes, **options)
        for axes in ((), (0, 1, 2))
    )
    torch.testing.assert_close(plain.attention, torch.stack([image, image + 1]) * visits)
    torch.testing.assert_close(plain.attention, mirrored.attention)
    again = WindowScores(identity, image, look=look, mirror_axes=(0, 1, 2), **options)
    torch.testing.assert_close(again.planes(0, 9), predict(image, mirror_axes=(0, 1, 2)).logits)
    assert WindowScores(identity, image, **options).attention is None


def test_views_are_all_subsets():
    assert mirror_views((0, 2)) == [(), (0,), (2,), (0, 2)]
    assert len(mirror_views((0, 1, 2))) == 8


def test_gaussian_peaks_in_the_middle_and_is_positive_everywhere():
    weight = gaussian_weight((8, 16, 12))
    assert weight.max() == weight[4, 8, 6] == 10
    assert weight.min() > 0
    for axis, corner in itertools.product(range(3), (0, -1)):
        assert weight.select(axis, corner).max() < 0.2
